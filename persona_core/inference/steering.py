"""Interventions on the residual stream: add along a trait, ablate it, or cap it.

Direction. States move along the steering direction, the mean difference. Scores are read along another one, the
whitened mean difference, and have a null of their own.

Units. A strength or threshold is in residual-stream units (`unit="residual"`): adding strength s moves the projection
on the steering direction by exactly s. With `unit="sd"` it is in standard deviations of that projection over neutral
tokens, for that trait and block: a cap at s holds it s standard deviations above neutral.

Sign. Positive pushes towards the trait, negative away from it.

Position. `start` names the first reply token whose *choice* the intervention can change, 0 being the first token of
the reply. It therefore acts on the state at reply token start-1 (the last prompt token for start = 0) and on all later
ones. `start=None` acts on every token, the prompt included. With `when="alarm"` it also waits until the trait's onset
detector fires in that reply (`monitor/alarms.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypedDict

import torch

from persona_core.errors import SettingError
from persona_core.utils.checks import check_integer, is_number

Unit = Literal["residual", "sd"]
When = Literal["start", "alarm"]
Mode = Literal["add", "ablate", "cap"]
MAX_SIZE = 1e30  # float32 ends at 3.4e38, and a change is multiplied once more
PAD_INDEX = -(2**31)  # reply index of a padding token: no intervention reaches it
NEVER = 2**62  # a start beyond any reply


@dataclass(frozen=True)
class Steer:
    """One intervention along one trait's direction at one block.

    >>> Steer("deception", block=12, strength=-4.0, start=10).mode
    'add'
    >>> Steer.cap("deception", block=12, threshold=2.0, unit="sd").amount
    2.0
    """

    trait: str
    block: int
    strength: float = 0.0
    start: int | None = 0
    unit: Unit = "residual"
    mode: Mode = "add"
    threshold: float | None = None
    when: When = "start"

    def __post_init__(self) -> None:
        if self.mode not in ("add", "ablate", "cap"):
            raise SettingError(f"Steer mode {self.mode!r}; expected 'add', 'ablate' or 'cap'.")
        if self.when not in ("start", "alarm"):
            raise SettingError(f"Steer when {self.when!r}; expected 'start' or 'alarm'.")
        if self.when == "alarm" and self.start is None:
            raise SettingError("Steer start=None with when='alarm': the prompt is read before any alarm; use start=0.")
        if self.unit not in ("residual", "sd"):
            raise SettingError(f"Steer unit {self.unit!r}; expected 'residual' or 'sd'.")
        given = self.threshold if self.mode == "cap" else self.strength
        if not is_number(given) or not abs(given) < MAX_SIZE:
            name = "threshold" if self.mode == "cap" else "strength"
            raise SettingError(f"Steer {name} {given!r}; expected a number below {MAX_SIZE:g} in size.")
        if self.start is not None:
            check_integer("Steer start", self.start, 0, otherwise="None for the prompt too")

    @classmethod
    def ablate(cls, trait: str, block: int, start: int | None = 0, when: When = "start") -> Steer:
        """Remove the component along the trait from the state: h - (h·v̂) v̂."""
        return cls(trait, block, start=start, mode="ablate", when=when)

    @classmethod
    def cap(
        cls,
        trait: str,
        block: int,
        threshold: float,
        start: int | None = 0,
        unit: Unit = "residual",
        when: When = "start",
    ) -> Steer:
        """Limit the projection to `threshold`; states already below are unchanged."""
        return cls(trait, block, start=start, unit=unit, mode="cap", threshold=threshold, when=when)

    @property
    def amount(self) -> float:
        """The strength of an addition, the threshold of a cap, 0 for an ablation."""
        return float(self.threshold or 0.0) if self.mode == "cap" else float(self.strength)

    def to_dict(self) -> dict[str, object]:
        """A plain record for a trace's provenance."""
        record = {"trait": self.trait, "block": self.block, "mode": self.mode, "unit": self.unit, "start": self.start}
        if self.when == "alarm":
            record["when"] = self.when
        return record if self.mode == "ablate" else {**record, "amount": self.amount}


class SteeringOptions(TypedDict, total=False):
    """How `PersonaVectors.steer` moves a trait; see there."""

    strength: float
    mode: Mode
    threshold: float
    block: int
    unit: Unit
    start: int | None


@dataclass(frozen=True)
class Intervention:
    """A `Steer` prepared for one model.

    Attributes:
        steer: the request.
        direction: float32 `[d_model]`, norm 1, on the block's device.
        amount: strength or threshold in residual-stream units.
        starts: long `[replies]`, a start for each reply in place of `steer.start`; None: `steer.start` for all.
            With `when="alarm"`, the alarms write a reply's start here when its detector fires.
        along: float32 `[d_model]`, norm 1; moves states along another direction than `direction`, by the same
            amount: the control of an intervention.
    """

    steer: Steer
    direction: torch.Tensor
    amount: float
    starts: torch.Tensor | None = None
    along: torch.Tensor | None = None

    def apply(self, states: torch.Tensor, reply_index: torch.Tensor, rows: torch.Tensor | None = None) -> torch.Tensor:
        """Return the changed states; the input is not modified.

        Args:
            states: output of the block, `[rows, tokens, d_model]`.
            reply_index: position of each token within its reply, `[rows, tokens]`; -1 is the last prompt token.
            rows: which of the run's replies each row is, `[rows]`; None: all, in order.
        """
        start, mode = self.steer.start, self.steer.mode
        first: int | torch.Tensor = PAD_INDEX + 1 if start is None else start - 1
        if self.starts is not None:
            starts = self.starts.to(reply_index.device)
            first = (starts if rows is None else starts[rows]).unsqueeze(-1) - 1  # [rows, 1]
        active = (reply_index >= first).to(states.device).unsqueeze(-1)  # [rows, tokens, 1]
        hidden = states.float()  # [rows, tokens, d_model]; bf16 would round the projection away
        if mode == "add":
            change = torch.full_like(hidden[..., :1], self.amount)  # [rows, tokens, 1]
        else:
            projection = (hidden @ self.direction).unsqueeze(-1)  # [rows, tokens, 1]
            change = -projection if mode == "ablate" else -(projection - self.amount).clamp_min(0.0)
        along = self.direction if self.along is None else self.along
        return torch.where(active, hidden + change * along, hidden).to(states.dtype)
