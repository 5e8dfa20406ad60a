"""Trial shuffles of replies or groups of replies, and the level at which edges are claimed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from persona_core.analysis.prewhitening import MIN_REPLIES
from persona_core.errors import SettingError

LEVEL = 0.05
"""False discovery rate of the claimed edges."""

MIN_GROUPS = 10
"""Groups (prompts) that a shuffle or an interval over groups needs."""


def group_indices(groups: Sequence[str] | None, n_replies: int) -> np.ndarray:
    """The index of each reply's group, `[n_replies]`; without groups, every reply is its own.

    Raises:
        SettingError: too few replies or groups, or not one group for each reply.
    """
    if n_replies < MIN_REPLIES:
        raise SettingError(
            f"{n_replies} replies; at least {MIN_REPLIES} are needed to distinguish a coupling from chance."
        )
    if groups is None:
        return np.arange(n_replies)
    if len(groups) != n_replies:
        raise SettingError(f"{len(groups)} groups for {n_replies} replies; give one for each.")
    names, indices = np.unique(np.asarray(groups, str), return_inverse=True)
    if len(names) < MIN_GROUPS:
        raise SettingError(
            f"{len(names)} groups; at least {MIN_GROUPS} are needed: the replies of a group are not independent."
        )
    return indices


def trial_shuffles(group: np.ndarray, n_shuffles: int, rng: np.random.Generator) -> np.ndarray:
    """For each shuffle and reply, the reply it is paired with, `[n_shuffles, n_replies]`.

    Whole groups are permuted. The k-th reply of one is paired with the k-th of the other, cyclically where that one has
    fewer.

    Raises:
        SettingError: too few shuffles for a p below 0.05.
    """
    if n_shuffles < 99:
        raise SettingError(f"n_shuffles={n_shuffles!r}; at least 99 are needed, 999 to correct for many pairs.")
    members = [np.flatnonzero(group == g) for g in np.unique(group)]
    sizes = np.array([len(m) for m in members])
    table = np.stack([np.resize(m, sizes.max()) for m in members])  # [n_groups, largest], cyclic
    row, within = np.empty(len(group), int), np.empty(len(group), int)
    for g, m in enumerate(members):
        row[m], within[m] = g, np.arange(len(m))
    orders = rng.permuted(np.tile(np.arange(len(members)), (n_shuffles, 1)), axis=1)  # [n_shuffles, n_groups]
    return table[orders[:, row], within]
