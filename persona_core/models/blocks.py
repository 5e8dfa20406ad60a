"""Find the blocks of a decoder, and verify what the rest of the library assumes about them.

Blocks are numbered from 0, in the order in which they run. "State of block b at token t" is the output of block b
after the model has read token t: `[rows, tokens, d_model]`, before the final norm, before the next block.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from persona_core.errors import NumericalError, UnknownBlock, UnsupportedModel
from persona_core.utils.checks import known_block

# The attribute that holds a decoder's blocks: Llama and most others; GPT-2, GPT-J, Falcon, Bloom; MPT.
BLOCK_LISTS = ("layers", "h", "blocks")

TOKENS = (0, 1)
LONGER = (2, 3, 4, 5, 6, 7)
"""Token ids of the two texts that a model is tried with when it is loaded."""

PADDED = {torch.float64: 1e-3, torch.float32: 1e-3, torch.bfloat16: 0.3, torch.float16: 0.3}
"""By how much of its norm a state may differ when its text is padded. 25 families that are read right differ by up to
1e-6 in float32 and 0.007 in bfloat16; RecurrentGemma differs by 1.1."""


@dataclass(frozen=True)
class Blocks:
    """The blocks of one model, in running order."""

    modules: tuple[nn.Module, ...]
    d_model: int

    def __len__(self) -> int:
        return len(self.modules)

    def check(self, block: int) -> int:
        """Return `block` if the model has it; raise `UnknownBlock` otherwise. Negative numbers are refused."""
        return known_block(block, range(len(self)), "The model has")

    def device(self, block: int) -> torch.device:
        """Where a block's states are."""
        return next(self.modules[block].parameters()).device


def block_output(output: Any) -> torch.Tensor:
    """The residual stream in a block's output: the tensor itself, or the first item of a tuple.

    Most families return a tensor; GPT-J, Falcon, Bloom and MPT return a tuple.
    """
    return output[0] if isinstance(output, tuple) else output


def find_blocks(model: Any) -> Blocks:
    """Find the blocks of a causal language model and verify them with three forwards of a few tokens.

    Each block must run exactly once, in order, return `[rows, tokens, d_model]`, and pass its output unchanged to the
    next block. Padding, a longer text beside it and the key-value cache must change no state.

    Raises:
        UnsupportedModel: an encoder, a state-space or recurrent model, states that are not 3-D, or no block list.
        NumericalError: its weights give NaN or infinity.
    """
    adapters = getattr(model, "peft_config", {})
    if any(getattr(adapter, "is_prompt_learning", False) for adapter in adapters.values()):
        raise UnsupportedModel(
            f"{type(model).__name__} adds virtual tokens (prompt or prefix tuning), which have no ids to read. "
            "Use an adapter that changes weights, such as LoRA."
        )
    base: Any = unwrap(model)
    name = type(base).__name__
    config = getattr(base, "config", None)
    if config is None or not hasattr(base, "get_decoder"):
        raise UnsupportedModel(f"{name} is not a transformers model: it has no config or no get_decoder().")
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedModel(f"{name} is an encoder-decoder; only decoder-only models can be read.")
    if getattr(base, "_is_stateful", False) and not _attends(config):
        raise UnsupportedModel(
            f"{name} is a state-space or recurrent model: its running state depends on padding and replay, so a "
            "reading would depend on the batch. Only decoders with attention can be read."
        )
    if base.get_output_embeddings() is None or not base.can_generate():
        raise UnsupportedModel(f"{name} has no language-model head; load it with AutoModelForCausalLM.")
    text_config = config.get_text_config(decoder=True)
    modules = _block_list(base.get_decoder(), getattr(text_config, "num_hidden_layers", None))
    if modules is None:
        raise UnsupportedModel(f"No block list found in {name} (looked for {', '.join(BLOCK_LISTS)}).")
    d_model = getattr(text_config, "hidden_size", None)
    if not isinstance(d_model, int):
        raise UnsupportedModel(f"{name}: the config has no hidden_size.")
    blocks = Blocks(tuple(modules), d_model)
    _verify(base, blocks, name)
    return blocks


