"""The false-alarm rate on neutral replies that had no part in the calibration: to new prompts, or new kinds of them."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import numpy as np

from persona_core.analysis.null_peaks import prompt_weights
from persona_core.analysis.onset_calibration import calibrate_onsets
from persona_core.analysis.series import checked_replies, shared_kind
from persona_core.analysis.statistics import bounded
from persona_core.traces.trace import Kind, Trace
from persona_core.utils.numbering import numbered


def held_out_alarms(
    neutral: Sequence[Trace],
    groups: Sequence[Hashable],
    prompts: Sequence[Hashable],
    traits: Iterable[str] | None = None,
    rate: float = 0.05,
    seed: int = 0,
    kind: Kind | None = None,
    n_folds: int = 5,
) -> np.ndarray:
    """Whether each neutral reply raises an alarm of any trait with detectors that were calibrated without its group.

    What a stated rate is worth: with the prompts as groups on new prompts, with the prompts' categories on new
    kinds of prompts.

    Args:
        neutral, traits, rate, seed, kind: as in `calibrate_detectors`.
        groups: of each reply; a group is never split.
        prompts: which prompt each reply answers.
        n_folds: parts of the groups, left out in turn.

    Returns:
        bool `[n_replies]`; alarms after the supported length, for which no rate is stated, are left out.

    Raises:
        SettingError: as in `calibrate_detectors`, for what is left without a fold.
    """
    names = list(dict.fromkeys(groups))
    fold = dict(zip(names, np.random.default_rng(seed).permutation(len(names)) % n_folds, strict=True))
    part = np.array([fold[group] for group in groups])
    watched = tuple(neutral[0].traits if traits is None else traits)
    kind = kind or shared_kind(neutral)
    scores = {t: checked_replies(neutral, t, kind) for t in watched}
    found = np.zeros(len(neutral), bool)
    for k in np.unique(part):
        kept = np.flatnonzero(part != k)
        by_trait, _ = calibrate_onsets(
            {t: [own[i] for i in kept.tolist()] for t, own in scores.items()}, rate, seed=seed,
            prompts=[prompts[i] for i in kept.tolist()], kind=kind, timed=False,
        )  # fmt: skip
        for i in np.flatnonzero(part == k):
            found[i] = any((d.statistic(scores[t][i])[: d.supported] > d.threshold).any() for t, d in by_trait.items())
    return found


def held_out_rates(
    neutral: Sequence[Trace],
    traits: Sequence[str],
    rate: float,
    seed: int,
    prompts: Sequence[Hashable],
    kinds: Sequence[str] | None,
    kind: Kind,
) -> dict[str, dict[str, Any]]:
    """ "prompts" and "kinds" -> the rate measured on those left out, with its interval over them."""
    found = {}
    for name, groups in (("prompts", prompts), ("kinds", kinds)):
        if groups is None or len(set(groups)) < 2:
            continue
        alarmed = held_out_alarms(neutral, groups, prompts, traits, rate, seed, kind)
        weights = prompt_weights(numbered(prompts))
        share = bounded(
            lambda w, hits=alarmed * weights, of=weights: float(w @ hits / (w @ of)),  # type: ignore[misc]
            numbered(groups),
        )
        if share is not None:
            found[name] = share.to_dict()
    return found
