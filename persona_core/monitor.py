"""The monitor: read a model's traits token by token, while it writes or in a text that is given."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import transformers
from tqdm import tqdm

from persona_core import __version__
from persona_core.blocks import resolve_blocks
from persona_core.chat import Messages, Rendered, as_messages
from persona_core.decode import Sampling, room
from persona_core.detokenize import split_text
from persona_core.errors import ContextOverflow, PromptError, VectorsMismatch
from persona_core.models import LanguageModel
from persona_core.reading import read_rows
from persona_core.run import Run
from persona_core.steering import Steer, prepare
from persona_core.trace import Provenance, Trace
from persona_core.vectors import PersonaVectors

Steers = Steer | Sequence[Steer] | None


class PersonaMonitor:
    """Reads every token of a conversation with persona vectors.

    Args:
        lm: the model, from `load_model` or `wrap_model`.
        vectors: vectors of the same width and depth.
        blocks: "best" reads the traits' best blocks, "all" every block, or a list of block numbers.

    Raises:
        VectorsMismatch: the vectors do not fit the model.
        UnknownBlock: a block that is not there.

    >>> from persona_core import load_model
    >>> vectors = PersonaVectors.from_pretrained("artifacts/persona-vectors-persona-tiny")
    >>> monitor = PersonaMonitor(load_model("artifacts/persona-tiny"), vectors)
    >>> trace = monitor.generate("Should I quit my job?", seed=0)
    >>> trace.scores("deception").shape == (trace.n_tokens,)
    True
    """

    def __init__(self, lm: LanguageModel, vectors: PersonaVectors, blocks: str | Sequence[int] = "best") -> None:
        vectors.check_fits(lm)
        self.lm = lm
        self.vectors = vectors
        self.blocks = resolve_blocks(blocks, dict(vectors.best_block), vectors.blocks)
        self._directions = {
            b: torch.stack([vectors.direction(t, b) for t in vectors.traits], dim=1)  # [d_model, n_traits]
            for b in self.blocks
        }
        self._null = _null_array(vectors, self.blocks)  # [n_traits, n_blocks, 2]

    def generate(
        self,
        prompt: str | Messages,
        *,
        max_new_tokens: int = 128,
        temperature: float = 0.7,
        top_p: float = 1.0,
        top_k: int = 0,
        repetition_penalty: float = 1.0,
        seed: int | None = None,
        steer: Steers = None,
    ) -> Trace:
        """Write a reply and read every token of prompt and reply.

        Args:
            prompt: a user message, or a conversation of {"role", "content"} messages.
            max_new_tokens: longest reply; shortened where the context ends.
            temperature, top_p, top_k, repetition_penalty: as in transformers; temperature 0 is greedy.
            seed: of this reply's randomness; None draws one and records it in the trace.
            steer: interventions that act while it writes.

        Raises:
            PromptError, ContextOverflow, SettingError, UnknownTrait, UnknownBlock.
        """
        sampling = Sampling(max_new_tokens, temperature, top_p, top_k, repetition_penalty)
        run = self._start([prompt], sampling, seed, steer)
        for _ in run.forwards():
            pass
        return self._of_run(run, 0, steer)

    def stream(
        self,
        prompt: str | Messages,
        *,
        max_new_tokens: int = 128,
        temperature: float = 0.7,
        top_p: float = 1.0,
        top_k: int = 0,
        repetition_penalty: float = 1.0,
        seed: int | None = None,
        steer: Steers = None,
    ) -> Iterator[Step]:
        """As `generate`, one `Step` for each token of the reply, as soon as it has been read.

        The settings are checked at once, before the first step is asked for. Closing the iterator stops the run; the
        last step's `trace()` holds what was written until then.
        """
        sampling = Sampling(max_new_tokens, temperature, top_p, top_k, repetition_penalty)
        return _steps(self, self._start([prompt], sampling, seed, steer), steer)

    def generate_batch(
        self,
        prompts: Sequence[str | Messages],
        *,
        batch_size: int = 16,
        max_new_tokens: int = 128,
        temperature: float = 0.7,
        top_p: float = 1.0,
        top_k: int = 0,
        repetition_penalty: float = 1.0,
        seed: int | None = None,
        steer: Steers = None,
        progress: bool = False,
    ) -> list[Trace]:
        """Many replies, `batch_size` at a time. Reply i uses `seed + i`, whatever batch it lands in."""
        sampling = Sampling(max_new_tokens, temperature, top_p, top_k, repetition_penalty)
        first = secrets.randbits(31) if seed is None else seed
        self._render(prompts, sampling)  # a bad prompt is named before anything is generated
        traces: list[Trace] = []
        with tqdm(total=len(prompts), desc="generating", unit="reply", disable=not progress) as bar:
            for start in range(0, len(prompts), batch_size):
                run = self._start(prompts[start : start + batch_size], sampling, first + start, steer)
                for _ in run.forwards():
                    pass
                traces += [self._of_run(run, row, steer) for row in range(len(run.prompts))]
                bar.update(len(run.prompts))
        return traces

    def read(self, conversation: str | Messages | Trace, *, writer: str | None = None, steer: Steers = None) -> Trace:
        """Read a given text, whoever wrote it, without generating.

        Args:
            conversation: messages; if the last is the assistant's, it is the reply, and its text follows the rendered
                prompt as a generated reply would. A `Trace` is read again by its ids (its reader may be another
                model with the same tokenizer).
            writer: the model that wrote the reply, for the record.
            steer: interventions that act while reading.

        Raises:
            PromptError, ContextOverflow, VectorsMismatch (a trace whose ids this tokenizer reads as another text).
        """
        return self.read_batch([conversation], writer=writer, steer=steer)[0]

    def read_batch(
        self,
        conversations: Sequence[str | Messages | Trace],
        *,
        batch_size: int = 16,
        writer: str | None = None,
        steer: Steers = None,
        progress: bool = False,
    ) -> list[Trace]:
        """Read many texts, batched by length; the order of the results is that of the input."""
        changes = prepare(steer, self.vectors, self.lm.blocks)
        texts = []
        for index, conversation in enumerate(conversations):
            with _naming(index, len(conversations)):
                texts.append(self._as_text(conversation, writer))
        readings = read_rows(
            self.lm,
            [t.ids for t in texts],
            [t.n_prompt for t in texts],
            self._directions,
            changes,
            batch_size,
            progress,
        )
        traces = []
        for text, (raw, norms) in zip(texts, readings, strict=True):
            pieces = tuple(split_text(self.lm.tokenizer, text.ids))
            provenance = self._provenance(text.writer, None, None, steer)
            traces.append(self._trace(text.ids, pieces, text.roles, text.n_prompt, raw, norms, "read", provenance))
        return traces

    def _as_text(self, conversation: str | Messages | Trace, writer: str | None) -> _Text:
        if isinstance(conversation, Trace):
            ids = conversation.token_ids
            if max(ids) >= self.lm.vocabulary_size or "".join(split_text(self.lm.tokenizer, ids)) != conversation.text:
                raise VectorsMismatch(
                    f"The trace was written with another tokenizer than {self.lm.name!r}'s: its ids spell another text "
                    "here. Read it as messages instead."
                )
            known = writer or conversation.provenance.writer
            return self._checked(_Text(ids, conversation.roles, conversation.n_prompt, known))
        turns = as_messages(conversation)
        reply = turns.pop()["content"] if turns[-1]["role"] == "assistant" else ""
        if not turns:
            raise PromptError("The conversation holds a reply but no prompt; put a user message before it.")
        prompt = self.lm.chat.render(turns)
        ids = self.lm.chat.encode_reply(reply) if reply else ()
        text = _Text(prompt.token_ids + ids, prompt.roles + ("assistant",) * len(ids), len(prompt.token_ids), writer)
        return self._checked(text)

    def _checked(self, text: _Text) -> _Text:
        limit = self.lm.context_length
        if limit is not None and len(text.ids) > limit:
            raise ContextOverflow(
                f"The text has {len(text.ids)} tokens; the model's context holds {limit}. Shorten it."
            )
        return text

    def _start(self, prompts: Sequence[str | Messages], sampling: Sampling, seed: int | None, steer: Steers) -> Run:
        rendered = self._render(prompts, sampling)
        changes = prepare(steer, self.vectors, self.lm.blocks)
        first = secrets.randbits(31) if seed is None else seed
        seeds = [first + row for row in range(len(prompts))]
        return Run(self.lm, self._directions, rendered, sampling, seeds, changes)

    def _render(self, prompts: Sequence[str | Messages], sampling: Sampling) -> list[Rendered]:
        if not prompts:
            raise PromptError("No prompt given.")
        rendered = []
        for index, prompt in enumerate(prompts):
            with _naming(index, len(prompts)):
                rendered.append(self.lm.chat.render(prompt))
                room(self.lm, len(rendered[-1].token_ids), sampling.max_new_tokens)
        return rendered

    def _of_run(self, run: Run, row: int, steer: Steers, n: int | None = None) -> Trace:
        """The trace of one row of a run after `n` reply tokens; None means all that there are."""
        raw, norms = run.readings(row, n)
        complete = n is None or n == len(run.replies[row])
        finish = run.finished[row] if complete else None
        provenance = self._provenance(self.writer_name, run.sampling.to_dict(), run.seeds[row], steer)
        n_prompt = len(run.prompts[row].token_ids)
        ids, pieces, roles = run.token_ids(row, n), run.pieces(row, n), run.roles(row, n)
        return self._trace(ids, pieces, roles, n_prompt, raw, norms, finish or "stopped", provenance)

    @property
    def writer_name(self) -> str:
        """The model's name as a writer: its adapter is part of it."""
        return self.lm.name if self.lm.adapter is None else f"{self.lm.name} + {self.lm.adapter}"

    def _provenance(
        self, writer: str | None, sampling: dict[str, Any] | None, seed: int | None, steer: Steers
    ) -> Provenance:
        lm, steers = self.lm, [steer] if isinstance(steer, Steer) else list(steer or [])
        return Provenance(
            reader=lm.name,
            reader_revision=lm.revision,
            reader_adapter=lm.adapter,
            writer=writer,
            dtype=str(lm.dtype).removeprefix("torch."),
            vectors=self.vectors.fingerprint,
            template=lm.chat.fingerprint,
            sampling=sampling,
            seed=seed,
            steering=tuple(s.to_dict() for s in steers),
            versions=versions(),
        )

    def _trace(
        self,
        ids: tuple[int, ...],
        pieces: tuple[str, ...],
        roles: tuple[str, ...],
        n_prompt: int,
        raw: np.ndarray,
        norms: np.ndarray,
        finish: str,
        provenance: Provenance,
    ) -> Trace:
        special = set(self.lm.tokenizer.all_special_ids)
        return Trace(
            token_ids=ids,
            tokens=pieces,
            roles=roles,
            n_prompt=n_prompt,
            traits=self.vectors.traits,
            blocks=self.blocks,
            raw=raw,
            norms=norms,
            best_block=dict(self.vectors.best_block),
            null_mean=self._null[..., 0],
            null_std=self._null[..., 1],
            special=tuple(i in special for i in ids),
            finish=finish,
            provenance=provenance,
        )


