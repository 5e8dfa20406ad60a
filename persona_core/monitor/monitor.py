"""The monitor: read a model's traits token by token, while it writes or in a text that is given."""

from __future__ import annotations

import secrets
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
import torch
import transformers
from tqdm import tqdm

from persona_core.analysis.detectors import Detectors
from persona_core.errors import PromptError, SettingError
from persona_core.inference.decode import room
from persona_core.inference.generation import Run
from persona_core.inference.prefill import read_rows
from persona_core.inference.sampling import Sampling
from persona_core.inference.start import Start
from persona_core.inference.steering import Intervention, Steer
from persona_core.models.blocks import resolve_blocks
from persona_core.models.chat import Messages
from persona_core.models.loading import LanguageModel
from persona_core.monitor.alarms import OnAlarm, Watch
from persona_core.monitor.branching import Branch, start_of
from persona_core.monitor.steering import prepare
from persona_core.monitor.transcripts import Transcript, as_transcript
from persona_core.traces.provenance import Provenance
from persona_core.traces.trace import Trace
from persona_core.utils.checks import check_integer
from persona_core.utils.version import __version__
from persona_core.vectors.vectors import PersonaVectors

T = TypeVar("T")
Steers = Steer | Sequence[Steer] | None
Prompt = str | Messages | Branch


