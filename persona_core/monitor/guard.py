"""A guard: which traits are watched while a reply is written, how often it may be wrong, and what it does at an alarm.

The rate is its budget: the share of neutral replies that it may touch, counted by whole replies and over all traits
watched together. The thresholds come from the detectors' neutral replies (`Detectors.select`); a rate that they are
too few for is refused. For replies that their null card does not cover no rate is known, and the trace says so.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from persona_core.errors import PersonaWarning, SettingError
from persona_core.inference.steering import Intervention, Steer
from persona_core.models.blocks import Blocks
from persona_core.monitor.alarms import Alarm
from persona_core.monitor.steering import prepare
from persona_core.utils.checks import check_integer, is_number
from persona_core.vectors.card_steering import suggested_amount

if TYPE_CHECKING:
    from persona_core.analysis.detectors import Detectors
    from persona_core.vectors.vectors import PersonaVectors

Action = Literal["cap", "rewind", "stop"]
Decision: TypeAlias = Callable[[Alarm], Action | None]
ACTIONS: tuple[str, ...] = get_args(Action)
CALLBACK = "callback"
MAX_REWINDS = 8
FAR = 5.0
"""Times the threshold of the detectors' own rate: neutral replies beyond do show the trait."""


@dataclass(frozen=True)
class Guard:
    """What to do when a trait sets in while a reply is written.

    At an alarm of one of its traits, with `action`

    - "cap": the trait is held from there on, as by `Steer.cap(trait, ..., unit="sd", when="alarm")`;
    - "rewind": the last `back` tokens, the alarm's among them, are discarded and written again with the trait held, as
      by a `Branch` with the cap. At a later alarm of a held trait the reply goes back further. Once `max_rewinds` are
      used up, traits are held from their alarm on;
    - "stop": the reply ends with the alarm's token, and `trace.finish` is "guard";
    - a function: called with the `Alarm` in the generating thread; it returns one of the three, or None to go on.

    A held trait's projection on its steering direction is capped at the trait's best block for the rest of the reply.
    Tokens that a `Branch` keeps are watched and never discarded. What the guard did is in the trace's
    `provenance.guard`, discarded tokens included, and in `Step.events`.

    Attributes:
        traits: that are watched, one name or several.
        rate: share of neutral replies that the guard may touch, over all its traits.
        action: at an alarm.
        back: tokens that a rewind discards, at least.
        max_rewinds: of one reply, up to 8.
        amounts: trait -> cap in standard deviations along the steering direction; others take what the card of the
            vectors suggests, which leaves 99 of 100 neutral tokens as they are.

    Raises:
        SettingError: a value out of range.

    >>> Guard("sycophancy", rate=0.02, action="rewind", back=12).traits
    ('sycophancy',)
    """

    traits: Sequence[str] | str
    rate: float = 0.01
    action: Action | Decision = "cap"
    back: int = 16
    max_rewinds: int = 2
    amounts: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        traits = (self.traits,) if isinstance(self.traits, str) else tuple(self.traits)
        if not traits or not all(isinstance(trait, str) for trait in traits):
            raise SettingError(f"Guard traits={self.traits!r}; name at least one trait to watch.")
        object.__setattr__(self, "traits", tuple(dict.fromkeys(traits)))
        if not is_number(self.rate):
            raise SettingError(f"Guard rate={self.rate!r}; expected a share of neutral replies, such as 0.01.")
        if not callable(self.action):
            _check_action(self.action)
        check_integer("Guard back", self.back)
        check_integer("Guard max_rewinds", self.max_rewinds)
        if self.max_rewinds > MAX_REWINDS:
            raise SettingError(f"Guard max_rewinds={self.max_rewinds}; expected 1 to {MAX_REWINDS}.")
        for trait, amount in self.amounts.items():
            if trait not in self.traits or not is_number(amount):
                raise SettingError(f"Guard amounts={{{trait!r}: {amount!r}}}; expected a number for a watched trait.")

    def decide(self, alarm: Alarm) -> Action | None:
        """What to do at an alarm.

        Raises:
            SettingError: a function's answer that is no action.
        """
        if not callable(self.action):
            return self.action
        answer = self.action(alarm)
        if answer is not None:
            _check_action(answer)
        return answer

    def thresholds(self, detectors: Detectors) -> Detectors:
        """The detectors of the watched traits at the guard's rate.

        Warns where more neutral replies than the rate allows show a watched trait strongly: the threshold then lies
        above them, and the guard sees next to nothing.

        Raises:
            UnknownTrait: a trait without a detector.
            SettingError: too few neutral prompts for the rate; the message names the smallest one possible.
        """
        chosen, usual = detectors.select(self.traits, self.rate), detectors.select(self.traits)
        limit = FAR * usual.of(self.traits[0]).threshold
        if chosen.of(self.traits[0]).threshold > limit and chosen.peaks is not None:
            over = {t: chosen.peaks.replies_above(limit, [t]) for t in self.traits}
            worst = max(over, key=lambda t: over[t])
            warnings.warn(
                f"At rate={self.rate:g} over {', '.join(self.traits)} this guard sees next to nothing: "
                f"{chosen.peaks.replies_above(limit)} of {chosen.peaks.n_prompts} neutral replies show a trait so "
                f"strongly that the threshold lies more than {FAR:g} times higher than usual; {over[worst]} of them "
                f"{worst}. Watch fewer traits, or allow a higher rate.",
                PersonaWarning,
                stacklevel=4,
            )
        return chosen

    def prepared_caps(self, vectors: PersonaVectors, blocks: Blocks) -> dict[str, Intervention]:
        """Trait -> the cap that holds it; none where the guard only stops.

        Raises:
            UnknownTrait: the vectors lack it.
            SettingError: no amount is given for it, and the card suggests none.
        """
        traits = () if self.action == "stop" else self.traits
        return {trait: prepare(self._cap(vectors, trait), vectors, blocks)[0] for trait in traits}

    def _cap(self, vectors: PersonaVectors, trait: str) -> Steer:
        vectors.tensor(trait)
        amount = self.amounts.get(trait)
        if amount is None:
            amount = suggested_amount(vectors, trait, "cap")
        if amount is None:
            raise SettingError(
                f"The vectors suggest no cap for {trait!r}; give one in standard deviations: "
                f"Guard(..., amounts={{{trait!r}: 2.0}})."
            )
        return Steer.cap(trait, vectors.best_block[trait], float(amount), unit="sd")

    def to_dict(self) -> dict[str, Any]:
        """A plain record for a trace's provenance."""
        record = {**vars(self), "traits": list(self.traits), "amounts": dict(self.amounts)}
        return record | {"action": CALLBACK if callable(self.action) else self.action}


