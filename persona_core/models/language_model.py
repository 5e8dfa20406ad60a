"""A language model with its tokenizer, chat format and blocks."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from persona_core.errors import PromptError, SettingError
from persona_core.models.blocks import Blocks, unwrap
from persona_core.models.chat import ChatFormat
from persona_core.models.origin import ends_of
from persona_core.utils.hub import public_name

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class LanguageModel:
    """A model with its tokenizer, its chat format and its blocks. Nothing here changes its weights or modules.

    Attributes:
        model: the transformers model, or the PEFT wrapper around one, in eval mode.
        tokenizer: its tokenizer.
        chat: renders conversations to ids.
        blocks: the decoder's blocks, verified.
        name, revision, adapter, adapter_revision: where it was loaded from, for provenance.
        eos_ids: every id that ends a reply.
        context_length: positions that the model can read; None if unbounded.
        forward_arguments: names that the model's forward accepts.
        static_cache: generate with a static key-value cache, on a GPU as one CUDA graph; see `load_model`.
        gguf: of a model read from a GGUF file: "file", "quantization" and "sha256".
        converted_from: of a model whose weights were converted from a GGUF file, as `persona publish` does: "file" and
            "sha256". Vectors that were made on the file know the model by it.
        engine: what runs the model, a `persona_core.inference.engine.Engine`; None: transformers, in this process.
    """

    model: Any
    tokenizer: PreTrainedTokenizerBase
    chat: ChatFormat
    blocks: Blocks
    name: str
    revision: str | None
    adapter: str | None
    adapter_revision: str | None
    eos_ids: frozenset[int]
    context_length: int | None
    forward_arguments: frozenset[str]
    static_cache: bool = False
    gguf: Mapping[str, str] | None = None
    converted_from: Mapping[str, str] | None = None
    engine: Any = None

    def __repr__(self) -> str:
        names = f"{self.writer_name}{f' at {self.revision}' if self.revision else ''}"
        shape = f"{len(self.blocks)} blocks × {self.blocks.d_model}"
        dtype = ", ".join(self.record[k] for k in ("dtype", "quantization") if k in self.record)
        return f"LanguageModel({names}, {shape}, {dtype}, {self.device})"

    @property
    def writer_name(self) -> str:
        """The model's name as a writer: its adapter is part of it, the path to a folder is not."""
        return self._written_as(self.name)

    @property
    def writer_names(self) -> tuple[str, ...]:
        """`writer_name`; for weights that were converted from a GGUF file also the name that the file writes under."""
        origin = self.converted_from
        return (self.writer_name, *([] if origin is None else [self._written_as(origin["file"])]))

    def _written_as(self, name: str) -> str:
        return " + ".join(map(public_name, (name,) if self.adapter is None else (name, self.adapter)))

    @property
    def record(self) -> dict[str, Any]:
        """What readings of this model depend on, as plain values."""
        quantized = getattr(unwrap(self.model).config, "quantization_config", None)
        return self._record([] if quantized is None else [str(quantized.quant_method) + _bits(quantized)])

    def _record(self, quantized: Sequence[str]) -> dict[str, Any]:
        steps = [*([] if self.gguf is None else [self.gguf["quantization"]]), *quantized]
        return {
            "name": public_name(self.name),
            "revision": self.revision,
            "adapter": None if self.adapter is None else public_name(self.adapter),
            "adapter_revision": self.adapter_revision,
            "template_fingerprint": self.chat.fingerprint,
            "dtype": str(self.dtype).removeprefix("torch."),
            **({"quantization": ", ".join(steps)} if steps else {}),
            **({} if self.gguf is None else {"gguf": {k: self.gguf[k] for k in ("file", "sha256")}}),
            **({} if self.converted_from is None else {"converted_from": dict(self.converted_from)}),
        }

    @property
    def versions(self) -> dict[str, str]:
        """Versions of the libraries that run the model."""
        import transformers

        return {"torch": str(torch.__version__), "transformers": transformers.__version__}

    @property
    def identity(self) -> dict[str, Any]:
        """`record` and "weights", 16 hex digits that differ between models in folders of the same name.

        They cover the first and last 8 numbers of every weight, an adapter's too, except for offloaded weights.
        """
        digest = hashlib.sha256()
        for name, weight in self.model.named_parameters():
            if not weight.is_meta:
                digest.update(name.encode() + ends_of(weight))
        return {**self.record, "weights": digest.hexdigest()[:16]}

    @property
    def device(self) -> torch.device:
        """The device of the token ids."""
        return self.model.get_input_embeddings().weight.device

    def last_logits(self, n: int) -> dict[str, int]:
        """Arguments of a forward whose logits are wanted at the last `n` tokens only; none where it computes all."""
        return {"logits_to_keep": n} if "logits_to_keep" in self.forward_arguments else {}

    @property
    def dispatched(self) -> bool:
        """Whether accelerate moves weights or states between devices around each module's forward."""
        return bool(getattr(self.model, "hf_device_map", None))

    @property
    def dtype(self) -> torch.dtype:
        return self.model.get_input_embeddings().weight.dtype

    def refuse_training(self) -> None:
        """Refuse a model in training mode, where dropout changes every reading.

        Raises:
            SettingError.
        """
        if self.model.training:
            raise SettingError(f"{self.name!r} is in training mode, where dropout is active; call model.eval() first.")

    @property
    def why_not_finite(self) -> str:
        """Likely cause of a NaN or infinite number, and the remedy: the end of an error message."""
        if self.dtype == torch.float16:
            return "float16 overflows on some models: load it with dtype='bfloat16' or 'float32'."
        return "Its weights may hold NaN."

    def check_ids(self, ids: Sequence[int]) -> None:
        """Refuse a text that the model cannot read.

        Raises:
            PromptError: no token, or one without an embedding.
        """
        if not ids:
            raise PromptError("The text has no tokens.")
        size = self.vocabulary_size
        wrong = next((i for i in ids if not 0 <= i < size), None)
        if wrong is not None:
            raise PromptError(
                f"Token {wrong} has no embedding: {self.name!r} has {size}. If tokens were added to "
                "the tokenizer, call model.resize_token_embeddings(len(tokenizer))."
            )

    @property
    def vocabulary_size(self) -> int:
        """Rows of the embedding table: every valid token id is below this."""
        return int(self.model.get_input_embeddings().weight.shape[0])


def _bits(quantized: Any) -> str:
    return "".join(f", {n} bits" for n in (4, 8) if getattr(quantized, f"load_in_{n}bit", False))
