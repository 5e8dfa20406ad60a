"""Other libraries for reading models, in a separate environment: their pins differ from ours.

    python -m venv peers && peers/bin/pip install -r requirements-dev.txt -r benchmarks/peers.txt
    peers/bin/python -m benchmarks.run --suite peers

Each reads the same directions at the same blocks and tokens of the same greedy reply; its numbers are checked against
ours.
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch

from benchmarks import speed
from benchmarks.models import SMALL, llama
from persona_core.models.language_model import LanguageModel

N_NEW, ROUNDS = 48, 6


def cases() -> dict[str, Callable[[], dict[str, Any]]]:
    """A case for each library and number of replies."""
    lacking = [name for name in ("nnsight", "transformer_lens") if importlib.util.find_spec(name) is None]
    if lacking:
        raise SystemExit(f"The suite peers needs {' and '.join(lacking)}, in a separate environment: {__doc__}")
    return {
        f"{name}/{batch}": lambda name=name, batch=batch: speed.peers(  # type: ignore[misc]
            llama(*SMALL), batch, N_NEW, ROUNDS, {name: WAYS[name]}
        )
        for name in WAYS
        for batch in (1, 16)
    }


def nnsight(lm: LanguageModel, ids: speed.Ids, n_new: int, read: dict[int, torch.Tensor]) -> np.ndarray:
    """The projection inside nnsight's trace of `generate`, saved at each step."""
    model = _nnsight(id(lm.model), lm)
    blocks = sorted(read)
    tokens = torch.tensor([list(row) for row in ids])
    with model.generate(tokens, max_new_tokens=n_new, do_sample=False) as tracer:
        found = [].save()  # type: ignore[attr-defined]
        for _ in tracer.iter[:n_new]:
            for block in blocks:
                output = model.model.layers[block].output
                states = output[0] if isinstance(output, tuple) else output
                found.append(states[:, -1].float() @ read[block])
    values = torch.stack(list(found)).view(n_new, len(blocks), len(ids), -1)  # [n_new, n_blocks, rows, n_traits]
    return values.permute(2, 3, 1, 0).detach().numpy()


@cache
def _nnsight(_: int, lm: LanguageModel) -> Any:
    from nnsight import TransformersModel

    return TransformersModel(lm.model, tokenizer=lm.tokenizer, task="text-generation")


def transformer_lens(lm: LanguageModel, ids: speed.Ids, n_new: int, read: dict[int, torch.Tensor]) -> np.ndarray:
    """`hook_resid_post` of each block while TransformerLens generates from the same weights."""
    bridge = _bridge(id(lm.model), lm)
    found: dict[int, list[torch.Tensor]] = {b: [] for b in read}

    def hook(block: int) -> Callable[..., None]:
        def collect(states: torch.Tensor, hook: Any) -> None:  # noqa: ARG001
            found[block].append(states[:, -1].float() @ read[block])

        return collect

    with bridge.hooks(fwd_hooks=[(f"blocks.{b}.hook_resid_post", hook(b)) for b in read]):
        bridge.generate(
            torch.tensor([list(row) for row in ids]), max_new_tokens=n_new, do_sample=False, stop_at_eos=False,
            verbose=False, prepend_bos=False, return_type="tokens",
        )  # fmt: skip
    values = torch.stack([torch.stack(found[b]) for b in sorted(found)])  # [n_blocks, n_new, rows, n_traits]
    return values.permute(2, 3, 0, 1).detach().numpy()


@cache
def _bridge(_: int, lm: LanguageModel) -> Any:
    from transformer_lens.model_bridge import TransformerBridge

    with tempfile.TemporaryDirectory() as folder:
        lm.model.config.save_pretrained(folder)
        return TransformerBridge.boot_transformers(folder, hf_model=lm.model, tokenizer=lm.tokenizer, device="cpu")


WAYS: dict[str, speed.Way] = {"nnsight": nnsight, "TransformerLens": transformer_lens}
