"""The Live tab's form: what the next reply will be requested with, or what made the reply that is shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from persona_core.app.settings import AppSettings
from persona_core.report.home import Home
from persona_core.report.results_folder import BASELINE, CONTAMINATED
from persona_core.traces.trace import Trace


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
    temperature: float = 0.7
    seed: int = 0

    @classmethod
    def of_reply(
        cls, config: str, trace: Trace, messages: Sequence[Mapping[str, str]], settings: AppSettings
    ) -> ReplyForm:
        """What made a published reply; its length is cut to what this app allows.

        Args:
            config: of the results.
            trace: the reply.
            messages: the conversation before it. Of a longer one only the last message has a field.
        """
        said = trace.provenance.sampling or {}
        last = {m["role"]: m["content"] for m in messages}
        return cls(
            CONTAMINATED if config == CONTAMINATED else BASELINE,
            last.get("user", ""),
            last.get("system", ""),
            min(int(said.get("max_new_tokens", 160)), settings.max_new_tokens),
            float(said.get("temperature", cls.temperature)),
            int(trace.provenance.seed or 0),
        )

    @classmethod
    def first(cls, home: Home, settings: AppSettings) -> ReplyForm:
        """What the page opens on: the reply that is shown, else an example. The first click must give a reply."""
        if (shown := home.first_reply) is not None:
            return cls.of_reply(shown.config, shown.trace, shown.messages, settings)
        length = min(160, settings.max_new_tokens)
        if not home.examples:
            return cls(BASELINE, "", "", length)
        return cls(BASELINE, home.examples[0].user, home.examples[0].system, length)

    @property
    def fields(self) -> tuple[object, ...]:
        return self.side, self.prompt, self.system, self.length, self.temperature, self.seed
