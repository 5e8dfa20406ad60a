"""The GPU suite: models of real shapes in bfloat16, random weights. Each model is freed before the next one is made."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from benchmarks import speed
from benchmarks.measuring import in_rounds, now, ratio
from benchmarks.models import directions, prompts, shaped
from persona_core.inference.decode import decode
from persona_core.inference.hooks import ResidualTap
from persona_core.inference.sampling import Sampling
from persona_core.models.language_model import LanguageModel

N_NEW, ROUNDS = 128, 5
_held: dict[str, LanguageModel] = {}


def cases() -> dict[str, Callable[[], dict[str, Any]]]:
    """The cases, one model at a time."""
    if not torch.cuda.is_available():
        raise SystemExit("The suite gpu needs a CUDA GPU; none was found.")
    found: dict[str, Callable[[], dict[str, Any]]] = {
        "texts/Qwen2.5-1.5B": lambda: speed.given_texts(_model("Qwen2.5-1.5B"), 500, 2)
    }
    for shape in ("Qwen2.5-1.5B", "Llama-3.1-8B", "Gemma-2-9B"):
        found[f"same/{shape}"] = lambda s=shape: same(_model(s))  # type: ignore[misc]
        found[f"bound/{shape}"] = lambda s=shape: bound(_model(s))  # type: ignore[misc]
        for batch in (1, 32):
            found[f"live/{shape}/{batch}"] = lambda s=shape, b=batch: speed.live_reading(_model(s), b, N_NEW)  # type: ignore[misc]
        found[f"memory/{shape}"] = lambda s=shape: memory(_model(s))  # type: ignore[misc]
    found["mixed/Gemma-2-9B"] = lambda: speed.mixed_lengths(_model("Gemma-2-9B"), 128, 32, 160, 64, 1)
    return found


def _model(name: str) -> LanguageModel:
    if name not in _held:
        _held.clear()
        gc.collect()
        torch.cuda.empty_cache()
        _held[name] = replace(shaped(name), static_cache=True)  # opt-in: this suite is what measures it
    return _held[name]


def bound(lm: LanguageModel) -> dict[str, Any]:
    """Writing at batch 1 with all blocks read: share of what the memory's bandwidth allows, and eager `generate`.

    The bound is the time to read all weights that a token needs once, at the bandwidth that a product of a large matrix
    and a vector reaches in the same run.
    """
    ids, read = prompts(1), directions(lm)

    def ours(_: int) -> None:
        speed.run_of(lm, ids, Sampling(N_NEW, temperature=0), read).finish()

    def eager(_: int) -> None:
        speed.generate(lm, ids, N_NEW)

    seconds = in_rounds({"ours": ours, "generate": eager}, ROUNDS)
    weights = sum(p.numel() * p.element_size() for p in lm.model.parameters())
    if not lm.model.config.tie_word_embeddings:  # a row of the embeddings is read, not all of them
        table = lm.model.get_input_embeddings().weight
        weights -= table.numel() * table.element_size()
    bandwidth = _bandwidth()
    steps = [s / N_NEW for s in seconds["ours"]]
    return {
        "share": ratio([weights / bandwidth] * len(steps), steps).to_dict(),
        "generate_over_ours": ratio(seconds["generate"], seconds["ours"]).to_dict(),
        "step_ms": round(1000 * float(np.median(steps)), 2),
        "weights_gb": round(weights / 1e9, 2),
        "bandwidth_gb_s": round(bandwidth / 1e9),
    }


@torch.inference_mode()
def _bandwidth() -> float:
    """Bytes per second of a bfloat16 matrix-vector product, the best of several."""
    matrix = torch.empty(2**17, 2**13, dtype=torch.bfloat16, device="cuda").fill_(0.01)  # 2 GiB
    vector = torch.ones(2**13, dtype=torch.bfloat16, device="cuda")
    best = float("inf")
    for _ in range(10):
        started = now()
        torch.mv(matrix, vector)
        best = min(best, now() - started)
    return matrix.numel() * 2 / best


def same(lm: LanguageModel) -> dict[str, Any]:
    """Tokens and readings with the static cache against those with the dynamic one, batch 4, greedy."""
    ids, read = prompts(4, 16, 48), directions(lm)

    def run(static_cache: bool) -> tuple[list[list[int]], np.ndarray]:
        replies: list[list[int]] = [[] for _ in ids]
        values: list[np.ndarray] = []
        with ResidualTap(lm.blocks, read) as tap:
            for forward in decode(
                replace(lm, static_cache=static_cache), ids, Sampling(48, temperature=0), range(4), tap
            ):
                if forward.token_ids is None or forward.reading is None:
                    continue
                for row, token in zip(forward.rows, forward.token_ids, strict=True):
                    replies[row].append(token)
                values.append(forward.reading.raw[:, 0].float().cpu().numpy())
        return replies, np.stack(values)

    (tokens, raw), (wanted, plain) = run(True), run(False)
    # Rounding in bfloat16 may decide between two tokens of about the same score; from then on the texts differ.
    alike = [
        next((i for i, (a, b) in enumerate(zip(x, y, strict=True)) if a != b), len(x))
        for x, y in zip(tokens, wanted, strict=True)
    ]
    upto = min(alike)
    off = np.abs(raw[:upto] - plain[:upto]).max() / np.abs(plain[:upto]).max() if upto else float("nan")
    return {"same_tokens": alike, "of": 48, "largest_difference": float(off)}


def memory(lm: LanguageModel) -> dict[str, Any]:
    """Peak memory of writing 512 tokens with all blocks read, over the same without reading."""
    peaks = {}
    for way, read in (("plain", {}), ("read", directions(lm))):
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        speed.run_of(lm, prompts(1), Sampling(512, temperature=0), read).finish()
        peaks[way] = torch.cuda.max_memory_allocated()
    return {"plain_gb": round(peaks["plain"] / 1e9, 3), "more": round(peaks["read"] / peaks["plain"] - 1, 5)}