def unwrap(model: Any) -> Any:
    """The transformers model inside a PEFT wrapper, adapter layers included."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _attends(config: Any) -> bool:
    """Whether there is any attention: hybrids such as Qwen 3.5 have a recurrent state as well, and read exactly."""
    return bool(getattr(config.get_text_config(decoder=True), "num_attention_heads", None))


def _block_list(decoder: nn.Module, n_blocks: int | None) -> nn.ModuleList | None:
    """The decoder's own list, or the only one inside it with as many modules as the config has layers.

    transformers returns the whole model as the "decoder" of some families, such as Llama 4.
    """
    for attribute in BLOCK_LISTS:
        if _is_list(own := getattr(decoder, attribute, None)):
            return own
    inside = [
        module
        for name, module in decoder.named_modules()
        if name.rpartition(".")[2] in BLOCK_LISTS and _is_list(module) and len(module) == n_blocks
    ]
    return inside[0] if len(inside) == 1 else None


def _is_list(value: object) -> bool:
    return isinstance(value, nn.ModuleList) and len(value) > 0


def _verify(model: Any, blocks: Blocks, name: str) -> None:
    inputs, outputs = _states(model, blocks, name, torch.tensor([TOKENS]))
    if [module for module, _ in outputs] != list(blocks.modules):
        raise UnsupportedModel(f"{name}: its {len(blocks)} blocks do not each run once, in order.")
    for index, (_, state) in enumerate(outputs):
        if not isinstance(state, torch.Tensor) or tuple(state.shape) != (1, 2, blocks.d_model):
            shape = tuple(getattr(state, "shape", ()))
            raise UnsupportedModel(
                f"{name}: block {index} returns states of shape {shape}, not [rows, tokens, d_model] = "
                f"(1, 2, {blocks.d_model}). Models that keep several streams (such as Gemma 3n) cannot be read."
            )
        if not torch.isfinite(state).all():
            raise NumericalError(
                f"{name}: block {index} gives NaN or infinity for a text of two tokens{_broken_weight(model)}. "
                "Download the weights (or the adapter's) again; a float16 model that overflows needs dtype='float32'."
            )
    for index in range(len(blocks) - 1):
        if not torch.equal(_cpu(outputs[index][1]), _cpu(inputs[index + 1])):
            raise UnsupportedModel(
                f"{name}: the output of block {index} is not the input of block {index + 1}; "
                "something outside the blocks changes the residual stream."
            )
    _verify_generation(model, blocks, name, [state for _, state in outputs])


def _verify_generation(model: Any, blocks: Blocks, name: str, alone: Sequence[torch.Tensor]) -> None:
    """Refuse a model whose states depend on padding, on a longer text in the same batch, or on the cache.

    The second token of the two is read as a generated one is: after a prefill, from the cache.
    """
    from transformers import DynamicCache

    ids, mask = torch.tensor([[*[LONGER[0]] * 4, *TOKENS], LONGER]), torch.tensor([[0] * 4 + [1] * 2, [1] * 6])
    positions = torch.tensor([[0] * 4 + [0, 1], [*range(6)]])
    cache = DynamicCache(config=model.config)
    why = ("depends on padding or on the text beside it", "is another one when it is read from the cache")
    for token, (start, end) in enumerate(((0, 5), (5, 6))):
        _, outputs = _states(
            model,
            blocks,
            name,
            ids[:, start:end],
            past_key_values=cache,
            attention_mask=mask[:, :end],
            position_ids=positions[:, start:end],
        )
        for index, (expected, (_, state)) in enumerate(zip(alone, outputs, strict=True)):
            own = _cpu(expected).float()[0]  # [2, d_model]
            far = (_cpu(state)[0, -1].float() - own[token]).norm()
            relative = float(far / own.norm(dim=-1).max())  # the state of a padding token may be 0
            if not relative <= PADDED[state.dtype]:
                raise UnsupportedModel(
                    f"{name}: the state of a token {why[token]} (block {index}, by {relative:.1%} of its norm), so a "
                    "reading would depend on how the text was run."
                )


def _states(
    model: Any, blocks: Blocks, name: str, ids: torch.Tensor, past_key_values: Any = None, **tensors: torch.Tensor
) -> tuple[list[torch.Tensor], list[tuple[nn.Module, Any]]]:
    """Each block's input and output in one forward with plain hooks, removed at once.

    `output_hidden_states` would be simpler, but transformers then leaves its hooks on the model permanently.
    """
    inputs: list[torch.Tensor] = []
    outputs: list[tuple[nn.Module, Any]] = []

    def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        inputs.append(args[0] if args else kwargs["hidden_states"])

    def after(module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        outputs.append((module, block_output(output)))

    handles = [m.register_forward_pre_hook(before, with_kwargs=True) for m in blocks.modules]
    handles += [m.register_forward_hook(after) for m in blocks.modules]
    device = model.get_input_embeddings().weight.device
    known = inspect.signature(model.forward).parameters
    arguments: dict[str, Any] = {key: value.to(device) for key, value in tensors.items() if key in known}
    if past_key_values is not None:
        arguments["past_key_values"] = past_key_values
    was_training = model.training
    try:
        model.eval()  # with dropout, a block's output would differ from the next block's input
        with torch.no_grad():
            model(input_ids=ids.to(device), use_cache=past_key_values is not None, **arguments)
    except Exception as error:  # anybody's configuration: an IndexError of the cache, an ImportError of a kernel, ...
        text = " by ".join(map(str, ids.shape))
        raise UnsupportedModel(f"{name}: a forward of {text} tokens failed, {type(error).__name__}: {error}") from error
    finally:
        for handle in handles:
            handle.remove()
        model.train(was_training)
    return inputs, outputs


def _broken_weight(model: nn.Module) -> str:
    """ ", e.g. in NAME" for the first weight that holds NaN or infinity; nothing where all are finite."""
    broken = (n for n, w in model.named_parameters() if w.is_floating_point() and not torch.isfinite(w).all())
    found = next(broken, None)
    return "" if found is None else f" ({found} holds some)"


def _cpu(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to("cpu")  # device_map="auto" puts neighbours on different devices


def resolve_blocks(blocks: str | Sequence[int], best: dict[str, int], available: Sequence[int]) -> tuple[int, ...]:
    """Turn "best", "all" or a list of block numbers into a sorted tuple of blocks that the vectors hold."""
    if blocks == "all":
        return tuple(available)
    if blocks == "best":
        if not best:
            raise UnknownBlock(
                'The vectors have no best block; pass blocks="all" or block numbers (--blocks all; PERSONA_BLOCKS=all).'
            )
        return tuple(sorted(set(best.values())))
    if isinstance(blocks, (str, int)) or not blocks:
        raise UnknownBlock(f'blocks={blocks!r}; expected "best", "all" or a list of block numbers.')
    return tuple(sorted({known_block(block, available, "The vectors hold") for block in blocks}))
