"""Tables of what `python -m benchmarks.engines` measured, and of larger models, worked out."""

from __future__ import annotations

from collections.abc import Callable

from persona_core.utils.markdown import table
from scripts.docs.speed import extra, say
from scripts.docs.stored import stored

# blocks, width, key-value heads x their width, parameters in billions, GPUs of 80 GB
LARGER = {
    "Llama-3.1-8B": (32, 4096, 8 * 128, 8.03, 1),
    "Llama-3.1-70B": (80, 8192, 8 * 128, 70.6, 4),
}
BANDWIDTH = 3.35e12
"""Bytes a second that one H100 SXM reads from its memory."""
TRAITS, REPLIES, CONTEXT = 8, 64, 2048


def agreement() -> str:
    found = stored("engines")["agreement"]
    names = {
        "float32": "vLLM and transformers, float32",
        "bfloat16": "vLLM and transformers, bfloat16",
        "rounding": "transformers, bfloat16 and float32",
    }
    rows = [(name, f"{found[key]['worst']:.1e}", f"{found[key]['rms']:.1e}") for key, name in names.items()]
    same = f"\nGreedy ids: {found['same_ids']} of {found['texts']} replies equal."
    return table(("projections of", "largest difference", "root mean square"), rows) + "\n" + same


def steps() -> str:
    measured = stored("engines")
    rows = [
        (
            f"{one['traits']} traits, {one['blocks']} of its blocks",
            f"{one['step_ms']:g} ms",
            extra(one["over_alone"]),
            one["over_alone"]["n"],
        )
        for one in measured["steps"].values()
    ]
    heads = ("read", f"step of vLLM alone, {measured['at_once']} replies", "extra time with reading", "steps")
    return table(heads, rows)


def runs() -> str:
    measured = stored("engines")["runs"]
    names = {
        "alone": "vLLM alone",
        "vllm": "vLLM, best blocks read",
        "transformers": "transformers, best blocks read",
    }
    rows = [
        (
            name,
            f"{measured[key]['tokens_per_second']:g}",
            say(measured[key]["over_alone"]) if "over_alone" in measured[key] else "1",
        )
        for key, name in names.items()
    ]
    heads = (f"whole runs, {measured['new_tokens']} new tokens", "tokens/s", "time over vLLM alone")
    return table(heads, rows)


def larger() -> str:
    rows = []
    for name, (blocks, width, cached, billions, gpus) in LARGER.items():
        weights = 2 * billions  # GB
        cache = REPLIES * CONTEXT * blocks * 2 * cached * 2 / 1e9
        step = 1e3 * weights * 1e9 / (gpus * BANDWIDTH)
        # Of each state: three reads or writes in bfloat16 for the sum, one in float32 and its read.
        moved = REPLIES * blocks * width * (3 * 2 + 2 * 4) + blocks * width * TRAITS * 4
        rows.append(
            (
                name,
                f"{weights:.0f} GB",
                f"{cache:.0f} GB",
                f"{gpus} × 80 GB",
                f"{step:.1f} ms",
                f"{1e3 * moved / BANDWIDTH:.2f} ms + {blocks * 5} kernels",
                f"{REPLIES * blocks * (TRAITS + 1) * 4 / 1e3:.0f} kB",
            )
        )
    heads = (
        "model", "weights", f"keys and values, {REPLIES} × {CONTEXT:,} tokens", "GPUs", "step, at least",
        "reading in it", "leaves the workers in it",
    )  # fmt: skip
    return table(heads, rows)


TABLES: dict[str, Callable[[], str]] = {
    "engines-agreement": agreement,
    "engines-steps": steps,
    "engines-runs": runs,
    "engines-larger": larger,
}
