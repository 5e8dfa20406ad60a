"""What reading costs on vLLM, and how fast both engines are: SmolLM2-135M-Instruct on the CPU.

    make weights test-engines
    .venv-engines/bin/python -m benchmarks.engines

Writes `benchmarks/results/engines.json`; about eight minutes on two cores. Step by step: two vLLM engines advance
alternately, one that nobody reads and one with 8 traits read, 32 replies at once; the prefill is left out. Whole runs:
vLLM alone, vLLM with reading and transformers with reading answer the same prompts in turn, with prefill. Agreement:
all read the same texts. "Alone" is the same build of vLLM with the same settings, and without our part in its workers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.common import real_weights, save
from benchmarks.measuring import in_rounds, machine, ratio, stepwise
from benchmarks.speed import run_of
from persona_core.elicitation.prompts import load_prompts
from persona_core.inference.generation import GenerationRun
from persona_core.inference.sampling import Sampling
from persona_core.models.language_model import LanguageModel
from persona_core.models.loading import load_model
from persona_core.monitor.monitor import PersonaMonitor
from persona_core.vectors.vectors import PersonaVectors

VECTORS = "artifacts/persona-vectors-smollm2-135m"
N_STEPS, ROUNDS = 64, 6
AT_ONCE, N_NEW = 32, 24
OPTIONS = {"kv_cache_memory_bytes": 2**30}

Ids = Sequence[Sequence[int]]


def main() -> int:
    path, vectors = real_weights(), PersonaVectors.from_pretrained(VECTORS)
    prompts = [p.messages for p in load_prompts(["all"])][:AT_ONCE]
    # transformers first: vLLM changes classes of transformers that it uses itself
    lms = {f"transformers/{dtype}": load_model(path, dtype=dtype, device="cpu") for dtype in ("float32", "bfloat16")}
    lms |= {
        f"vllm/{dtype}": load_model(path, dtype=dtype, engine="vllm", engine_options=OPTIONS)
        for dtype in ("float32", "bfloat16")
    }
    monitors = {b: PersonaMonitor(lms["vllm/float32"], vectors, b) for b in ("best", "all")}
    alone = plain_engine(lms["vllm/float32"])
    ids = [lms["vllm/float32"].chat.render(messages).token_ids for messages in prompts]
    found = {
        "machine": machine(),
        "vllm": lms["vllm/float32"].engine.version,
        "at_once": AT_ONCE,
        "steps": {name: step_by_step(alone, monitor, ids) for name, monitor in monitors.items()},
        "runs": whole_runs(alone, monitors["best"], lms["transformers/float32"], ids),
        "agreement": agreement({name: PersonaMonitor(lm, vectors, "all") for name, lm in lms.items()}, prompts),
    }
    save("engines", found)
    return 0


def plain_engine(lm: LanguageModel) -> Any:
    """vLLM with the settings of ours, and nothing of ours in it."""
    from persona_core.inference.vllm import engine as vllm_engine

    ours = {"worker_extension_cls", "logits_processors"}
    fixed = {name: value for name, value in vllm_engine.FIXED.items() if name not in ours}
    return vllm_engine.start({**lm.engine.arguments, **fixed})


def written_by(alone: Any, ids: Ids, n_new: int) -> Iterator[None]:
    """Greedy replies of one length by vLLM alone, a step at a time."""
    from vllm import SamplingParams

    params = SamplingParams(max_tokens=n_new, temperature=0.0, ignore_eos=True, detokenize=False)
    for number, row in enumerate(ids):
        alone.add_request(str(number), {"prompt_token_ids": list(row)}, params)
    while alone.has_unfinished_requests():
        alone.step()
        yield


def run_by(lm: LanguageModel, directions: Any, ids: Ids, n_new: int) -> GenerationRun:
    """The same replies by one of our engines, read."""
    return run_of(replace(lm, eos_ids=frozenset()), ids, Sampling(n_new, temperature=0.0), directions)


def step_by_step(alone: Any, monitor: PersonaMonitor, ids: Ids) -> dict[str, Any]:
    """The time of a step with reading over that of one without."""

    def plain() -> Iterator[bool]:
        for _ in written_by(alone, ids, N_STEPS):
            yield True

    def reading() -> Iterator[bool]:
        for step in run_by(monitor.lm, monitor._directions, ids, N_STEPS).steps():
            if step.token_ids is not None:
                yield True

    seconds = stepwise({"alone": plain, "reading": reading}, warm_up=8)
    return {
        "blocks": len(monitor.blocks),
        "traits": len(monitor.vectors.traits),
        "step_ms": round(1000 * float(np.median(seconds["alone"])), 2),
        "over_alone": ratio(seconds["reading"], seconds["alone"]).to_dict(),
    }


def whole_runs(alone: Any, monitor: PersonaMonitor, reference: LanguageModel, ids: Ids) -> dict[str, Any]:
    """Tokens a second of whole runs, prefill included, and their times over those of vLLM alone."""

    def read_by(lm: LanguageModel) -> Callable[[int], None]:
        return lambda _: run_by(lm, monitor._directions, ids, N_NEW).finish()

    ways: dict[str, Callable[[int], Any]] = {
        "alone": lambda _: list(written_by(alone, ids, N_NEW)),
        "vllm": read_by(monitor.lm),
        "transformers": read_by(reference),
    }
    seconds = in_rounds(ways, ROUNDS)
    found: dict[str, Any] = {
        name: {"tokens_per_second": round(len(ids) * N_NEW / float(np.median(times)), 1)}
        for name, times in seconds.items()
    }
    for name in ("vllm", "transformers"):
        found[name]["over_alone"] = ratio(seconds[name], seconds["alone"]).to_dict()
    return found | {"new_tokens": N_NEW}


def agreement(monitors: dict[str, PersonaMonitor], prompts: Sequence[Any]) -> dict[str, Any]:
    """How far apart the engines read the same texts, in all blocks, and how far bfloat16 is from float32."""
    texts = monitors["transformers/float32"].generate_batch(prompts, max_new_tokens=N_NEW, temperature=0.0)
    again = monitors["vllm/float32"].generate_batch(prompts, max_new_tokens=N_NEW, temperature=0.0)
    read = {name: [t.raw for t in monitor.read_batch(texts)] for name, monitor in monitors.items()}

    def apart(first: str, second: str) -> dict[str, float]:
        pairs = list(zip(read[first], read[second], strict=True))
        worst = max(float((np.abs(a - b).max(-1) / np.abs(b).max(-1)).max()) for a, b in pairs)
        rms = max(float(np.sqrt(((a - b) ** 2).mean() / (b**2).mean())) for a, b in pairs)
        return {"worst": float(f"{worst:.2g}"), "rms": float(f"{rms:.2g}")}

    return {
        "texts": len(texts),
        "same_ids": sum(a.token_ids == b.token_ids for a, b in zip(texts, again, strict=True)),
        "float32": apart("vllm/float32", "transformers/float32"),
        "bfloat16": apart("vllm/bfloat16", "transformers/bfloat16"),
        "rounding": apart("transformers/bfloat16", "transformers/float32"),
    }


if __name__ == "__main__":
    raise SystemExit(main())
