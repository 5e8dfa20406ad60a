"""Read a model in a loop that is not ours: `with vectors.watch(model, tokenizer) as seen: model.generate(...)`."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from persona_core.errors import PromptError, SettingError
from persona_core.inference.hooks import Reading, ResidualTap
from persona_core.inference.sections import opens_thought
from persona_core.models.detokenize import split_text
from persona_core.models.language_model import LanguageModel
from persona_core.models.loading import wrap_model
from persona_core.monitor.loop_steering import during_forwards, parts_of
from persona_core.monitor.loop_texts import LoopTexts, NewTokens, follow
from persona_core.monitor.monitor import PersonaMonitor
from persona_core.monitor.record import reader_provenance
from persona_core.monitor.transcripts import Transcript
from persona_core.traces.trace import Trace
from persona_core.vectors.vectors import PersonaVectors


@dataclass
class _Batch:
    """The texts of one batch and what was read of them, in the order of the forwards."""

    texts: LoopTexts
    parts: list[tuple[Reading, torch.Tensor]] = field(default_factory=list)  # and which columns are tokens


class SeenTexts:
    """What `PersonaVectors.watch` has seen so far, one trace for each text."""

    def __init__(self, monitor: PersonaMonitor) -> None:
        self._monitor = monitor
        self._batches: list[_Batch] = []

    @property
    def traces(self) -> tuple[Trace, ...]:
        """In the order in which the texts began."""
        return tuple(self._trace(batch, row) for batch in self._batches for row in range(batch.texts.n_rows))

    @property
    def trace(self) -> Trace:
        """The only one.

        Raises:
            PromptError: there is none, or more than one.
        """
        n = sum(batch.texts.n_rows for batch in self._batches)
        if n != 1:
            raise PromptError(f"{n} texts were read inside the block; take them from .traces.")
        return self.traces[0]

    def _trace(self, batch: _Batch, row: int) -> Trace:
        lm, ids, n = self._monitor.lm, tuple(batch.texts.ids[row]), batch.texts.n_prompt[row]
        pieces = tuple(split_text(lm.tokenizer, ids))
        special = set(lm.tokenizer.all_special_ids)
        asked = tuple("template" if i in special else "user" for i in ids[:n])
        said = lm.chat.reply_roles(pieces[n:], opens_thought(lm, ids[:n]))
        roles = (*asked, *("template" if i in lm.eos_ids else role for i, role in zip(ids[n:], said, strict=True)))
        # raw of each part: [tokens, n_blocks, n_traits]; norms: [tokens, n_blocks]
        raw = torch.cat([reading.raw[row][kept[row].to(reading.raw.device)] for reading, kept in batch.parts])
        norms = torch.cat([reading.norms[row][kept[row].to(reading.norms.device)] for reading, kept in batch.parts])
        arrays = (np.ascontiguousarray(raw.permute(2, 1, 0).cpu().numpy()), norms.T.contiguous().cpu().numpy())
        known = replace(
            reader_provenance(lm, self._monitor.vectors, ()), writer=lm.writer_name if len(ids) > n else None
        )
        return self._monitor.trace_of(Transcript(ids, pieces, roles, n), arrays, "read", known)


@contextmanager
def watch_loop(
    vectors: PersonaVectors, model: Any, tokenizer: Any = None, blocks: str | Sequence[int] = "best"
) -> Iterator[SeenTexts]:
    """What `PersonaVectors.watch` does; its docstring has the arguments."""
    decoder, _ = parts_of(model)
    monitor = PersonaMonitor(_language_model(model, tokenizer), vectors, blocks)
    seen, local = SeenTexts(monitor), threading.local()

    def index_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
        current = getattr(local, "batch", None)
        local.new = follow(None if current is None else current.texts, args, kwargs, monitor.lm.eos_ids)
        return local.new.reply_index

    def after() -> None:
        new: NewTokens = local.new
        if new.is_start:
            local.batch = _Batch(new.texts)
            seen._batches.append(local.batch)
        reading = tap.reading()
        local.batch.parts.append((Reading(reading.raw[:, new.first :], reading.norms[:, new.first :]), new.kept))

    with (
        ResidualTap(monitor.lm.blocks, monitor.directions, last=True) as tap,
        during_forwards(decoder, tap, index_of, after),
    ):
        yield seen


def _language_model(model: Any, tokenizer: Any) -> LanguageModel:
    if isinstance(model, LanguageModel):
        return model
    if tokenizer is None:
        raise SettingError("watch(model, tokenizer): a transformers model does not know its tokenizer; give it.")
    if model.training:
        raise SettingError("The model is in training mode (dropout on): call model.eval() first.")
    return wrap_model(model, tokenizer)
