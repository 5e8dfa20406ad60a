"""The innovations of several traits over the replies of a run, on the same tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from persona_core.analysis.lagged_correlation import lagged_fisher
from persona_core.analysis.permutation import MIN_GROUPS
from persona_core.analysis.prewhitening import MAX_ORDER, MIN_REPLIES, SPREAD_TOKENS, whiten
from persona_core.analysis.series import checked
from persona_core.errors import SettingError


@dataclass(frozen=True, eq=False)
class Innovations:
    """What each trait's own past does not predict, in the replies that are long enough.

    Attributes:
        replies: float64 `[n_traits, n_tokens]` each; NaN at the first tokens, which have too little past, and where
            there is no score.
        prompts: name of each reply's prompt, `[n_replies]`.
        orders: trait -> order of its autoregression.
        left_out: replies that are too short.
    """

    replies: tuple[np.ndarray, ...]
    prompts: np.ndarray
    orders: Mapping[str, int]
    left_out: int

    @classmethod
    def of(
        cls,
        traits: Sequence[str],
        series: Sequence[np.ndarray],
        groups: Sequence[str] | None = None,
        max_order: int = MAX_ORDER,
        what: str = "reply",
    ) -> Innovations:
        """Whiten each trait.

        Args:
            traits: names, in the order of the series' first axis.
            series: scores of each reply's tokens, unsmoothed, `[n_traits, n_reply_tokens]` each; NaN without a score.
            groups: prompt of each reply; None: every reply is its own.
            max_order: maximum order of the whitening.
            what: the replies are, for messages.

        Raises:
            SettingError: fewer than `MIN_REPLIES` replies that are long enough or `MIN_GROUPS` prompts, smoothed
                series, or wrong shapes.
        """
        plural = what.replace("reply", "replies")
        if groups is not None and len(groups) != len(series):
            raise SettingError(f"{len(groups)} groups for {len(series)} {plural}; give one for each.")
        for i, reply in enumerate(series):
            if np.ndim(reply) != 2 or len(reply) != len(traits):
                raise SettingError(
                    f"{what.capitalize()} {i} has shape {np.shape(reply)}; expected [{len(traits)}, n_reply_tokens]."
                )
            for trait, row in zip(traits, reply, strict=True):
                checked(row, f"{trait} in {what} {i}", gaps=True)
        needed = max_order + SPREAD_TOKENS
        kept = [i for i, reply in enumerate(series) if np.isfinite(reply).sum(1).min() >= needed]
        if len(kept) < MIN_REPLIES:
            raise SettingError(
                f"{len(kept)} of {len(series)} {plural} have {needed} tokens or more; at least {MIN_REPLIES} are "
                "needed."
            )
        prompts = np.array([f"{what} {i}" if groups is None else str(groups[i]) for i in kept])
        if len(set(prompts)) < MIN_GROUPS:
            raise SettingError(
                f"The {plural} answer {len(set(prompts))} prompts; at least {MIN_GROUPS} are needed: replies to one "
                "prompt are not independent."
            )
        found = tuple(np.full(series[i].shape, np.nan) for i in kept)
        orders = {}
        for k, trait in enumerate(traits):
            try:
                whitened = whiten([series[i][k] for i in kept], max_order)
            except SettingError as error:
                raise SettingError(f"{trait}: {error}") from error
            orders[trait] = whitened.order
            for reply, innovations in zip(found, whitened.innovations, strict=True):
                reply[k, whitened.order :] = innovations
        return cls(found, prompts, orders, len(series) - len(kept))

    @property
    def n_prompts(self) -> int:
        return len(np.unique(self.prompts))

    def select(self, mask: np.ndarray) -> Innovations:
        """Some of the replies, bool `[n_replies]`."""
        own = np.flatnonzero(mask)
        return replace(self, replies=tuple(self.replies[i] for i in own), prompts=self.prompts[own])

    def fisher(self, pairs: Sequence[tuple[int, int, int]]) -> tuple[np.ndarray, np.ndarray]:
        """Fisher's z of pairs (source, target, lag), and its weight, each `[n_replies, n_pairs]`."""
        by_lag = {lag: lagged_fisher(self.replies, lag) for lag in dict.fromkeys(lag for *_, lag in pairs)}
        z, weight = (np.stack([by_lag[lag][k][:, a, b] for a, b, lag in pairs], axis=1) for k in (0, 1))
        return z, weight
