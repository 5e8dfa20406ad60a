"""Alarms during generation: the decode loop passes each new token's scores to the detector of each trait.

An alarm at reply token a depends on the state after reading a, when the logits for token a+1 are already computed. So
an intervention with `when="alarm"` acts on the states from token a+1 on, and the first choice that it can change is
that of a+2. Nothing before the alarm is affected, so reading a trace of such a run afterwards gives the identical
alarm.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from persona_core.analysis.detectors import Detectors
from persona_core.errors import NotCalibrated, SettingError
from persona_core.inference.steering import Intervention
from persona_core.traces.sinks import is_sink
from persona_core.traces.specific import LogOdds, specific_scores

LATENCY = 2
"""Tokens from the alarm to the first token whose choice can change."""


@dataclass(frozen=True)
class Alarm:
    """A trait's alarm in one reply.

    Attributes:
        row: index of the reply in its batch, from 0.
        trait: which trait.
        token: position in the reply, from 0; a thought and its marks count.
        in_thought: whether it fell in the thought before the answer. Thought and answer are watched apart, by detectors
            that know how neutral answers read.
    """

    row: int
    trait: str
    token: int
    in_thought: bool = False


OnAlarm = Callable[[Alarm], None]


class AlarmWatch:
    """The detectors of one generation run, for each of its rows.

    Args:
        detectors: of the vectors that the run reads with.
        traits: in the order of the readings' trait axis.
        blocks: in the order of the readings' block axis.
        null: mean and standard deviation of the raw projection, float32 `[n_traits, n_blocks, 2]`.
        max_norm: ‖h‖ above which a token is a sink token, `[n_blocks]`.
        n_rows: replies of the run.
        interventions: those with `when="alarm"` start to act in a row after that row's alarm.
        on_alarm: called at each alarm, in the generating thread.
        log_odds: of the vectors, for detectors of specific scores; None where they have none.

    Raises:
        SettingError: a detector needs a block that is not read.
        NotCalibrated: a detector needs specific scores, and the vectors have none.
    """

    def __init__(
        self,
        detectors: Detectors,
        traits: Sequence[str],
        blocks: Sequence[int],
        null: np.ndarray,
        *,
        max_norm: np.ndarray,
        n_rows: int,
        interventions: Sequence[Intervention] = (),
        on_alarm: OnAlarm | None = None,
        log_odds: LogOdds | None = None,
    ) -> None:
        watched = [t for t in detectors.traits if t in traits]
        unread = [t for t in watched if detectors.best_block[t] not in blocks]
        if unread:
            raise SettingError(
                f"The detector of {unread[0]!r} needs block {detectors.best_block[unread[0]]}; the monitor reads "
                f"{list(blocks)}. Create it with blocks='best' or 'all'."
            )
        if log_odds is None and (specific := [t for t in watched if detectors.of(t).kind == "specific"]):
            raise NotCalibrated(
                f"The detector of {specific[0]!r} uses specific scores, which these vectors lack; calibrate it with "
                "kind='z', or load the vectors that it was calibrated with."
            )
        self._kinds = {t: detectors.of(t).kind for t in watched}
        self._log_odds = log_odds
        self._max_norm = max_norm
        self._axes = {t: (traits.index(t), blocks.index(detectors.best_block[t])) for t in watched}
        self._null = null
        # One for the answer, one for the thought before it.
        self._online = [[{t: detectors.of(t).online() for t in watched} for _ in range(2)] for _ in range(n_rows)]
        self._gates: Mapping[str, list[tuple[torch.Tensor, int]]] = {
            t: [(i.starts, i.steer.start or 0) for i in interventions if _gated(i, t) and i.starts is not None]
            for t in watched
        }
        self._on_alarm = on_alarm

    def push(self, row: int, token: int, raw: np.ndarray, norms: np.ndarray, in_thought: bool = False) -> None:
        """Take the readings of one reply's newest token: float32 `[n_blocks, n_traits]`, and norms `[n_blocks]`."""
        scores: dict[tuple[str, int], np.ndarray] = {}  # (kind, block) -> [n_traits], computed once
        sinks = is_sink(norms[:, None], self._max_norm)[:, 0]  # [n_blocks]
        for trait, online in self._online[row][in_thought].items():
            i, j = self._axes[trait]
            key = self._kinds[trait], j
            if key not in scores:
                scores[key] = self._scores(*key, raw[j], bool(sinks[j]))
            if online.push(float(scores[key][i])):
                for starts, earliest in self._gates[trait]:
                    starts[row] = max(token + LATENCY, earliest)
                if self._on_alarm is not None:
                    self._on_alarm(Alarm(row, trait, token, in_thought))

    def _scores(self, kind: str, j: int, raw: np.ndarray, sink: bool) -> np.ndarray:
        """All traits' scores of one token at the j-th block, as in `Trace.reply_scores`, float32 `[n_traits]`."""
        if sink:
            return np.full(len(raw), np.nan, np.float32)
        if kind == "specific" and self._log_odds is not None:
            return specific_scores(raw[:, None], self._log_odds.at(j))[:, 0]
        mean, std = self._null[:, j].T
        return (raw - mean) / std


def _gated(intervention: Intervention, trait: str) -> bool:
    return intervention.steer.when == "alarm" and intervention.steer.trait == trait
