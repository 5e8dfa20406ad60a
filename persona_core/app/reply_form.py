"""The Live tab's form: what the next reply will be requested with, or what made the reply that is shown."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from persona_core.app.requests import MAX_TEMPERATURE
from persona_core.app.settings import AppSettings
from persona_core.report.home import Home
from persona_core.report.results_folder import BASELINE
from persona_core.traces.trace import Trace
from persona_core.utils.checks import is_integer, is_number

LENGTH, TEMPERATURE = 160, 0.7
"""Of a reply, where nothing says otherwise."""


@dataclass(frozen=True)
class ReplyForm:
    """Values of the form's fields.

    Attributes:
        side: which model.
        prompt, system: messages; "" for none.
        length: maximum, tokens.
        temperature, seed: of the sampling.
    """

    side: str
    prompt: str
    system: str
    length: int
    temperature: float = TEMPERATURE
    seed: int = 0

    @classmethod
    def of_reply(
        cls,
        config: str,
        trace: Trace,
        messages: Sequence[Mapping[str, str]],
        settings: AppSettings,
        sides: Collection[str],
    ) -> ReplyForm:
        """What made a published reply, as far as the fields can hold it: the row may come from elsewhere.

        Args:
            config: of the results.
            trace: the reply.
            messages: the conversation before it. Of a longer one only the last message has a field.
            settings: limits.
            sides: the models that this app has.
        """
        sampling, last = trace.provenance.sampling or {}, {m["role"]: m["content"] for m in messages}
        drawn = sampling.get("max_new_tokens"), sampling.get("temperature"), trace.provenance.seed
        side = config if config in sides else BASELINE
        return cls.fitting(side, (last.get("user", ""), last.get("system", ""), *drawn), settings)

    @classmethod
    def fitting(cls, side: str, values: tuple[Any, ...], settings: AppSettings) -> ReplyForm:
        """Unchecked settings, as far as the fields can hold them.

        Args:
            side: one of the form's.
            values: prompt and system prompt, which are text; maximum length, temperature and seed.
            settings: limits.
        """
        prompt, system, length, temperature, seed = values
        return cls(
            side,
            prompt,
            system,
            min(length if is_integer(length, minimum=1) else LENGTH, settings.max_new_tokens),
            min(max(float(temperature), 0.0), MAX_TEMPERATURE) if is_number(temperature) else TEMPERATURE,
            seed if is_integer(seed, minimum=0) and seed < 2**53 else 0,  # a number that the browser has exactly
        )

    @classmethod
    def first(cls, home: Home, settings: AppSettings, sides: Collection[str]) -> ReplyForm:
        """What the page opens on: the reply that is shown, else an example. The first click must give a reply."""
        if (shown := home.first_reply) is not None:
            return cls.of_reply(shown.config, shown.trace, shown.messages, settings, sides)
        length = min(LENGTH, settings.max_new_tokens)
        if not home.examples:
            return cls(BASELINE, "", "", length)
        return cls(BASELINE, home.examples[0].user, home.examples[0].system, length)

    @property
    def fields(self) -> tuple[object, ...]:
        return self.side, self.prompt, self.system, self.length, self.temperature, self.seed