@dataclass(frozen=True)
class GuardEvent:
    """What a guard did at one alarm.

    Attributes:
        trait: that alarmed.
        token: of the alarm, counted from the reply's first; after a rewind, in the text that was discarded.
        action: "cap", "rewind", "stop", or "none": the trait was held already, or a function returned None.
        in_thought: whether it fell in the thought before the answer, where no rate is known.
        start: first token of the reply that could change: from there on the trait is held; None if it is not.
        discarded, discarded_ids: display pieces and ids of the tokens that a rewind discarded: those from `start` on.
    """

    trait: str
    token: int
    action: Action | Literal["none"]
    in_thought: bool = False
    start: int | None = None
    discarded: tuple[str, ...] = ()
    discarded_ids: tuple[int, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """A plain record for a trace's provenance."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in vars(self).items()}


def held_after(events: Sequence[GuardEvent]) -> dict[str, int]:
    """Trait -> the first reply token from which it is held.

    >>> held_after([GuardEvent("a", 30, "cap", start=32), GuardEvent("b", 40, "rewind", start=25)])
    {'a': 25, 'b': 25}
    """
    held: dict[str, int] = {}
    for event in events:
        if event.start is None:
            continue
        held[event.trait] = min(event.start, held.get(event.trait, event.start))
        if event.action == "rewind":  # what was held within the discarded tokens stays held from their first
            held = {trait: min(start, event.start) for trait, start in held.items()}
    return held


def _check_action(action: object) -> None:
    if action not in ACTIONS:
        names = ", ".join(map(repr, ACTIONS))
        raise SettingError(
            f"Guard action={action!r}; expected {names}, or a function that returns one of them or None."
        )
