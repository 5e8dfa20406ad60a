"""How often couplings are claimed where there is nothing to find: neutral replies against other neutral replies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from persona_core.analysis.innovations import Innovations
from persona_core.analysis.interaction import LAGS, compare_couplings
from persona_core.analysis.permutation import MIN_GROUPS
from persona_core.analysis.prewhitening import MAX_ORDER, MIN_REPLIES
from persona_core.errors import SettingError

N_HALVINGS = 10


@dataclass(frozen=True)
class NeutralEdges:
    """What is claimed of neutral replies when half of their prompts are the run and the other half its null.

    Attributes:
        n_prompts: of the neutral replies.
        n_halvings: random halvings; they overlap, so there is no interval.
        together, lagged: pairs claimed as edges, over all halvings.
        significant_together, significant_lagged: pairs with q of at most 0.05, however small their excess.
        n_together, n_lagged: pairs tested, over all halvings.
    """

    n_prompts: int
    n_halvings: int
    together: int
    lagged: int
    significant_together: int
    significant_lagged: int
    n_together: int
    n_lagged: int

    def to_dict(self) -> dict[str, int]:
        return asdict(self)


def edges_on_neutral(
    traits: Sequence[str],
    neutral: Sequence[np.ndarray],
    groups: Sequence[str] | None = None,
    *,
    lags: Sequence[int] = LAGS,
    max_order: int = MAX_ORDER,
    n_halvings: int = N_HALVINGS,
    n_shuffles: int = 999,
    seed: int = 0,
) -> NeutralEdges:
    """Halve the prompts of neutral replies at random, and measure one half's couplings against the other's.

    Args:
        traits, neutral, groups, lags, max_order, n_shuffles: as in `measure_couplings`.
        n_halvings: how often.
        seed: of halvings and permutations.

    Raises:
        SettingError: too few replies or prompts for two halves.
    """
    known = Innovations.of(traits, neutral, groups, max_order, "neutral reply")
    prompts = np.unique(known.prompts)
    if len(prompts) < 2 * MIN_GROUPS:
        raise SettingError(
            f"The neutral replies answer {len(prompts)} prompts; {2 * MIN_GROUPS} are needed to halve them."
        )
    rng = np.random.default_rng(seed)
    tables = []
    for k in range(n_halvings):
        run = np.isin(known.prompts, rng.permutation(prompts)[: len(prompts) // 2])
        if min(run.sum(), (~run).sum()) < MIN_REPLIES:
            raise SettingError(
                f"{len(known.prompts)} neutral replies; {2 * MIN_REPLIES} and more are needed to halve them."
            )
        halves = known.select(run), known.select(~run)
        tables.append(
            compare_couplings(traits, *halves, lags=lags, n_shuffles=n_shuffles, n_resamples=500, seed=seed + k)
        )
    together, lagged = ([c for t in tables for c in getattr(t, kind)] for kind in ("together", "lagged"))
    return NeutralEdges(
        n_prompts=len(prompts),
        n_halvings=n_halvings,
        together=sum(c.claimed for c in together),
        lagged=sum(c.claimed for c in lagged),
        significant_together=sum(c.significant for c in together),
        significant_lagged=sum(c.significant for c in lagged),
        n_together=sum(c.q is not None for c in together),
        n_lagged=sum(c.q is not None for c in lagged),
    )
