"""Follow a loop that is not ours by the forwards of its model: which texts it reads, and where each reply begins.

A forward with an empty cache starts new texts, one a row: the prompt. A longer forward with the same cache is more of
the prompt; one token is the next of the reply. Without a cache, a forward of the same rows and one token more continues
them. Loops of which this is not true are refused: transformers' own by name, others by what the cache holds.
"""

from __future__ import annotations

import inspect
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from persona_core.errors import SettingError, UnsupportedModel
from persona_core.inference.steering import PAD_INDEX
from persona_core.models.blocks import Blocks, find_blocks
from persona_core.models.language_model import LanguageModel
from persona_core.vectors.vectors import PersonaVectors

_here = threading.local()  # "paused" in a thread that verifies a model


def is_paused() -> bool:
    """Whether this thread runs forwards of ours, which nobody watches or steers."""
    return getattr(_here, "paused", False)


@contextmanager
def paused() -> Iterator[None]:
    """No watch and no steer acts in this thread inside the `with`."""
    before, _here.paused = is_paused(), True
    try:
        yield
    finally:
        _here.paused = before


def blocks_of(model: Any, vectors: PersonaVectors) -> Blocks:
    """The blocks of a model that the vectors fit.

    Raises:
        UnsupportedModel: it has no blocks that can be read, or is compiled.
        VectorsMismatch: width or number of blocks differs.
    """
    inner = model.model if isinstance(model, LanguageModel) else model
    if isinstance(model, LanguageModel) and not isinstance(inner, nn.Module):
        raise UnsupportedModel(
            f"{model.name!r} runs on another engine, where no hooks can act; use "
            "PersonaMonitor(...).generate(..., steer=...)."
        )
    if not isinstance(inner, nn.Module):
        raise SettingError(f"model={model!r}; expected a transformers model or a LanguageModel.")
    if hasattr(inner, "_orig_mod") or any(m._compiled_call_impl is not None for m in inner.modules()):
        raise UnsupportedModel("A compiled model does not run new hooks; use the model as it was before torch.compile.")
    if isinstance(model, LanguageModel):
        blocks = model.blocks
    else:
        with paused():
            blocks = find_blocks(inner)
    vectors.check_blocks(len(blocks), blocks.d_model, "the model")
    return blocks


@dataclass(frozen=True)
class Loop:
    """Which loop runs a forward: one of transformers' or somebody's own.

    Attributes:
        is_prefill, is_step: whether `generate` reads its prompt, or decodes; neither: a loop of one's own.
        reorders: the name of a search that moves rows about; None: rows stay.
        is_aside: whether a logits processor or a stopping criterion runs it, on a text of its own.
        unfinished: `[rows]`, 0 for a reply that has ended and is fed padding; None: not known.
    """

    is_prefill: bool = False
    is_step: bool = False
    reorders: str | None = None
    is_aside: bool = False
    unfinished: torch.Tensor | None = None


def calling_loop() -> Loop:
    """The loop that runs the current forward, by the functions on the stack.

    Raises:
        SettingError: assisted decoding, continuous batching, or a loop that compiles the forward.
    """
    nearest: tuple[str, str] | None = None  # of transformers' functions: module and name
    reorders, unfinished = None, None
    frame: Any = sys._getframe(1)
    while frame is not None:
        module, name = frame.f_globals.get("__name__") or "", frame.f_code.co_name
        if "beam_search" in name or "contrastive_search" in name:
            reorders = name.strip("_").replace("_", " ")
        if module.startswith("transformers.generation."):
            nearest = nearest or (module.removeprefix("transformers.generation."), name)
            if module.startswith("transformers.generation.continuous_batching"):
                raise SettingError("Continuous batching packs texts into one row; use model.generate.")
            if name == "_assisted_decoding":
                raise SettingError(
                    "Assisted decoding takes tokens back after the model has read them; generate without "
                    "assistant_model and prompt_lookup_num_tokens."
                )
            if name == "_sample" and nearest[1] in ("_prefill", "_sample"):
                known = frame.f_locals
                unfinished = known.get("unfinished_sequences") if unfinished is None else unfinished
                if hasattr(known.get("model_forward"), "_torchdynamo_orig_callable"):
                    raise SettingError(
                        "generate compiles its steps with this cache, and compiled steps do not run new hooks; pass "
                        "disable_compile=True."
                    )
        frame = frame.f_back
    where, name = nearest or ("", "")
    aside = where in ("logits_process", "stopping_criteria")
    return Loop(name == "_prefill", name == "_sample", reorders, aside, unfinished)


