"""Which traits are watched in a reply, at which false-alarm rate, and what is said when a detector fires."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from persona_core.analysis.detectors import PER_TRAIT, Detectors
from persona_core.monitor.alarms import Alarm
from persona_core.traces.statements import with_not_neutral
from persona_core.traces.trace import Trace

KEPT = 32
"""Selections of traits whose thresholds are kept."""


@dataclass(frozen=True, eq=False)
class Watch:
    """The detectors of some traits, at one rate over all of them.

    Attributes:
        detectors: None: nothing is watched.
        rate: the stated rate, and over what it holds.
    """

    detectors: Detectors | None = None
    rate: Mapping[str, Any] | None = None

    def onset_event(self, alarm: Alarm, trace: Trace) -> dict[str, Any]:
        """What is known of an onset when its detector fires.

        Args:
            alarm: of the newest token.
            trace: up to that token.
        """
        if self.detectors is None:
            raise RuntimeError("An alarm without a detector.")
        onset = self.detectors.find(trace, alarm.trait, alarm.in_thought).to_dict()
        known = ("value", "low", "high", "per", "over", "says")
        # Outside of the replies that the rate was measured on there is none.
        rate = None if self.rate is None or onset["no_rate"] else {k: self.rate[k] for k in known if k in self.rate}
        return {"type": "onset", "trait": alarm.trait, "token": alarm.token, **onset, "rate": rate}

    def of_reply(self, trace: Trace) -> dict[str, Any]:
        """The onsets of a complete reply, and why the stated rate need not hold for it."""
        if self.detectors is None:
            return {"onsets": {}, "caveats": []}
        onsets = {trait: onset.to_dict() for trait, onset in self.detectors.find_all(trace).items()}
        return {"onsets": with_not_neutral(trace, onsets), "caveats": list(self.detectors.caveats(trace))}


@dataclass
class Watches:
    """A `Watch` for each selection of traits that was requested lately.

    Args:
        detectors: of all traits; None: nothing is watched.
    """

    detectors: Detectors | None
    _kept: OrderedDict[tuple[str, ...], Watch] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def of(self, traits: tuple[str, ...]) -> Watch:
        """Watch these traits; those without a detector are left out."""
        if self.detectors is None:
            return Watch()
        watched = tuple(t for t in self.detectors.traits if t in traits)
        with self._lock:
            if watched not in self._kept:
                chosen = self.detectors.select(watched) if watched else None
                self._kept[watched] = Watch() if chosen is None else Watch(chosen, stated_rate(chosen))
                while len(self._kept) > KEPT:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(watched)
            return self._kept[watched]


def stated_rate(detectors: Detectors) -> dict[str, Any]:
    """The false-alarm rate, and the replies for which it holds."""
    rate, card = detectors.rate(), detectors.card
    over = list(detectors.traits)
    if rate is None or card is None:
        return {"value": None, "over": over, "says": PER_TRAIT}
    of_kinds = f" of {len(card.kinds)} kinds" if card.kinds else ""
    says = (
        f"{rate.value:.1%} [{rate.low:.1%}, {rate.high:.1%}] of neutral replies raise an alarm of any of these traits "
        f"by token {card.supported}; measured on {rate.n_prompts} prompts{of_kinds}, and stated for such prompts, "
        "sampled in the same way, only"
    )
    return {
        "value": rate.value,
        "low": rate.low,
        "high": rate.high,
        "per": "reply",
        "over": over,
        "n_prompts": rate.n_prompts,
        "kinds": dict(card.kinds),
        "supported": card.supported,
        "sampling": None if card.sampling is None else dict(card.sampling),
        "system_prompt": card.system_prompt,
        "says": says,
    }
