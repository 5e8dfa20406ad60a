"""What every test against shuffled trials shares: groups of replies, shuffles of them, and many tests at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from persona_core.analysis.prewhitening import MIN_REPLIES
from persona_core.errors import SettingError

LEVEL = 0.05
"""Share of false edges among those that are claimed."""

MIN_GROUPS = 10
"""Groups (prompts) that a shuffle or an interval over groups needs."""


def group_indices(groups: Sequence[str] | None, n_replies: int) -> np.ndarray:
    """The number of each reply's group, `[n_replies]`; every reply its own where none are given.

    Raises:
        SettingError: too few replies or groups, or not one group for each reply.
    """
    if n_replies < MIN_REPLIES:
        raise SettingError(f"{n_replies} replies; at least {MIN_REPLIES} are needed to tell a coupling from chance.")
    if groups is None:
        return np.arange(n_replies)
    if len(groups) != n_replies:
        raise SettingError(f"{len(groups)} groups for {n_replies} replies; give one for each.")
    names, places = np.unique(np.asarray(groups, str), return_inverse=True)
    if len(names) < MIN_GROUPS:
        raise SettingError(
            f"{len(names)} groups; at least {MIN_GROUPS} are needed: the replies of a group do not count apart."
        )
    return places


def trial_shuffles(places: np.ndarray, n_shuffles: int, rng: np.random.Generator) -> np.ndarray:
    """For each shuffle and reply, the reply that it is put beside, `[n_shuffles, n_replies]`.

    Groups change places with groups. The k-th reply of one goes with the k-th of the other, counted round where that
    one has fewer.

    Raises:
        SettingError: too few shuffles for a p below 0.05.
    """
    if n_shuffles < 99:
        raise SettingError(f"n_shuffles={n_shuffles!r}; at least 99 are needed, and 999 to correct for many pairs.")
    members = [np.flatnonzero(places == g) for g in np.unique(places)]
    sizes = np.array([len(m) for m in members])
    table = np.stack([np.resize(m, sizes.max()) for m in members])  # [n_groups, largest]: round and round
    group, within = np.empty(len(places), int), np.empty(len(places), int)
    for g, m in enumerate(members):
        group[m], within[m] = g, np.arange(len(m))
    orders = rng.permuted(np.tile(np.arange(len(members)), (n_shuffles, 1)), axis=1)  # [n_shuffles, n_groups]
    return table[orders[:, group], within]
