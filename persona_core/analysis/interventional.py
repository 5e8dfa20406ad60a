"""HOW, by intervention: what happens to trait B when the model is steered along trait A.

Two arms write replies to the same prompts with the same seeds, one steered along A's vector, one along a random
direction of the same norm at the same block. The effect on B is vector arm minus random arm, paired by prompt. Only
such an edge permits causal language, and only about steering: it says what steering A does to the replies.

Scores alone confirm nothing. A text that shows A, or is merely odd, raises the z of every trait: steering three traits
of the demo model moved the mean z of another in 21 of 21 pairs. Less the mean of the others (`relative_to_others`, for
vectors without specific scores) 17 of 21 remained, because the vectors overlap. What the text visibly showed rose in
three pairs: the three that the grammar links. So the tables of scores are kept, but only visible effects become edges.
That takes many replies: the linked trait showed in 6 to 11 % of them, which 500 replies per arm detected and 200 did
not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np

from persona_core.analysis.permutation import LEVEL
from persona_core.analysis.statistics import Estimate, false_discovery, over_clusters, sign_flip_p
from persona_core.errors import SettingError

Measure = Literal["score", "specific", "relative", "shown"]
MEASURES: tuple[Measure, ...] = ("score", "specific", "relative", "shown")

MIN_PROMPTS = 10
"""Prompts that both arms answered: the signs of 10 can be flipped in 1,024 ways, of 5 in 32."""

N_FLIPS = 9_999


@dataclass(frozen=True)
class PairEffect:
    """What steering `source` does to `target`.

    Attributes:
        source, target: steered and measured trait; equal in the check that steering moves its own trait.
        estimate: vector arm minus random arm, mean over prompts; None where too few prompts have both.
        vector, random: means of the two arms over the same prompts.
        p: two-sided, by flipping the signs of whole prompts.
        q: the same after Benjamini-Hochberg over all pairs of different traits; None for a trait on itself.
    """

    source: str
    target: str
    estimate: Estimate | None
    vector: float | None
    random: float | None
    p: float | None
    q: float | None

    @property
    def significant(self) -> bool:
        """Whether the two arms differ more than by chance; never for a trait on itself."""
        return self.q is not None and self.q <= LEVEL

    def to_dict(self) -> dict[str, Any]:
        estimate = self.estimate and self.estimate.to_dict()
        return {**asdict(self), "estimate": estimate, "significant": self.significant}


@dataclass(frozen=True)
class InterventionalEffects:
    """The effects of steering on all pairs of traits.

    Attributes:
        measure: "score": mean z over the reply tokens, read without steering and without sink tokens; "specific": the
            same of the specific score; "relative": of z after `relative_to_others`; "shown": share of replies that
            visibly show the trait.
        effects: every steered trait on every trait, itself included.
        n_flips: sign flips behind each p.
    """

    measure: Measure
    effects: tuple[PairEffect, ...]
    n_flips: int

    @property
    def edges(self) -> tuple[PairEffect, ...]:
        """The edges: significant effects on what the text shows. Scores alone give none."""
        return tuple(e for e in self.effects if e.significant) if self.measure == "shown" else ()

    def pair(self, source: str, target: str) -> PairEffect:
        """One of the pairs.

        Raises:
            SettingError: not measured.
        """
        for effect in self.effects:
            if (effect.source, effect.target) == (source, target):
                return effect
        raise SettingError(f"Steering {source!r} was not measured on {target!r}.")

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> InterventionalEffects:
        """The inverse of `to_dict`."""
        effects = []
        for one in record["effects"]:
            fields = {k: one[k] for k in ("source", "target", "vector", "random", "p", "q")}
            effects.append(PairEffect(estimate=one["estimate"] and Estimate(**one["estimate"]), **fields))
        return cls(record["measure"], tuple(effects), int(record["n_flips"]))

    def to_dict(self) -> dict[str, Any]:
        return {
            "measure": self.measure,
            "n_flips": self.n_flips,
            "effects": [effect.to_dict() for effect in self.effects],
        }


def relative_to_others(scores: np.ndarray, source: int) -> np.ndarray:
    """Each trait's mean z minus the mean of the others, the steered one excluded, `[..., n_traits]`.

    Args:
        scores: `[..., n_traits]`.
        source: index of the steered trait, which is compared with all others.

    Raises:
        SettingError: fewer than three traits.

    >>> relative_to_others(np.array([6.0, 2.0, 1.0, 3.0]), source=0).tolist()
    [4.0, 0.0, -1.5, 1.5]
    """
    n = scores.shape[-1]
    if n < 3:
        raise SettingError(f"{n} traits; at least three are needed, so that the target has one to be compared with.")
    kept = np.array([k for k in range(n) if k != source])
    total = scores[..., kept].sum(-1, keepdims=True)
    found = scores - (total - scores) / (n - 2)  # [..., n_traits]
    found[..., source] = scores[..., source] - total[..., 0] / (n - 1)
    return found


def interventional_effects(
    traits: Sequence[str],
    vector: Mapping[str, np.ndarray],
    random: Mapping[str, np.ndarray],
    measure: Measure,
    n_flips: int = N_FLIPS,
    n_resamples: int = 1000,
    seed: int = 0,
) -> InterventionalEffects:
    """What steering each trait does to all of them.

    Args:
        traits: names of the measured traits.
        vector, random: steered trait -> `[n_prompts, n_seeds, n_traits]`, the measure of each reply of the arm; NaN for
            an empty reply. A seed counts where both arms have it.
        measure: what was measured.
        n_flips: sign flips.
        n_resamples: bootstrap samples over prompts.
        seed: of both.

    Raises:
        SettingError: arms that do not match, or fewer than `MIN_PROMPTS` prompts.

    >>> rng = np.random.default_rng(0)
    >>> noise = rng.normal(size=(20, 2, 2))
    >>> found = interventional_effects(
    ...     ["evil", "refusal"], {"evil": noise + [3.0, 0.0]}, {"evil": noise[::-1]}, "score"
    ... )
    >>> found.pair("evil", "evil").estimate.value > 2, found.pair("evil", "refusal").significant
    (True, False)
    """
    if measure not in MEASURES:
        raise SettingError(f"measure={measure!r}; expected one of {', '.join(MEASURES)}.")
    if set(vector) != set(random):
        raise SettingError(
            f"Vector arms: {', '.join(vector)}; random arms: {', '.join(random)}. Each steered trait needs both."
        )
    if n_flips < 99:
        raise SettingError(f"n_flips={n_flips!r}; at least 99 are needed, 999 to correct for many pairs.")
    effects = []
    for source in vector:
        arms = np.asarray(vector[source], float), np.asarray(random[source], float)
        if arms[0].shape != arms[1].shape or arms[0].ndim != 3 or arms[0].shape[2] != len(traits):
            raise SettingError(
                f"The arms of {source!r} have shapes {arms[0].shape} and {arms[1].shape}; expected "
                f"[n_prompts, n_seeds, {len(traits)}] for both."
            )
        if len(arms[0]) < MIN_PROMPTS:
            raise SettingError(f"{len(arms[0])} prompts; at least {MIN_PROMPTS} are needed.")
        if np.isinf(arms[0]).any() or np.isinf(arms[1]).any():
            raise SettingError(f"An arm of {source!r} contains infinity; use NaN for a reply without a measurement.")
        for k, target in enumerate(traits):
            effects.append(_effect(source, target, arms[0][..., k], arms[1][..., k], n_flips, n_resamples, seed))
    others = [e for e in effects if e.source != e.target]
    qs = dict(zip(map(id, others), false_discovery([e.p for e in others]), strict=True))
    return InterventionalEffects(measure, tuple(replace(e, q=qs.get(id(e))) for e in effects), n_flips)


def _effect(
    source: str, target: str, vector: np.ndarray, random: np.ndarray, n_flips: int, n_resamples: int, seed: int
) -> PairEffect:
    known = np.isfinite(vector) & np.isfinite(random)  # [n_prompts, n_seeds]
    rows = known.any(1)
    if rows.sum() < MIN_PROMPTS:
        return PairEffect(source, target, None, None, None, None, None)
    counts = known[rows].sum(1)
    with_vector = np.where(known, vector, 0.0)[rows].sum(1) / counts  # [n_prompts]
    with_random = np.where(known, random, 0.0)[rows].sum(1) / counts  # [n_prompts]
    differences = with_vector - with_random
    estimate = over_clusters(lambda w: float(w @ differences / w.sum()), np.arange(len(differences)), n_resamples, seed)
    p = sign_flip_p(differences, n_flips, seed)
    return PairEffect(source, target, estimate, float(with_vector.mean()), float(with_random.mean()), p, None)
