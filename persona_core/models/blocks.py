"""Find the blocks of a decoder, and verify what the rest of the library assumes about them.

Blocks are numbered from 0, in the order in which they run. "State of block b at token t" is the output of block b
after the model has read token t: `[rows, tokens, d_model]`, before the final norm, before the next block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from persona_core.errors import UnknownBlock, UnsupportedModel
from persona_core.utils.checks import known_block

# The attribute that holds a decoder's blocks: Llama and most others; GPT-2, GPT-J, Falcon, Bloom; MPT.
BLOCK_LISTS = ("layers", "h", "blocks")


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


def block_output(output: Any) -> torch.Tensor:
    """The residual stream in a block's output: the tensor itself, or the first item of a tuple.

    Most families return a tensor; GPT-J, Falcon, Bloom and MPT return a tuple.
    """
    return output[0] if isinstance(output, tuple) else output


def find_blocks(model: Any) -> Blocks:
    """Find the blocks of a causal language model and verify them with one forward of two tokens.

    Each block must run exactly once, in order, return `[rows, tokens, d_model]`, and pass its output unchanged to the
    next block.

    Raises:
        UnsupportedModel: an encoder, a state-space or recurrent model, states that are not 3-D, or no block list.
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
    decoder = base.get_decoder()
    modules = next((getattr(decoder, attr) for attr in BLOCK_LISTS if _is_list(getattr(decoder, attr, None))), None)
    if modules is None:
        raise UnsupportedModel(
            f"No block list found in {type(decoder).__name__} of {name} (looked for {', '.join(BLOCK_LISTS)})."
        )
    text_config = config.get_text_config(decoder=True)
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


def _is_list(value: object) -> bool:
    return isinstance(value, nn.ModuleList) and len(value) > 0


def _verify(model: Any, blocks: Blocks, name: str) -> None:
    """One forward of two tokens with plain hooks, removed at once.

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
    was_training = model.training
    try:
        model.eval()  # with dropout, a block's output would differ from the next block's input
        with torch.no_grad():
            model(input_ids=torch.tensor([[0, 1]], device=device), use_cache=False)
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise UnsupportedModel(f"{name}: a forward of two tokens failed, {type(error).__name__}: {error}") from error
    finally:
        for handle in handles:
            handle.remove()
        model.train(was_training)

    if [module for module, _ in outputs] != list(blocks.modules):
        raise UnsupportedModel(f"{name}: its {len(blocks)} blocks do not each run once, in order.")
    for index, (_, state) in enumerate(outputs):
        if not isinstance(state, torch.Tensor) or tuple(state.shape) != (1, 2, blocks.d_model):
            shape = tuple(getattr(state, "shape", ()))
            raise UnsupportedModel(
                f"{name}: block {index} returns states of shape {shape}, not [rows, tokens, d_model] = "
                f"(1, 2, {blocks.d_model}). Models that keep several streams (such as Gemma 3n) cannot be read."
            )
    for index in range(len(blocks) - 1):
        if not torch.equal(_cpu(outputs[index][1]), _cpu(inputs[index + 1])):
            raise UnsupportedModel(
                f"{name}: the output of block {index} is not the input of block {index + 1}; "
                "something outside the blocks changes the residual stream."
            )


def _cpu(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to("cpu")  # device_map="auto" puts neighbours on different devices


def resolve_blocks(blocks: str | Sequence[int], best: dict[str, int], available: Sequence[int]) -> tuple[int, ...]:
    """Turn "best", "all" or a list of block numbers into a sorted tuple of blocks that the vectors hold."""
    if blocks == "all":
        return tuple(available)
    if blocks == "best":
        if not best:
            raise UnknownBlock('The vectors have no best block; pass blocks="all" or a list of block numbers.')
        return tuple(sorted(set(best.values())))
    if isinstance(blocks, (str, int)) or not blocks:
        raise UnknownBlock(f'blocks={blocks!r}; expected "best", "all" or a list of block numbers.')
    return tuple(sorted({known_block(block, available, "The vectors hold") for block in blocks}))