@dataclass(eq=False)
class Texts:
    """The rows of one batch, as far as the model has read them.

    Attributes:
        ids, real: of each forward, `[rows, tokens]`; False: padding, or fed to a reply after its end.
        n_columns, prompt_columns: tokens read in each row, padding included, and those of them before the reply.
        unfinished: `[rows]`, whether a reply went on when the newest token was chosen.
        is_cached: whether a forward went on from a cache.
        last_keys: `[rows, heads, d_head]`, keys of the newest token in the cache; None: not known.
        moved: for each forward from the cache, whether these had changed since the one before, `[]`.
    """

    n_rows: int
    ids: list[torch.Tensor] = field(default_factory=list)
    real: list[torch.Tensor] = field(default_factory=list)
    n_columns: int = 0
    prompt_columns: int = 0
    unfinished: torch.Tensor | None = None
    is_cached: bool = False
    last_keys: torch.Tensor | None = None
    moved: list[torch.Tensor] = field(default_factory=list)

    @property
    def has_reply(self) -> bool:
        return self.n_columns > self.prompt_columns


@dataclass(frozen=True)
class Forward:
    """One forward.

    Attributes:
        texts: what it reads more of, or again.
        ids, real: `[rows, tokens]`.
        reply_index: `[rows, tokens]`, position in the reply; -1 is the last prompt token, `PAD_INDEX` a padding token.
        is_new, is_prompt, is_whole: whether it starts the texts; ends before the reply; reads them from the start.
        cache: that it was given.
        unfinished: as in `Loop`.
    """

    texts: Texts
    ids: torch.Tensor
    real: torch.Tensor
    reply_index: torch.Tensor
    is_new: bool
    is_prompt: bool
    is_whole: bool
    cache: Any
    unfinished: torch.Tensor | None


class Follower:
    """Tells which texts each forward of one model reads. Threads and interleaved loops are told apart by their caches.

    Args:
        model: the module that the loop calls, to name its positional arguments.
        checks_rows: note where rows of a cache were moved.
    """

    def __init__(self, model: nn.Module, checks_rows: bool) -> None:
        self._names = tuple(inspect.signature(model.forward).parameters)
        self._checks_rows = checks_rows
        self._of_cache: WeakKeyDictionary[Any, Texts] = WeakKeyDictionary()
        self._newest: dict[int, Texts] = {}  # of each thread

    def begin(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], loop: Loop) -> Forward:
        """What a forward is about to read.

        Raises:
            SettingError: it cannot be told.
        """
        given = dict(zip(self._names, args, strict=False)) | dict(kwargs)
        ids, cache = given.get("input_ids"), given.get("past_key_values")
        if loop.is_aside:
            raise SettingError(
                "A logits processor or a stopping criterion runs the model on a text of its own, as guidance_scale "
                "does; generate without it."
            )
        if ids is None:
            raise SettingError("The forward has inputs_embeds and no input_ids, so its tokens are unknown; pass ids.")
        ids = ids.detach().clone()  # a loop may write its next token into the same tensor
        past = 0 if cache is None else int(cache.get_seq_length())
        texts = self._read_before(ids, cache, past, loop)
        is_new, is_whole = texts is None, past == 0
        texts = Texts(len(ids)) if texts is None else texts
        if texts.n_rows != len(ids):
            raise SettingError(
                f"The cache holds {texts.n_rows} texts and the forward {len(ids)}: a search that copies rows cannot be "
                "followed. Sample or decode greedily."
            )
        real = _real_tokens(given.get("attention_mask"), ids, past)
        is_prompt = is_new or (not is_whole and (ids.shape[1] > 1 or loop.is_prefill))
        if is_prompt:
            _refuse_packed(given.get("position_ids"), real)
        else:
            if texts.unfinished is not None:
                ended = (texts.unfinished == 0).to(real.device)
                real = torch.cat([real[:, :-1], real[:, -1:] & ~ended[:, None]], dim=1)
            if is_whole:
                real = torch.cat([*texts.real, real[:, -1:]], dim=1)
        if texts.last_keys is not None and (keys := _last_keys(cache, past)) is not None:
            texts.moved.append((keys.to(texts.last_keys.device) != texts.last_keys).any())
        n_prompt = ids.shape[1] if is_prompt else texts.prompt_columns if is_whole else 0
        first = 0 if is_prompt or is_whole else past - texts.prompt_columns
        index = _reply_index(real, n_prompt, first)
        return Forward(texts, ids, real, index, is_new, is_prompt, is_whole, cache, loop.unfinished)

    def commit(self, forward: Forward, output: Any) -> None:
        """Keep what the forward has read, once it is done."""
        texts = forward.texts
        if forward.is_whole:
            texts.ids, texts.real, texts.n_columns = [], [], 0
        texts.ids.append(forward.ids)
        texts.real.append(forward.real)
        texts.n_columns += forward.ids.shape[1]
        if forward.is_prompt:
            texts.prompt_columns = texts.n_columns
        texts.unfinished = None if forward.unfinished is None else forward.unfinished.detach().clone()
        texts.is_cached = texts.is_cached or not forward.is_whole
        cache = _cache_of(output) if forward.cache is None else forward.cache
        if cache is not None:
            self._of_cache[cache] = texts
            texts.last_keys = _last_keys(cache, texts.n_columns) if self._checks_rows else None
        self._newest[threading.get_ident()] = texts

    def _read_before(self, ids: torch.Tensor, cache: Any, past: int, loop: Loop) -> Texts | None:
        """The texts that a forward goes on with; None: it starts new ones."""
        if past:
            texts = self._of_cache.get(cache)
            if texts is None:
                raise SettingError(
                    f"The cache holds {past} tokens from before; begin with an empty cache, and with the whole text."
                )
            if texts.n_columns != past:
                raise SettingError(
                    f"The cache holds {past} tokens after {texts.n_columns} were read: tokens were taken back, as "
                    "speculative decoding does, or a forward failed. Begin again with an empty cache."
                )
            return texts
        newest = self._newest.get(threading.get_ident())
        if newest is None or newest.is_cached or loop.is_prefill or ids.shape != (newest.n_rows, newest.n_columns + 1):
            if loop.is_step:
                raise SettingError("generate reads a text whose beginning was not seen; call it inside the `with`.")
            return None
        same = torch.equal(ids[:, :-1], torch.cat([part.to(ids.device) for part in newest.ids], dim=1))
        return newest if same else None


