"""Branching: keep the first tokens of a trace's reply by their ids and regenerate the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from persona_core.errors import PromptError, SettingError
from persona_core.inference.prefix import ReplyPrefix
from persona_core.models.chat import Messages, Rendered
from persona_core.monitor.arguments import as_seeds
from persona_core.monitor.transcripts import transcript_of
from persona_core.traces.trace import Trace
from persona_core.utils.checks import is_integer

if TYPE_CHECKING:
    from persona_core.models.language_model import LanguageModel


@dataclass(frozen=True)
class Branch:
    """The first `at` tokens of a trace's reply, to continue from. Accepted wherever a prompt is.

    Prompt and kept tokens are the trace's ids, whoever wrote them; nothing is decoded and tokenised again. Random draws
    are counted from the reply's first token: with the trace's seed and settings, the branch is the original reply.
    `max_new_tokens` limits the whole reply, kept tokens included.

    `Steer(start=...)` counts from the reply's first token too. With `start=at` the first choice that can change is that
    of the branch's first new token; an earlier start also changes the states of the kept tokens.

    Attributes:
        trace: the trace to branch from.
        at: how many reply tokens to keep, a thought and its marks included: from 0 to all but the end of the turn.

    Raises:
        SettingError: `at` is out of range.

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
        reply = self.trace.roles[self.trace.n_prompt :]
        most = max((t + 1 for t, role in enumerate(reply) if role in ("assistant", "thinking")), default=0)
        if not is_integer(self.at, minimum=0) or self.at > most:
            raise SettingError(f"Branch at={self.at!r}; expected an integer from 0 to {most}, the tokens of the reply.")

    def origin(self) -> dict[str, Any]:
        """How the kept tokens were written, for the provenance."""
        known = self.trace.provenance
        return {
            "branched_at": int(self.at),
            "writer": known.writer,
            "sampling": None if known.sampling is None else dict(known.sampling),
            "seed": known.seed,
            "steering": [dict(s) for s in known.steering],
        }


def seeds_of(prompts: Sequence[object], seed: int | Sequence[int] | None) -> list[int]:
    """A seed for each prompt; with None a branch continues with the seed of its trace, others draw one."""
    seeds = as_seeds(seed, len(prompts))
    if seed is None:
        known = [p.trace.provenance.seed if isinstance(p, Branch) else None for p in prompts]
        seeds = [drawn if kept is None else kept for drawn, kept in zip(seeds, known, strict=True)]
    return seeds


def origins_of(prompts: Sequence[object]) -> list[dict[str, Any] | None]:
    """How the kept tokens of each prompt were written; None where it is no branch."""
    return [p.origin() if isinstance(p, Branch) else None for p in prompts]


def prefix_of(lm: LanguageModel, prompt: str | Messages | Branch, max_new_tokens: int) -> ReplyPrefix:
    """What a reply to a prompt, or the rest of a branch, continues from.

    Raises:
        PromptError: the chat template refuses the prompt, or the model has no embedding for a token.
        VectorsMismatch: a trace whose ids decode to another text with the model's tokenizer.
        SettingError: a branch that leaves no room for a new token.
    """
    if not isinstance(prompt, Branch):
        rendered = lm.chat.render(prompt)
        lm.check_ids(rendered.token_ids)
        return ReplyPrefix(rendered)
    text = transcript_of(lm, prompt.trace)
    kept = text.ids[text.n_prompt : text.n_prompt + prompt.at]
    roles = text.roles[text.n_prompt : text.n_prompt + prompt.at]
    said = roles.count("assistant")
    if said >= max_new_tokens:
        raise SettingError(
            f"max_new_tokens={max_new_tokens} limits the whole reply, and the branch keeps {said} tokens of it; "
            "raise it."
        )
    if any(i in lm.eos_ids for i in kept):
        raise PromptError(f"Branch at={prompt.at}: the kept tokens include the end of the turn; branch earlier.")
    return ReplyPrefix(Rendered(text.ids[: text.n_prompt], text.roles[: text.n_prompt]), kept, roles)
