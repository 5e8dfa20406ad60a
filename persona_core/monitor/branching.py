"""Go on from inside a reply: the first tokens of a trace's reply are kept by their ids, the rest is written anew."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from persona_core.errors import PromptError, SettingError
from persona_core.inference.start import Start
from persona_core.models.chat import Messages, Rendered
from persona_core.monitor.transcripts import transcript_of
from persona_core.traces.trace import Trace
from persona_core.utils.checks import is_integer

if TYPE_CHECKING:
    from persona_core.models.loading import LanguageModel


@dataclass(frozen=True)
class Branch:
    """The first `at` tokens of a trace's reply, to be gone on from. Stands where a prompt stands.

    Prompt and kept tokens are the trace's ids, whoever wrote them; nothing is decoded and tokenised again. Random
    numbers are counted from the reply's first token: with the trace's seed and settings and nothing changed, the branch
    is the original. `max_new_tokens` is the longest reply in all, kept tokens included.

    `Steer(start=...)` counts from the reply's first token too. With `start=at` the first choice that can change is that
    of the branch's first new token; an earlier start also changes the states that the kept tokens are read with.

    Attributes:
        trace: whose reply is left.
        at: tokens of it that are kept, from 0 to all that the assistant said.

    Raises:
        SettingError: `at` is no such number.

    >>> from persona_core import PersonaMonitor, PersonaVectors, Steer, load_model
    >>> vectors = PersonaVectors.from_pretrained("artifacts/persona-vectors-persona-tiny")
    >>> monitor = PersonaMonitor(load_model("artifacts/persona-tiny"), vectors)
    >>> trace = monitor.generate("Should I quit my job?", seed=0)
    >>> branch = monitor.generate(Branch(trace, at=20), steer=Steer("sycophancy", block=3, strength=6.0, start=20))
    >>> branch.token_ids[: branch.n_prompt + 20] == trace.token_ids[: trace.n_prompt + 20]
    True
    """

    trace: Trace
    at: int

    def __post_init__(self) -> None:
        most = len(self.trace.reply_positions)
        if not is_integer(self.at, minimum=0) or self.at > most:
            raise SettingError(f"Branch at={self.at!r}; expected a whole number of the reply's {most} tokens, from 0.")
        kept = self.trace.roles[self.trace.n_prompt : self.trace.n_prompt + self.at]
        if any(role != "assistant" for role in kept):
            raise SettingError(f"Branch at={self.at}: the reply has ended before that token. Branch earlier.")

    def written(self) -> dict[str, Any]:
        """What is known of the kept tokens, for the record."""
        known = self.trace.provenance
        return {
            "branched_at": int(self.at),
            "writer": known.writer,
            "sampling": None if known.sampling is None else dict(known.sampling),
            "seed": known.seed,
            "steering": [dict(s) for s in known.steering],
        }


def start_of(lm: LanguageModel, prompt: str | Messages | Branch, max_new_tokens: int) -> Start:
    """The start of a reply to a prompt, or of a branch.

    Raises:
        PromptError: as the chat's rendering, or a token that the model has no embedding for.
        VectorsMismatch: a trace whose ids the model's tokenizer spells otherwise.
        SettingError: a branch that leaves no new token to write.
    """
    if not isinstance(prompt, Branch):
        rendered = lm.chat.render(prompt)
        lm.check_ids(rendered.token_ids)
        return Start(rendered)
    if prompt.at >= max_new_tokens:
        raise SettingError(
            f"max_new_tokens={max_new_tokens} is the longest reply in all, and the branch keeps {prompt.at} tokens of "
            "it; raise it."
        )
    text = transcript_of(lm, prompt.trace)
    kept = text.ids[text.n_prompt : text.n_prompt + prompt.at]
    if any(i in lm.eos_ids for i in kept):
        raise PromptError(f"Branch at={prompt.at}: the kept tokens hold the end of the turn. Branch earlier.")
    return Start(Rendered(text.ids[: text.n_prompt], text.roles[: text.n_prompt]), kept)