def _real_tokens(mask: Any, ids: torch.Tensor, past: int) -> torch.Tensor:
    """Which tokens of a forward are not padding, bool `[rows, tokens]`."""
    if isinstance(mask, Mapping):  # one for each kind of attention; the widest covers the most tokens
        mask = max((m for m in mask.values() if m is not None), key=lambda m: m.shape[-1], default=None)
    end = past + ids.shape[1]
    in_window = getattr(mask, "ndim", 0) == 4 and ids.shape[1] == 1 and mask.shape[-1] < end
    if mask is None or in_window:  # generate's mask of a static window: the token at its end is the newest
        return torch.ones_like(ids, dtype=torch.bool)
    if not isinstance(mask, torch.Tensor) or mask.ndim not in (2, 4) or mask.shape[-1] < end:
        raise SettingError(f"attention_mask does not cover {end} tokens, so padding is unknown; pass [rows, {end}].")
    if mask.ndim == 2:
        real = mask[:, past:end] != 0
    else:  # a token attends to itself, and nothing attends to padding
        attended = mask if mask.dtype == torch.bool else mask == 0
        real = attended[:, 0, :, past:end].any(dim=1)
    return real.to(ids.device).expand(ids.shape)


def _refuse_packed(positions: Any, real: torch.Tensor) -> None:
    if not isinstance(positions, torch.Tensor) or positions.ndim != 2 or positions.shape[1] != real.shape[1]:
        return
    follows = positions[:, 1:] == positions[:, :-1] + 1
    if not bool((follows.to(real.device) | ~real[:, 1:] | ~real[:, :-1]).all()):
        raise SettingError("position_ids begin again within a row: several texts are packed into it. Give each a row.")


def _reply_index(real: torch.Tensor, n_prompt: int, first: int) -> torch.Tensor:
    """Positions in the reply: the first `n_prompt` columns are the prompt, the next one is reply token `first`."""
    prompt = real[:, :n_prompt].long()
    before = prompt.cumsum(dim=1) - prompt.sum(dim=1, keepdim=True) - 1
    after = torch.arange(first, first + real.shape[1] - n_prompt, device=real.device).expand(len(real), -1)
    return torch.where(real, torch.cat([before, after], dim=1), PAD_INDEX)


def _cache_of(output: Any) -> Any:
    found = getattr(output, "past_key_values", None)
    parts = output if found is None and isinstance(output, tuple) else (found,)
    return next((part for part in parts if hasattr(part, "get_seq_length")), None)


def _last_keys(cache: Any, n: int) -> torch.Tensor | None:
    """Keys of the newest token in the last block that has some; they depend on all of the text, so they tell rows
    apart.

    None where the cache holds them in another form, or moves them about.
    """
    if getattr(cache, "offloading", False):
        return None
    for layer in reversed(getattr(cache, "layers", ())):
        keys = getattr(layer, "keys", None)
        if isinstance(keys, torch.Tensor) and keys.ndim == 4 and keys.shape[-2]:
            return keys[:, :, min(n, keys.shape[-2]) - 1].detach().clone()
    return None