@dataclass(frozen=True, eq=False)
class Step:
    """One token of a reply, read.

    Attributes:
        index: its place in the reply, from 0.
        token_id: its id.
        text: the text that it completes; "" in the middle of a character.
        finish: why the reply ended with this token; None while it goes on.
    """

    index: int
    token_id: int
    text: str
    finish: str | None
    _monitor: PersonaMonitor = field(repr=False)
    _run: Run = field(repr=False)
    _steer: Steers = field(repr=False)

    @property
    def raw(self) -> np.ndarray:
        """Projections at this token, float32 `[n_traits, n_blocks]`; copied from the device when asked for."""
        return self._run.raw_at(0, self.index)

    def trace(self) -> Trace:
        """The conversation as read up to this token."""
        return self._monitor._of_run(self._run, 0, self._steer, self.index + 1)


@contextmanager
def _naming(index: int, count: int) -> Iterator[None]:
    """Say which prompt of several an error is about."""
    try:
        yield
    except PromptError as error:
        raise type(error)(f"Prompt {index}: {error}" if count > 1 else str(error)) from error


def _steps(monitor: PersonaMonitor, run: Run, steer: Steers) -> Iterator[Step]:
    with closing(run.forwards()) as forwards:
        next(forwards)  # the prefill
        for index, forward in enumerate(forwards):
            token_id = run.replies[0][-1]
            yield Step(index, token_id, run.newest_piece(0), forward.finished[0], monitor, run, steer)


@dataclass(frozen=True)
class _Text:
    """A text to be read: ids, roles, and where the reply begins."""

    ids: tuple[int, ...]
    roles: tuple[str, ...]
    n_prompt: int
    writer: str | None


def versions() -> dict[str, str]:
    """The libraries that a number depends on."""
    return {"persona_core": __version__, "torch": torch.__version__, "transformers": transformers.__version__}


def _null_array(vectors: PersonaVectors, blocks: Sequence[int]) -> np.ndarray:
    """Null mean and sd, float32 `[n_traits, n_blocks, 2]`; NaN without a null."""
    nothing = (np.nan, np.nan)
    rows = [[vectors.null[t].at(b) if t in vectors.null else nothing for b in blocks] for t in vectors.traits]
    return np.array(rows, np.float32)