class PersonaMonitor:
    """Reads every token of a conversation with persona vectors.

    Args:
        lm: the model, from `load_model` or `wrap_model`.
        vectors: vectors of the same width and depth.
        blocks: "best" reads the traits' best blocks and costs least, "all" every block, or a list of block numbers.
        detectors: onset detectors of these vectors, for alarms while a reply is written.

    Raises:
        VectorsMismatch: the vectors do not fit the model.
        UnknownBlock: a block that is not there.
        SettingError: detectors of other vectors.

    >>> from persona_core import load_model
    >>> vectors = PersonaVectors.from_pretrained("artifacts/persona-vectors-persona-tiny")
    >>> monitor = PersonaMonitor(load_model("artifacts/persona-tiny"), vectors)
    >>> trace = monitor.generate("Should I quit my job?", seed=0)
    >>> trace.scores("deception").shape == (trace.n_tokens,)
    True
    """

    def __init__(
        self,
        lm: LanguageModel,
        vectors: PersonaVectors,
        blocks: str | Sequence[int] = "best",
        detectors: Detectors | None = None,
    ) -> None:
        vectors.check_fits(lm)
        if detectors is not None and detectors.vectors != vectors.fingerprint:
            raise SettingError("The detectors were calibrated with other vectors; use the ones that lie beside them.")
        self.detectors = detectors
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
        prompt: Prompt,
        *,
        max_new_tokens: int = 128,
        temperature: float = 0.7,
        top_p: float = 1.0,
        top_k: int = 0,
        repetition_penalty: float = 1.0,
        seed: int | None = None,
        steer: Steers = None,
        on_alarm: OnAlarm | None = None,
    ) -> Trace:
        """Write a reply and read every token of prompt and reply.

        Args:
            prompt: a user message, a conversation of {"role", "content"} messages, or a `Branch` of an earlier trace.
            max_new_tokens: longest reply; shortened where the context ends.
            temperature, top_p, top_k, repetition_penalty: as in transformers; temperature 0 is greedy.
            seed: of this reply's randomness; None takes that of the branch's trace, or draws one; the trace records it.
            steer: interventions that act while it writes.
            on_alarm: called when a trait's onset detector goes off, at once; needs a monitor with detectors.

        Raises:
            PromptError, ContextOverflow, SettingError, UnknownTrait, UnknownBlock.
        """
        sampling = Sampling(max_new_tokens, temperature, top_p, top_k, repetition_penalty)
        run = self._start([prompt], sampling, seed, steer, on_alarm)
        run.finish()
        return self._of_run(run, 0)

    def stream(
        self,
        prompt: Prompt,
        *,
        max_new_tokens: int = 128,
        temperature: float = 0.7,
        top_p: float = 1.0,
        top_k: int = 0,
        repetition_penalty: float = 1.0,
        seed: int | None = None,
        steer: Steers = None,
        on_alarm: OnAlarm | None = None,
    ) -> Generator[Step, None, None]:
        """As `generate`, one `Step` for each token of the reply, as soon as it has been read.

        The settings are checked at once, before the first step is asked for. Closing the iterator stops the run; the
        last step's `trace()` holds what was written until then.
        """
        sampling = Sampling(max_new_tokens, temperature, top_p, top_k, repetition_penalty)
        return _steps(self, self._start([prompt], sampling, seed, steer, on_alarm))

    def generate_batch(
        self,
        prompts: Sequence[Prompt],
        *,
        batch_size: int = 16,
        max_new_tokens: int = 128,
        temperature: float = 0.7,
        top_p: float = 1.0,
        top_k: int = 0,
        repetition_penalty: float = 1.0,
        seed: int | Sequence[int] | None = None,
        steer: Steers = None,
        on_alarm: OnAlarm | None = None,
        progress: bool = False,
    ) -> list[Trace]:
        """Many replies, `batch_size` at a time: several times faster than one call of `generate` for each.

        Reply i uses `seed + i`, or `seed[i]`, whatever replies it is written beside. The other arguments are those of
        `generate`.

        Args:
            prompts: any number.
            batch_size: replies written at once. When an eighth of the places has come free, the next prompts take
                them. More is faster until the device is busy, and needs more memory for keys and values. Where that
                runs out, replies that have not ended begin anew, half as many at once, with a warning in the log; not
                so under `on_alarm` or `when="alarm"`, where the error is raised.
            max_new_tokens: longest reply. On a GPU room for it is taken from the start.
            progress: show a bar.

        Raises:
            PromptError, ContextOverflow, SettingError, UnknownTrait, UnknownBlock, NumericalError.
        """
        sampling = Sampling(max_new_tokens, temperature, top_p, top_k, repetition_penalty)
        check_integer("batch_size", batch_size)
        prompts = _several(prompts)
        run = self._start(prompts, sampling, seed, steer, on_alarm, batch_size)
        with tqdm(total=len(prompts), desc="generating", unit="reply", disable=not progress) as bar:
            run.finish(bar.update)
        return [self._of_run(run, row) for row in range(len(prompts))]

    def write(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        seeds: Sequence[int],
        interventions: Sequence[Intervention],
    ) -> list[Trace]:
        """One batch of replies under interventions that are ready: a start for each row, a direction of one's own.

        For experiments that `Steer` cannot put into words; `generate_batch` is for the rest.
        """
        if any(i.steer.when == "alarm" for i in interventions):
            raise SettingError("when='alarm' needs a run with detectors: generate, stream or generate_batch.")
        run = Run(self.lm, self._directions, self._render(prompts, sampling), sampling, seeds, interventions)
        run.finish()
        return [self._of_run(run, row) for row in range(len(prompts))]

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
        conversations: Sequence[str | Messages | Trace | Transcript],
        *,
        batch_tokens: int | None = None,
        writer: str | None = None,
        steer: Steers = None,
        progress: bool = False,
    ) -> list[Trace]:
        """Read many texts, batched by length; the order of the results is that of the input.

        Args:
            conversations: as in `read`; a `Transcript` is read by its ids.
            batch_tokens: tokens in one forward, padding included; a longer text is a forward of its own. None: 1,024
                on a CPU, where more is no faster, 16,384 on a GPU. Halved where memory runs out.
            writer, steer: as in `read`.
            progress: show a bar.

        Raises:
            PromptError, ContextOverflow, VectorsMismatch, and NumericalError where a state is NaN or infinite.
        """
        changes = prepare(steer, self.vectors, self.lm.blocks)
        if any(c.steer.when == "alarm" for c in changes):
            raise SettingError(
                "when='alarm' acts while a reply is written; a given text is read in one go. Find the alarm with the "
                "detectors and steer from there with start=..."
            )
        conversations = _several(conversations)
        texts = []
        for index, conversation in enumerate(conversations):
            with _naming(index, len(conversations)):
                texts.append(as_transcript(self.lm, conversation, writer))
        readings = read_rows(
            self.lm,
            [t.ids for t in texts],
            [t.n_prompt for t in texts],
            self._directions,
            changes,
            batch_tokens,
            progress,
        )
        known = self._provenance(changes)
        return [
            self._trace(text, reading, "read", replace(known, writer=text.writer, written=text.written))
            for text, reading in zip(texts, readings, strict=True)
        ]

    def _start(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        seed: int | Sequence[int] | None,
        steer: Steers,
        on_alarm: OnAlarm | None = None,
        width: int | None = None,
    ) -> Run:
        starts = self._render(prompts, sampling)
        changes = prepare(steer, self.vectors, self.lm.blocks, len(prompts))
        watch = self._watch(len(prompts), changes, on_alarm)
        if watch is not None:
            self._show_kept(watch, starts, changes)
        seeds = _seeds(seed, len(prompts))
        if seed is None:  # a branch goes on with the seed of its trace
            known = [p.trace.provenance.seed if isinstance(p, Branch) else None for p in prompts]
            seeds = [drawn if own is None else own for drawn, own in zip(seeds, known, strict=True)]
        origins = [p.written() if isinstance(p, Branch) else None for p in prompts]
        return Run(self.lm, self._directions, starts, sampling, seeds, changes, (), watch, origins, width)

    def _show_kept(self, watch: Watch, starts: Sequence[Start], changes: Sequence[Intervention]) -> None:
        """Let the detectors see the kept tokens of branches, before anything is written: alarms count from the reply's
        first token, and one that lies in the kept part opens its gate at once."""
        rows = [row for row, start in enumerate(starts) if start.kept]
        fixed = [c for c in changes if c.steer.when != "alarm"]
        texts = [starts[row] for row in rows]
        n_prompts = [len(t.prompt.token_ids) for t in texts]
        readings = read_rows(self.lm, [t.ids for t in texts], n_prompts, self._directions, fixed) if rows else []
        for row, n_prompt, (raw, _) in zip(rows, n_prompts, readings, strict=True):
            for token, at in enumerate(range(n_prompt, raw.shape[-1])):
                watch.push(row, token, raw[:, :, at].T)

    def _watch(self, n_rows: int, changes: Sequence[Intervention], on_alarm: OnAlarm | None) -> Watch | None:
        """What listens for alarms, where anything hangs on them."""
        gated = [c.steer.trait for c in changes if c.steer.when == "alarm"]
        if on_alarm is None and not gated:
            return None
        if self.detectors is None:
            raise SettingError(
                "Alarms need detectors: PersonaMonitor(..., detectors=Detectors.from_pretrained(...)), or make them "
                "from neutral replies with calibrate_detectors."
            )
        for trait in gated:
            self.detectors.of(trait)
        return Watch(self.detectors, self.vectors.traits, self.blocks, self._null, n_rows, changes, on_alarm)

    def _render(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Start]:
        if not prompts:
            raise PromptError("No prompt given.")
        starts = []
        for index, prompt in enumerate(prompts):
            with _naming(index, len(prompts)):
                start = start_of(self.lm, prompt, sampling.max_new_tokens)
                room(self.lm, len(start.ids), sampling.max_new_tokens)
                starts.append(start)
        return starts

    def _of_run(self, run: Run, row: int, n: int | None = None) -> Trace:
        """The trace of one row of a run after `n` reply tokens; None means all that there are."""
        complete = n is None or n == len(run.replies[row])
        finish = (run.finished[row] if complete else None) or "stopped"
        text = Transcript(run.token_ids(row, n), run.pieces(row, n), run.roles(row, n), len(run.prompts[row].token_ids))
        provenance = replace(
            self._provenance(run.interventions),
            writer=self.writer_name,
            sampling=run.sampling.to_dict(),
            seed=run.seeds[row],
            written=run.origins[row],
        )
        return self._trace(text, run.readings(row, n), finish, provenance)

    @property
    def writer_name(self) -> str:
        """The model's name as a writer: its adapter is part of it."""
        return self.lm.writer_name

    def _provenance(self, interventions: Sequence[Intervention]) -> Provenance:
        """What is known of the reader; the writer's part is added by who knows it."""
        known = self.lm.record
        return Provenance(
            reader=known["name"],
            reader_revision=known["revision"],
            reader_adapter=known["adapter"],
            reader_adapter_revision=known["adapter_revision"],
            dtype=", ".join(known[k] for k in ("dtype", "quantization") if k in known),
            vectors=self.vectors.fingerprint,
            template=known["template_fingerprint"],
            steering=tuple(i.steer.to_dict() for i in interventions),
            versions=versions(),
        )

    def _trace(
        self, text: Transcript, readings: tuple[np.ndarray, np.ndarray], finish: str, provenance: Provenance
    ) -> Trace:
        special = set(self.lm.tokenizer.all_special_ids)
        return Trace(
            token_ids=text.ids,
            tokens=text.pieces,
            roles=text.roles,
            n_prompt=text.n_prompt,
            traits=self.vectors.traits,
            blocks=self.blocks,
            raw=readings[0],
            norms=readings[1],
            best_block=dict(self.vectors.best_block),
            null_mean=self._null[..., 0],
            null_std=self._null[..., 1],
            special=tuple(i in special for i in text.ids),
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

    @property
    def raw(self) -> np.ndarray:
        """Projections at this token, float32 `[n_traits, n_blocks]`; copied from the device when asked for."""
        return self._run.raw_at(0, self.index)

    def trace(self) -> Trace:
        """The conversation as read up to this token."""
        return self._monitor._of_run(self._run, 0, self.index + 1)


@contextmanager
def _naming(index: int, count: int) -> Iterator[None]:
    """Say which prompt of several an error is about."""
    try:
        yield
    except PromptError as error:
        raise type(error)(f"Prompt {index}: {error}" if count > 1 else str(error)) from error


def _steps(monitor: PersonaMonitor, run: Run) -> Generator[Step, None, None]:
    with closing(run.forwards()) as forwards:
        next(forwards)  # the prefill
        for index, forward in enumerate(forwards, run.kept[0]):
            token_id = run.replies[0][-1]
            yield Step(index, token_id, run.newest_piece(0), forward.finished[0], monitor, run)


def _seed(seed: int | None) -> int:
    """The first seed of a run; drawn where None is given."""
    if seed is None:
        return secrets.randbits(31)
    check_integer("seed", seed, 0, otherwise="None to draw one")
    return int(seed)


def _seeds(seed: int | Sequence[int] | None, n: int) -> list[int]:
    """A seed for each of n replies."""
    if isinstance(seed, Sequence) and not isinstance(seed, str):
        if len(seed) != n:
            raise SettingError(f"{len(seed)} seeds for {n} prompts; give one for each.")
        return [_seed(one) for one in seed]
    first = _seed(seed)
    return [first + i for i in range(n)]


def _several(prompts: Iterable[T]) -> list[T]:
    if isinstance(prompts, (str, bytes, Mapping)) or not isinstance(prompts, Iterable):
        raise PromptError(f"Expected a list of prompts or texts; got one {type(prompts).__name__}. Put it into a list.")
    several = list(prompts)
    if any(isinstance(one, Mapping) for one in several):
        raise PromptError("Expected a list of conversations; got one as a list of messages. Put it into a list.")
    return several


def versions() -> dict[str, str]:
    """The libraries that a number depends on."""
    return {"persona_core": __version__, "torch": torch.__version__, "transformers": transformers.__version__}


def _null_array(vectors: PersonaVectors, blocks: Sequence[int]) -> np.ndarray:
    """Null mean and sd, float32 `[n_traits, n_blocks, 2]`; NaN without a null."""
    nothing = (np.nan, np.nan)
    rows = [[vectors.null[t].at(b) if t in vectors.null else nothing for b in blocks] for t in vectors.traits]
    return np.array(rows, np.float32)
