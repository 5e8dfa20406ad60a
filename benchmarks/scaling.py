"""What reading costs as it grows: traits, blocks, tokens before, prompts at once."""

from __future__ import annotations

from typing import Any

from benchmarks.measuring import ratio, stepwise
from benchmarks.models import directions, prompts, twin
from benchmarks.speed import run_of
from persona_core.inference.sampling import Sampling
from persona_core.models.loading import LanguageModel

STEPS = 48


def curves(lm: LanguageModel) -> dict[str, Any]:
    """Ratio of a step with reading to one without, along each of four axes."""
    everywhere = directions(lm)
    n = len(lm.blocks)
    return {
        "traits": [_at(lm, k, directions(lm, k), 1, 24) for k in (1, 8, 64, 256, 1000)],
        "blocks": [_at(lm, k, {b: everywhere[b] for b in range(n - k, n)}, 1, 24) for k in (1, n // 4, n // 2, n)],
        "tokens before": [_at(lm, k, everywhere, 1, k) for k in (32, 256, 1024, 2048)],
        "prompts at once": [_at(lm, k, everywhere, k, 24) for k in (1, 4, 16, 32)],
    }


def _at(lm: LanguageModel, x: int, read: dict[int, Any], batch: int, n_prompt: int) -> dict[str, Any]:
    ids, sampling = prompts(batch, n_prompt, n_prompt + 1), Sampling(STEPS, temperature=1.0)
    seconds = stepwise(
        {
            "plain": run_of(twin(lm), ids, sampling, {}).forwards,
            "reading": run_of(twin(lm), ids, sampling, read).forwards,
        }
    )
    return {"x": x, **ratio(seconds["reading"], seconds["plain"]).to_dict()}
