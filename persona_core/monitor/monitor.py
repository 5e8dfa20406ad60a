"""The monitor: read a model's traits token by token, while it writes or in a given text."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import Any, Unpack

import numpy as np
import torch
from tqdm import tqdm

from persona_core.analysis.detectors import Detectors
from persona_core.errors import PromptError, SettingError
from persona_core.inference.decode import new_token_limit
from persona_core.inference.engine import Readout, engine_of
from persona_core.inference.generation import GenerationRun, TokenObserver
from persona_core.inference.open_batch import OpenBatch
from persona_core.inference.prefix import ReplyPrefix
from persona_core.inference.sampling import Sampling, SamplingOptions
from persona_core.inference.steering import Intervention, Steer
from persona_core.inference.turn_batch import TurnBatch
from persona_core.models.blocks import resolve_blocks
from persona_core.models.chat import Messages
from persona_core.models.language_model import LanguageModel
from persona_core.monitor.alarms import Alarm, AlarmWatch, OnAlarm
from persona_core.monitor.arguments import as_list, naming
from persona_core.monitor.branching import Branch, origins_of, prefix_of, seeds_of
from persona_core.monitor.guard import Guard
from persona_core.monitor.guarding import GuardedRun
from persona_core.monitor.live_batch import LiveBatch, LiveReply
from persona_core.monitor.record import null_array, reader_provenance
from persona_core.monitor.steering import prepare
from persona_core.monitor.step import Step
from persona_core.monitor.transcripts import Transcript, as_transcript
from persona_core.traces.provenance import Provenance
from persona_core.traces.trace import Trace, list_blocks
from persona_core.utils.checks import check_integer
from persona_core.vectors.vectors import PersonaVectors

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
        UnknownBlock: a block that model or vectors lack.
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
        if not isinstance(lm, LanguageModel):
            raise SettingError(f"lm={lm!r}; expected a loaded model: load_model({lm!r}).")
        if not isinstance(vectors, PersonaVectors):
            raise SettingError(f"vectors={vectors!r}; expected PersonaVectors: PersonaVectors.from_pretrained(...).")
        vectors.check_fits(lm)
        if detectors is not None and detectors.vectors != vectors.fingerprint:
            raise SettingError(
                "The detectors were calibrated with other vectors; load the ones saved with these vectors."
            )
        self.detectors = detectors
        self.lm = lm
        self.vectors = vectors
        self.blocks = resolve_blocks(blocks, dict(vectors.best_block), vectors.blocks)
        self._directions = {
            b: torch.stack([vectors.reading_direction(t, b) for t in vectors.traits], dim=1)  # [d_model, n_traits]
            for b in self.blocks
        }
        self._null = null_array(vectors, self.blocks)  # [n_traits, n_blocks, 2]
        self._log_odds = vectors.odds_at(self.blocks)
        self._max_norm = vectors.limits_at(self.blocks)  # [n_blocks]

    def __repr__(self) -> str:
        traits = ", ".join(self.vectors.traits)
        return f"PersonaMonitor({self.lm.writer_name}; {traits}; {list_blocks(self.blocks)})"

    def generate(
        self,
        prompt: Prompt,
        *,
        seed: int | None = None,
        steer: Steers = None,
        on_alarm: OnAlarm | None = None,
        guard: Guard | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> Trace:
        """Write a reply and read every token of prompt and reply.

        Args:
            prompt: a user message, a conversation of {"role", "content"} messages, or a `Branch` of an earlier trace.
            seed: of this reply's random draws; kept in the trace. None takes that of the branch's trace, or draws one.
            steer: interventions that act during generation.
            on_alarm: called as soon as a trait's onset detector fires; needs a monitor with detectors.
            guard: watches traits at a rate of its own, and holds them, goes back or stops; needs detectors too.
            **sampling: `max_new_tokens=128`, `temperature=0.7` (0 is greedy), `top_p=1.0`, `top_k=0`,
                `repetition_penalty=1.0`; see `Sampling`.

        Raises:
            PromptError, ContextOverflow, SettingError, UnknownTrait, UnknownBlock.
        """
        if guard is not None:
            return self._guarded(guard, [prompt], Sampling(**sampling), seed, steer, on_alarm).finish()[0]
        run = self._start([prompt], Sampling(**sampling), seed, steer, on_alarm)
        run.finish()
        return self._of_run(run, 0)

    def stream(
        self,
        prompt: Prompt,
        *,
        seed: int | None = None,
        steer: Steers = None,
        on_alarm: OnAlarm | None = None,
        guard: Guard | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> Generator[Step, None, None]:
        """As `generate`, one `Step` for each token of the reply, as soon as it has been read.

        Arguments are checked at once, before the first step is requested. Closing the iterator stops the run; the
        last step's `trace()` holds everything up to that point. With a guard, `Step.events` says what it did; after a
        rewind the steps' index goes back.
        """
        if guard is not None:
            return self._guarded(guard, [prompt], Sampling(**sampling), seed, steer, on_alarm).stream()
        return self._steps(self._start([prompt], Sampling(**sampling), seed, steer, on_alarm))

    def _steps(self, run: GenerationRun) -> Generator[Step, None, None]:
        with closing(run.steps()) as steps:
            next(steps)  # the prefill
            for index, step in enumerate(steps, run.n_kept[0]):
                token_id = run.replies[0][-1]
                yield Step(index, token_id, run.newest_piece(0), step.finished[0], run, self._of_run)

    def generate_batch(
        self,
        prompts: Sequence[Prompt],
        *,
        batch_size: int = 16,
        seed: int | Sequence[int] | None = None,
        steer: Steers = None,
        on_alarm: OnAlarm | None = None,
        guard: Guard | None = None,
        progress: bool = False,
        **sampling: Unpack[SamplingOptions],
    ) -> list[Trace]:
        """Many replies, `batch_size` at a time: several times faster than one call of `generate` for each.

        Reply i uses `seed + i`, or `seed[i]`, and does not depend on the replies beside it. Arguments not listed here
        are those of `generate`.

        Args:
            prompts: any number.
            batch_size: replies written at once. Once an eighth of the slots are free, the next prompts take them.
                Larger is faster until the device is busy, and needs more memory for keys and values. If memory runs
                out, unfinished replies start over with half the batch size and a logged warning; with `on_alarm`,
                `when="alarm"` or a guard the error is raised instead.
            progress: show a progress bar.

        Raises:
            PromptError, ContextOverflow, SettingError, UnknownTrait, UnknownBlock, NumericalError.
        """
        check_integer("batch_size", batch_size)
        prompts = as_list(prompts)
        with tqdm(total=len(prompts), desc="generating", unit="reply", disable=not progress) as bar:
            if guard is not None:
                settings = Sampling(**sampling)
                return self._guarded(guard, prompts, settings, seed, steer, on_alarm, batch_size).finish(bar.update)
            run = self._start(prompts, Sampling(**sampling), seed, steer, on_alarm, batch_size)
            run.finish(bar.update)
        return [self._of_run(run, row) for row in range(len(prompts))]

    def live_batch(self, size: int = 16, max_reply: int = 4096) -> LiveBatch:
        """An empty batch that replies join and leave at any time, for a server; `live_reply` makes them.

        Args:
            size: replies written at once; further ones wait.
            max_reply: tokens of the longest reply, a thought included.
        """
        check_integer("size", size)
        check_integer("max_reply", max_reply)
        batch: OpenBatch | TurnBatch = TurnBatch(size)  # an engine that puts several runs together by itself
        if self.lm.engine is None:
            batch = OpenBatch(self.lm, self._directions, size, max_reply)
        return LiveBatch(batch, self._token_scores, self._of_run)

    def live_reply(
        self,
        prompt: Prompt,
        *,
        seed: int | None = None,
        steer: Steers = None,
        detectors: Detectors | None = None,
        n_top: int | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> LiveReply:
        """A reply for a `live_batch`; the same tokens and scores as `generate` gives.

        Args:
            prompt, seed, steer, **sampling: as in `generate`.
            detectors: that watch it, in place of the monitor's own; none of both: it is not watched.
            n_top: how many of the likeliest tokens to list beside each token's log probability; None: neither.

        Raises:
            As `generate`.
        """
        alarms: list[Alarm] = []
        watching = detectors or self.detectors
        on_alarm = None if watching is None else alarms.append
        run = self._start([prompt], Sampling(**sampling), seed, steer, on_alarm, detectors=watching)
        return LiveReply(run, n_top, _alarms=alarms)

    def write(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        seeds: Sequence[int],
        interventions: Sequence[Intervention],
    ) -> list[Trace]:
        """One batch of replies under prepared interventions, with any direction and a start for each row.

        For experiments that `Steer` cannot express; otherwise use `generate_batch`.
        """
        if any(i.steer.when == "alarm" for i in interventions):
            raise SettingError("when='alarm' needs a run with detectors: generate, stream or generate_batch.")
        run = GenerationRun(self.lm, self._directions, self._render(prompts, sampling), sampling, seeds, interventions)
        run.finish()
        return [self._of_run(run, row) for row in range(len(prompts))]

    def read(self, conversation: str | Messages | Trace, *, writer: str | None = None, steer: Steers = None) -> Trace:
        """Read a given text, whichever model or person wrote it, without generating.

        Args:
            conversation: messages; if the last is the assistant's, it is the reply, and its text follows the rendered
                prompt as a generated reply would. A `Trace` is read again by its ids (by this or another model with
                the same tokenizer).
            writer: the model that wrote the reply, for the record.
            steer: interventions that act during reading.

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
            batch_tokens: tokens in one forward, padding included; a longer text gets a forward alone. None: 1,024 on a
                CPU, where more is no faster, 16,384 on a GPU. Halved when memory runs out.
            writer, steer: as in `read`.
            progress: show a progress bar.

        Raises:
            PromptError, ContextOverflow, VectorsMismatch, and NumericalError where a state is NaN or infinite.
        """
        changes = prepare(steer, self.vectors, self.lm.blocks)
        if any(c.steer.when == "alarm" for c in changes):
            raise SettingError(
                "when='alarm' acts during generation; a given text is read in one forward. Find the alarm with the "
                "detectors and steer from there with start=..."
            )
        conversations = as_list(conversations)
        texts = []
        for index, conversation in enumerate(conversations):
            with naming(index, len(conversations)):
                texts.append(as_transcript(self.lm, conversation, writer))
        readings = engine_of(self.lm).read(
            self.lm,
            [t.ids for t in texts],
            [t.n_prompt for t in texts],
            Readout(self._directions, changes),
            batch_tokens,
            progress,
        )
        known = reader_provenance(self.lm, self.vectors, changes)
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
        batch_size: int | None = None,
        detectors: Detectors | None = None,
    ) -> GenerationRun:
        prefixes = self._render(prompts, sampling)
        changes = prepare(steer, self.vectors, self.lm.blocks, len(prompts))
        watch = self._watch(len(prompts), changes, on_alarm, detectors or self.detectors)
        if watch is not None:
            self._show_kept_tokens(watch, prefixes, changes)
        return self._run(sampling, batch_size, prefixes, seeds_of(prompts, seed), changes, origins_of(prompts), watch)

    def _run(
        self,
        sampling: Sampling,
        batch_size: int | None,
        prefixes: Sequence[ReplyPrefix],
        seeds: Sequence[int],
        changes: Sequence[Intervention],
        origins: Sequence[Mapping[str, Any] | None],
        observer: TokenObserver | None,
    ) -> GenerationRun:
        return GenerationRun(
            self.lm,
            self._directions,
            prefixes,
            sampling,
            seeds,
            changes,
            observer=observer,
            origins=origins,
            batch_size=batch_size,
        )

    def _guarded(
        self,
        guard: Guard,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        seed: int | Sequence[int] | None,
        steer: Steers,
        on_alarm: OnAlarm | None,
        batch_size: int | None = None,
    ) -> GuardedRun:
        if not isinstance(guard, Guard):
            raise SettingError(f"guard={guard!r}; expected Guard(traits, rate=0.01, action='cap').")
        if self.lm.engine is not None:
            raise SettingError(
                f"A guard ends replies and goes back in them, which engine={self.lm.engine.name!r} cannot do yet; load "
                "the model with engine='transformers'."
            )
        changes = prepare(steer, self.vectors, self.lm.blocks, len(prompts))
        if on_alarm is not None or any(c.steer.when == "alarm" for c in changes):
            raise SettingError(
                "on_alarm and when='alarm' wait for the detectors' own rate, a guard has another: give one of them. "
                "A guard's action may be a function, and Step.events says what it did."
            )
        detectors = guard.thresholds(self._known(self.detectors))
        return GuardedRun(
            guard,
            detectors,
            guard.prepared_caps(self.vectors, self.lm.blocks),
            self._render(prompts, sampling),
            seeds_of(prompts, seed),
            changes,
            origins_of(prompts),
            start=partial(self._run, sampling, batch_size),
            watch=lambda n_rows, tell: self._alarm_watch(detectors, n_rows, (), tell),
            trace_of=self._of_run,
        )

    def _show_kept_tokens(
        self, watch: AlarmWatch, prefixes: Sequence[ReplyPrefix], changes: Sequence[Intervention]
    ) -> None:
        """Show the detectors the kept tokens of branches before generation starts: alarms count from the reply's first
        token, and an alarm within the kept tokens activates its interventions at once."""
        rows = [row for row, prefix in enumerate(prefixes) if prefix.kept_ids]
        if not rows:
            return
        ungated = [c for c in changes if c.steer.when != "alarm"]
        kept = [prefixes[row] for row in rows]
        n_prompts = [len(p.prompt.token_ids) for p in kept]
        readout = Readout(self._directions, ungated)
        readings = engine_of(self.lm).read(self.lm, [p.ids for p in kept], n_prompts, readout)
        for row, n_prompt, (raw, norms) in zip(rows, n_prompts, readings, strict=True):
            for token, role in enumerate(prefixes[row].kept_roles):
                if role in ("assistant", "thinking"):
                    at = n_prompt + token
                    watch.push(row, token, raw[:, :, at].T, norms[:, at], role == "thinking")

    def _watch(
        self, n_rows: int, changes: Sequence[Intervention], on_alarm: OnAlarm | None, detectors: Detectors | None
    ) -> AlarmWatch | None:
        """The alarms of a run, if anything depends on them."""
        gated = [c.steer.trait for c in changes if c.steer.when == "alarm"]
        if on_alarm is None and not gated:
            return None
        detectors = self._known(detectors)
        for trait in gated:
            detectors.of(trait)
        return self._alarm_watch(detectors, n_rows, changes, on_alarm)

    @staticmethod
    def _known(detectors: Detectors | None) -> Detectors:
        if detectors is None:
            raise SettingError(
                "Alarms need detectors: PersonaMonitor(..., detectors=Detectors.from_pretrained(...)), or make them "
                "from neutral replies with calibrate_detectors."
            )
        return detectors

    def _alarm_watch(
        self, detectors: Detectors, n_rows: int, changes: Sequence[Intervention], on_alarm: OnAlarm | None
    ) -> AlarmWatch:
        return AlarmWatch(
            detectors,
            self.vectors.traits,
            self.blocks,
            self._null,
            n_rows=n_rows,
            interventions=changes,
            on_alarm=on_alarm,
            log_odds=self._log_odds,
            max_norm=self._max_norm,
        )

    def _render(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[ReplyPrefix]:
        if not prompts:
            raise PromptError("No prompt given.")
        prefixes = []
        for index, prompt in enumerate(prompts):
            with naming(index, len(prompts)):
                prefix = prefix_of(self.lm, prompt, sampling.max_new_tokens)
                new_token_limit(self.lm, len(prefix.ids), sampling)  # raises where nothing fits
                prefixes.append(prefix)
        return prefixes

    def _of_run(self, run: GenerationRun, row: int, n: int | None = None) -> Trace:
        """The trace of one row of a run after `n` reply tokens; None means all of them."""
        complete = n is None or n == len(run.replies[row])
        finish = (run.finished[row] if complete else None) or "stopped"
        text = Transcript(run.token_ids(row, n), run.pieces(row, n), run.roles(row, n), len(run.prompts[row].token_ids))
        provenance = replace(
            reader_provenance(self.lm, self.vectors, run.interventions),
            writer=self.lm.writer_name,
            sampling=run.sampling.to_dict(),
            seed=run.seeds[row],
            written=run.origins[row],
        )
        return self._trace(text, run.readings(row, n), finish, provenance)

    def _token_scores(self, raw: np.ndarray, norms: np.ndarray) -> dict[str, np.ndarray]:
        """Scores of the default kind of tokens of any replies, as a trace has them: float32 `[n_tokens]`, NaN at sinks.

        Args:
            raw: `[n_traits, n_blocks, n_tokens]`.
            norms: `[n_blocks, n_tokens]`.
        """
        n = raw.shape[-1]
        unnamed = Transcript((-1,) * n, ("",) * n, ("assistant",) * n, 0)
        trace = self._trace(unnamed, (raw, norms), "read", Provenance())
        kind = trace.default_kind
        return {t: trace.scores_without_sinks(t, kind) for t in trace.traits if t in trace.best_block}

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
            max_norm=self._max_norm,
            log_odds=self._log_odds,
            special=tuple(i in special for i in text.ids),
            finish=finish,
            provenance=provenance,
        )
