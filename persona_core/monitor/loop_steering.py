"""Steer a model in a loop that is not ours: `with vectors.steer(model, "evil", strength=-4): model.generate(...)`.

The hooks act in every forward of the model inside the block, whichever thread makes it, and are removed at its end.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch

from persona_core.errors import SettingError, UnsupportedModel, VectorsMismatch
from persona_core.inference.hooks import ResidualTap
from persona_core.inference.steering import Steer, Unit
from persona_core.models.blocks import Blocks, find_blocks, unwrap
from persona_core.models.language_model import LanguageModel
from persona_core.monitor.loop_texts import LoopTexts, callers, follow, refuse_drafts
from persona_core.monitor.steering import prepare
from persona_core.vectors.vectors import PersonaVectors


@contextmanager
def steer_loop(
    vectors: PersonaVectors,
    model: Any,
    *steers: Steer | str,
    strength: float | None = None,
    mode: Literal["add", "ablate", "cap"] = "add",
    block: int | None = None,
    unit: Unit = "sd",
    start: int | None = None,
) -> Iterator[None]:
    """What `PersonaVectors.steer` does; its docstring has the arguments."""
    decoder, blocks = parts_of(model)
    check_width(vectors, blocks, model)
    wanted = [
        one if isinstance(one, Steer) else _steer(vectors, one, strength, mode, block, unit, start) for one in steers
    ]
    if not wanted:
        raise SettingError('Nothing to steer: name a trait, steer(model, "sycophancy", strength=-4), or give a Steer.')
    if any(one.when == "alarm" for one in wanted):
        raise SettingError("when='alarm' needs detectors, which watch only PersonaMonitor's own replies.")
    interventions = prepare(wanted, vectors, blocks)
    positions = any(one.start is not None for one in wanted)
    eos_ids, local = eos_of(decoder), _PerThread()

    def index_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
        if not positions:
            refuse_drafts(callers())
            given = next((kwargs[k] for k in ("input_ids", "inputs_embeds") if kwargs.get(k) is not None), None)
            rows = args[0] if given is None else given
            return torch.zeros(rows.shape[:2], dtype=torch.long)
        new = follow(local.texts, args, kwargs, eos_ids)
        if new.is_prompt and not new.is_start:
            raise UnsupportedModel(
                "start=... with a prompt that is read in parts: its end is not known. Leave start out."
            )
        local.texts = new.texts
        return new.reply_index

    with ResidualTap(blocks, interventions=interventions) as tap, during_forwards(decoder, tap, index_of):
        yield


def _steer(
    vectors: PersonaVectors,
    trait: str,
    strength: float | None,
    mode: str,
    block: int | None,
    unit: Unit,
    start: int | None,
) -> Steer:
    vectors.tensor(trait)
    at = vectors.best_block.get(trait) if block is None else block
    if at is None:
        raise SettingError(f"The vectors name no best block for {trait!r}; give block=...")
    if mode == "ablate":
        return Steer.ablate(trait, at, start=start)
    if strength is None:
        raise SettingError(f"How far? steer(model, {trait!r}, strength=...): standard deviations, or unit='residual'.")
    if mode == "cap":
        return Steer.cap(trait, at, strength, start=start, unit=unit)
    return Steer(trait, at, strength=strength, start=start, unit=unit, mode=mode)  # type: ignore[arg-type]


class _PerThread(threading.local):
    """The batch that each thread is writing."""

    texts: LoopTexts | None = None


def parts_of(model: Any) -> tuple[Any, Blocks]:
    """The module whose forward a loop calls, and its blocks.

    Raises:
        UnsupportedModel: it runs in another engine, or its residual stream cannot be read.
    """
    if isinstance(model, LanguageModel):
        if model.engine is not None:
            raise UnsupportedModel(f"{model.name!r} runs in another engine, where PersonaMonitor reads and steers it.")
        return unwrap(model.model), model.blocks
    return unwrap(model), find_blocks(model)


def check_width(vectors: PersonaVectors, blocks: Blocks, model: Any) -> None:
    """Refuse vectors of another model.

    Raises:
        VectorsMismatch.
    """
    if (vectors.n_blocks, vectors.d_model) != (len(blocks), blocks.d_model):
        raise VectorsMismatch(
            f"The vectors are for {vectors.n_blocks} blocks of width {vectors.d_model}; {type(model).__name__} has "
            f"{len(blocks)} blocks of width {blocks.d_model}."
        )


def eos_of(decoder: Any) -> frozenset[int]:
    """The ids that end a reply, of a transformers model."""
    ids = getattr(getattr(decoder, "generation_config", None), "eos_token_id", None)
    return frozenset([ids] if isinstance(ids, int) else ids or ())


@contextmanager
def during_forwards(decoder: Any, tap: ResidualTap, index_of: Any, after: Any = None) -> Iterator[None]:
    """Make a tap act in every forward of a model.

    Args:
        decoder: the model.
        tap: entered.
        index_of: positions of a forward's tokens from its arguments, `[rows, tokens]`; may refuse it.
        after: called once a forward has ended without an error.

    A tap holds one forward: those of several threads wait for each other.
    """
    turn, running = threading.Lock(), ExitStack()

    def before(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        turn.acquire()
        try:
            running.enter_context(tap.forward(index_of(args, kwargs)))
        except BaseException:
            turn.release()
            raise
        running.callback(setattr, local, "inside", False)
        local.inside = True

    def behind(_module: Any, _args: Any, output: Any) -> None:
        if not getattr(local, "inside", False):
            return  # refused before it began
        try:
            if after is not None and output is not None:
                after()
        finally:
            running.close()
            turn.release()

    local = threading.local()

    handles: Sequence[Any] = (
        decoder.register_forward_pre_hook(before, with_kwargs=True),
        decoder.register_forward_hook(behind, always_call=True),
    )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        if getattr(local, "inside", False):  # interrupted in the middle of a forward
            running.close()
