"""Read a model in anybody's loop: `with vectors.watch(model, tokenizer) as seen: model.generate(...)`."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from persona_core.errors import NumericalError, SettingError, UnsupportedModel
from persona_core.inference.hooks import in_monitored_run
from persona_core.inference.sections import opens_thought
from persona_core.models.blocks import block_output, unwrap
from persona_core.models.detokenize import split_text
from persona_core.models.language_model import LanguageModel
from persona_core.models.loading import wrap_model
from persona_core.monitor.forwards import Follower, Forward, Texts, blocks_of, calling_loop, is_paused, paused
from persona_core.monitor.monitor import PersonaMonitor
from persona_core.monitor.record import reader_provenance
from persona_core.monitor.steering_hooks import steers_on
from persona_core.monitor.transcripts import Transcript
from persona_core.traces.trace import Trace
from persona_core.vectors.vectors import PersonaVectors

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@contextmanager
def watch(
    vectors: PersonaVectors,
    model: Any,
    tokenizer: PreTrainedTokenizerBase | None = None,
    blocks: str | Sequence[int] = "best",
) -> Iterator[Watch]:
    """See `PersonaVectors.watch`."""
    seen = Watch(PersonaMonitor(_language_model(vectors, model, tokenizer), vectors, blocks))
    with seen:
        yield seen


def _language_model(vectors: PersonaVectors, model: Any, tokenizer: PreTrainedTokenizerBase | None) -> LanguageModel:
    blocks_of(model, vectors)
    if isinstance(model, LanguageModel):
        return model
    if tokenizer is None:
        raise SettingError("Tokens are shown as text: watch(model, tokenizer).")
    if model.training:
        raise SettingError("The model is in training mode, where dropout is active; call model.eval() first.")
    with paused():
        return wrap_model(model, tokenizer)


@dataclass
class _Readings:
    """What was read of one batch of texts; each tensor of a forward, on its block's device.

    Attributes:
        raw: `[rows, tokens, n_traits]` of each block of each forward.
        norms: `[rows, tokens]`.
        steering: records of the interventions that acted.
    """

    texts: Texts
    raw: list[list[torch.Tensor]] = field(default_factory=list)
    norms: list[list[torch.Tensor]] = field(default_factory=list)
    steering: list[dict[str, object]] = field(default_factory=list)


class Watch:
    """What a model has read inside `with vectors.watch(...) as seen`; readable during the `with` and after it.

    Attributes:
        monitor: the monitor with the same model, vectors and blocks.
    """

    def __init__(self, monitor: PersonaMonitor) -> None:
        self.monitor = monitor
        self._base = unwrap(monitor.lm.model)
        self._follower = Follower(self._base, checks_rows=True)
        self._directions = dict(monitor._directions)  # moved to where each block's states are
        self._read: dict[Texts, _Readings] = {}
        self._lock = threading.Lock()
        self._here = threading.local()  # the forward that runs in a thread
        self._handles: list[Any] = []

    def __repr__(self) -> str:
        return f"Watch({sum(t.n_rows for t in self._read)} texts read by {self.monitor.lm.writer_name})"

    def __enter__(self) -> Watch:
        try:
            self._handles.append(self._base.register_forward_pre_hook(self._before, with_kwargs=True))
            self._handles.append(self._base.register_forward_hook(self._after, always_call=True))
            for b in self.monitor.blocks:  # behind the hooks that are there, so that what they change is read
                self._handles.append(self.monitor.lm.blocks.modules[b].register_forward_hook(self._at_block(b)))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        while self._handles:
            self._handles.pop().remove()

    @property
    def trace(self) -> Trace:
        """The trace of the only text.

        Raises:
            SettingError: none was read, or several were.
        """
        traces = self.traces
        if len(traces) != 1:
            raise SettingError(f"{len(traces)} texts were read; `traces` is the list of them.")
        return traces[0]

    @property
    def traces(self) -> list[Trace]:
        """A trace of each text, in the order in which they were begun, rows of a batch in theirs.

        Raises:
            NumericalError: a state that is NaN or infinite.
            SettingError: rows of a cache were moved between forwards, so that no row is one text.
        """
        with self._lock:
            return [trace for read in self._read.values() for trace in self._traces_of(read)]

    def _before(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._here.forward, self._here.read = None, {}
        if is_paused() or in_monitored_run():
            return
        loop = calling_loop()
        if loop.reorders:
            raise SettingError(
                f"In {loop.reorders} texts change rows at every step; generate with num_beams=1, and read the result "
                "with PersonaMonitor.read."
            )
        self.monitor.lm.refuse_training()
        with self._lock:
            self._here.forward = self._follower.begin(args, kwargs, loop)

    def _at_block(self, block: int) -> Any:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            if is_paused() or in_monitored_run():
                return
            if getattr(self._here, "forward", None) is None:
                raise SettingError(
                    f"A block ran outside a forward of {type(self._base).__name__}, so its tokens are unknown; call "
                    "the whole model."
                )
            states = block_output(output).detach()
            with torch.no_grad(), torch.autocast(states.device.type, enabled=False):
                states = states.float()  # [rows, tokens, d_model]
                directions = self._directions[block] = self._directions[block].to(states.device)
                self._here.read[block] = states @ directions, torch.linalg.vector_norm(states, dim=-1)

        return hook

    def _after(self, _module: nn.Module, _args: Any, output: Any) -> None:
        forward, read = getattr(self._here, "forward", None), getattr(self._here, "read", {})
        self._here.forward, self._here.read = None, {}
        if output is None or forward is None:  # a forward that failed, or is not watched
            return
        missing = [b for b in self.monitor.blocks if b not in read]
        if missing:
            raise UnsupportedModel(f"The forward ran without the hook of block {missing[0]}: is it compiled?")
        with self._lock:
            self._keep(forward, read, output)

    def _keep(self, forward: Forward, read: dict[int, tuple[torch.Tensor, torch.Tensor]], output: Any) -> None:
        self._follower.commit(forward, output)
        kept = self._read.setdefault(forward.texts, _Readings(forward.texts))
        if forward.is_whole:
            kept.raw, kept.norms = [], []
        kept.raw.append([read[b][0] for b in self.monitor.blocks])
        kept.norms.append([read[b][1] for b in self.monitor.blocks])
        kept.steering += [r for s in steers_on(self._base) if (r := s.to_dict()) not in kept.steering]

    def _traces_of(self, kept: _Readings) -> list[Trace]:
        texts = kept.texts
        if any(bool(moved) for moved in texts.moved):
            raise SettingError(
                "Rows of the cache were moved between forwards, as a beam search does: no row is one text. Sample or "
                "decode greedily."
            )
        ids = torch.cat([part.cpu() for part in texts.ids], dim=1).numpy()  # [rows, columns]
        real = torch.cat([part.cpu() for part in texts.real], dim=1).numpy()
        raw = np.concatenate([_stacked(parts) for parts in kept.raw], axis=1)  # [rows, columns, n_blocks, n_traits]
        norms = np.concatenate([_stacked(parts) for parts in kept.norms], axis=1)  # [rows, columns, n_blocks]
        made = []
        for row in range(texts.n_rows):
            columns = np.flatnonzero(real[row])
            if not np.isfinite(norms[row, columns]).all():
                raise NumericalError(f"The model produced NaN or infinity. {self.monitor.lm.why_not_finite}")
            n_prompt = int((columns < texts.prompt_columns).sum())
            text = self._transcript(tuple(int(i) for i in ids[row, columns]), n_prompt)
            made.append(self._trace(text, raw[row, columns].transpose(2, 1, 0), norms[row, columns].T, kept.steering))
        return made

    def _transcript(self, ids: tuple[int, ...], n_prompt: int) -> Transcript:
        """Roles of a prompt are not known from its ids: what is no special token counts as the user's."""
        lm = self.monitor.lm
        pieces, special = tuple(split_text(lm.tokenizer, ids)), set(lm.tokenizer.all_special_ids)
        before = ["template" if i in special else "user" for i in ids[:n_prompt]]
        said = lm.chat.reply_roles(pieces[n_prompt:], opens_thought(lm, ids[:n_prompt]))
        after = ["template" if i in lm.eos_ids else role for i, role in zip(ids[n_prompt:], said, strict=True)]
        return Transcript(ids, pieces, (*before, *after), n_prompt)

    def _trace(
        self, text: Transcript, raw: np.ndarray, norms: np.ndarray, steering: Sequence[dict[str, object]]
    ) -> Trace:
        lm, replied = self.monitor.lm, len(text.ids) > text.n_prompt
        finish = "read" if not replied else "eos" if text.ids[-1] in lm.eos_ids else "stopped"
        provenance = replace(
            reader_provenance(lm, self.monitor.vectors, []),
            writer=lm.writer_name if replied else None,
            steering=tuple(steering),
        )
        readings = np.ascontiguousarray(raw), np.ascontiguousarray(norms)
        return self.monitor._trace(text, readings, finish, provenance)


def _stacked(parts: Sequence[torch.Tensor]) -> np.ndarray:
    return torch.stack([part.cpu() for part in parts], dim=2).numpy()  # blocks behind tokens
