"""Tables of what `python -m benchmarks.run` and `python -m benchmarks.page` measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from benchmarks.measuring import MIN_PAIRS
from persona_core.utils.markdown import interval, table
from scripts.docs.stored import Figure, is_stored, stored

SIZES = {"small": "12 × 512", "medium": "24 × 1,024"}
SHAPES = ("Qwen2.5-1.5B", "Llama-3.1-8B", "Gemma-2-9B")
LIBRARIES = ("nnsight", "TransformerLens")
WAYS = {
    "output_hidden_states": "`generate` with `output_hidden_states`, projected at the end; 192 tokens",
    "item hook": "a hook on each block that fetches one number per trait with `.item()`; 192 tokens",
    "nnsight": "nnsight 0.8.1, projected inside its trace; 48 tokens",
    "TransformerLens": "TransformerLens 4.3.0, `hook_resid_post`; 48 tokens",
}


def cases(suite: str) -> dict[str, Any]:
    """What a suite measured; empty for one that has not run."""
    name = f"speed_{suite}"
    found: dict[str, Any] = stored(name)["cases"] if is_stored(name) else {}
    return found


def reading() -> str:
    """Extra time of a step that reads all blocks."""
    rows = []
    for size, model in SIZES.items():
        for traits, batch, target in ((8, 1, 1.02), (8, 16, 1.02), (1000, 1, 1.10)):
            found = cases("cpu").get(f"live/{size}/{batch}" if traits == 8 else f"thousand/{size}/{batch}")
            if found is not None:
                ratio, per_second = found["over_plain"], f"{batch * 1000 / found['step_ms']:.0f}"
                goal = (f"≤ {_extra(target)} %", verdict(ratio, target))
                rows.append((f"{traits:,}", model, batch, per_second, extra(ratio), ratio["n"], *goal))
    heads = ("traits", "model", "replies at once", "tokens/s without", "extra time", "steps", "target", "")
    return table(heads, rows)


def over_generate() -> str:
    """Whole replies, ours over transformers' `generate`."""
    rows = []
    for case, found in cases("cpu").items():
        if case.startswith("generate/"):
            _, size, batch, n_new, chosen = case.split("/")
            ratio = found["over_generate"]
            rows.append((SIZES[size], batch, n_new, chosen, say(ratio), "≤ 1", verdict(ratio, 1)))
    heads = ("model", "replies at once", "new tokens", "tokens are", "time, ours / `generate`", "target", "")
    return table(heads, rows)


def over_others() -> str:
    """The same readings, made in other ways and by other libraries."""
    rows = []
    for way, says in WAYS.items():
        cells: list[str] = []
        for batch in (1, 16):
            library = way in LIBRARIES
            found = cases("peers" if library else "cpu").get(f"{way if library else 'peers/small'}/{batch}")
            ratio = None if found is None else found[f"ours_over {way}"]
            cells += ["not measured yet", ""] if ratio is None else [say(ratio), verdict(ratio, 1)]
        rows.append((says, *cells))
    return table(("way", "1 reply at once", "< 1", "16 at once", "< 1"), rows)


def many() -> str:
    """Given texts, and replies of mixed length."""
    rows: list[tuple[str, ...]] = []
    if (texts := cases("cpu").get("texts/small")) is not None:
        ratio = texts["over_one_at_a_time"]
        work = "read 500 texts of 60 to 259 tokens, 8 traits at all blocks"
        rows.append((work, "one call of the model each, its head included", say(ratio), "≤ 0.65", verdict(ratio, 0.65)))
    if (mixed := cases("cpu").get("mixed/small")) is not None:
        ratio, tokens = mixed["over_static"], mixed["tokens"]
        work = f"write 200 replies of {tokens['mean']:.0f} tokens on average, {tokens['longest']} at most, reading none"
        rows.append((work, "`generate`, 16 at a time", say(ratio), "≤ 0.65", verdict(ratio, 0.65)))
    pooled = stored("elicitation")["elicit_and_extract_over_alone"]
    quartiles = f"{pooled['median']:.3f} (quartiles {pooled['q25']:.3f} to {pooled['q75']:.3f})"
    rows.append(("elicit and extract", "writing the same replies alone", quartiles, "≤ 1.05", ""))
    return table(("work", "against", "time, ours / theirs", "target", ""), rows)


def gpu() -> str:
    """The GPU suite; unmeasured cells say so."""
    rows, found = [], cases("gpu")
    for shape in SHAPES:
        for batch in (1, 32):
            live, bound = found.get(f"live/{shape}/{batch}"), found.get(f"bound/{shape}") if batch == 1 else None
            cells = (
                say(live["over_plain"]) if live else "not measured yet",
                f"{say(bound['share'])} of {bound['bandwidth_gb_s']} GB/s" if bound else "",
                say(bound["generate_over_ours"]) if bound else "",
            )
            rows.append((shape, batch, *cells))
    step, share = "step with reading / without (≤ 1.02)", "share of the bound (≥ 0.70)"
    return table(("shape", "replies at once", step, share, "speed over `generate` (≥ 3)"), rows)


def rest() -> str:
    """Memory, start, and the page's slider."""
    rows: list[tuple[str, ...]] = []
    if (memory := cases("cpu").get("memory")) is not None:
        ratio = memory["over_plain"]
        what = f"peak memory while monitoring 512 tokens at all blocks, 12 × 512, over {memory['plain_mb']:,.0f} MB"
        rows.append((f"{what} without", say(ratio), "< 1.01", verdict(ratio, 1.01)))
    if (start := cases("cpu").get("start")) is not None:
        what = "`import persona_core`; torch is loaded when it is used"
        rows.append((what, f"{start['import_s']:.3f} s", "< 0.3 s", ""))
    scrubs = stored("page")["scrub"]
    for scrub, target in ((scrubs[0], 16), (scrubs[2], 33)):
        what = f"a step of the page's slider, 95th percentile, {scrub['tokens']:,} tokens × {scrub['traits']} traits"
        rows.append((what, f"{scrub['p95_ms']} ms", f"≤ {target} ms", ""))
    return table(("what", "measured", "target", ""), rows)


def machines() -> str:
    """What each suite ran on."""
    rows = []
    for says, suite in (("CPU", "cpu"), ("other libraries", "peers"), ("GPU", "gpu")):
        for on in {json.dumps(case["on"], sort_keys=True): case["on"] for case in cases(suite).values()}.values():
            rows.append((says, on["processor"], on["system"], on["versions"]))
    return table(("suite", "processor", "system", "versions"), rows)


def verdict(ratio: Figure, target: float) -> str:
    """Whether a target is met: by the whole interval, not by its middle."""
    if ratio["high"] <= target:
        return "met"
    return "missed" if ratio["low"] > target else "open"


def say(ratio: Figure) -> str:
    """A ratio with its interval, or with the range of its pairs where there are too few for an interval."""
    low, high = f"{ratio['low']:.3f}", f"{ratio['high']:.3f}"
    if ratio["n"] == 1:
        return f"{ratio['value']:.3f} (one pair)"
    if ratio["n"] < MIN_PAIRS:
        return f"{ratio['value']:.3f} ({ratio['n']} pairs: {low} to {high})"
    return f"{ratio['value']:.3f} [{low}, {high}]"


def extra(ratio: Figure) -> str:
    """Percent above 1, with its interval."""
    return f"{_extra(ratio['value'])} [{_extra(ratio['low'])}, {_extra(ratio['high'])}] %"


def _extra(ratio: float) -> str:
    return f"{round(100 * (ratio - 1), 1) + 0.0:+.1f}"


def real_app() -> str:
    """What the real model costs in the app."""
    found = stored("real_app")
    each, speed = found["streaming"]["tokens_per_second"], interval(found["streaming"]["speed"], 2)
    return (
        f"A reply of SmolLM2-135M-Instruct streams to the page at {each['streamed']:g} tokens a second; `generate` "
        f"alone writes {each['plain']:g}: {speed} of its speed. A process that holds both models, with one copy of the "
        f"weights, and has written with each takes {found['peak_mb'] / 1000:.1f} GB at most."
    )


def threads() -> str:
    """A reply with one thread and with two, on an idle machine and on a busy one."""
    names = {"real": "SmolLM2-135M-Instruct", "demo": "the toy"}
    rows = [
        (names[model], machine, *(f"{one['seconds'][n]:g} s" for n in ("1", "2")), interval(one["two_over_one"], 2))
        for machine, by_model in stored("real_app")["threads"].items()
        for model, one in by_model.items()
    ]
    return table(("model", "machine", "one thread", "two threads", "two over one"), rows)


def serve_load() -> str:
    """Many clients of `persona serve` at once."""
    found = stored("serve_load")
    sizes = found["batch_sizes"]
    first = next(iter(sizes.values()))
    memory, counts = first["rss_mb"], first["counts"]
    refused = sum(n for name, n in counts.items() if name.startswith("garbage"))
    rows = [
        (
            size,
            f"{one['seconds']:g} s",
            f"{one['counts'].get('equal', 0)}",
            f"{one['tokens_per_second']:g}",
            *(f"{one['seconds_to_first_token'][q]:g} s" for q in ("0.5", "0.95")),
            *(f"{one['seconds_per_reply'][q]:g} s" for q in ("0.5", "0.95")),
        )
        for size, one in sizes.items()
    ]
    wrong = sum(
        n for one in sizes.values() for name, n in one["counts"].items() if name.startswith(("mixed", "failed"))
    )
    heads = (
        "written at once",
        "for",
        "replies",
        "tokens a second",
        "first token: median",
        "95 %",
        "reply: median",
        "95 %",
    )
    return (
        f"{found['clients']} clients of the toy at once, on two CPU threads that other work kept busy (load average "
        f"{first['load_average_before']:g} before it), beside {counts['vanished']} clients that vanished and {refused} "
        f"requests of garbage, all of which were refused. Of the replies {wrong} were lost, or differed in a token "
        f"from what the monitor writes by itself with the same seed. The server took {memory['half']:.0f} MB half way "
        f"through, and {memory['end']:.0f} MB at the end ({memory['mb_per_minute_in_second_half']:+.1f} MB a minute). "
        "Written together replies are faster than one after the other, which is a queue:\n\n"
    ) + table(heads, rows)


TABLES: dict[str, Callable[[], str]] = {
    "speed-real-app": real_app,
    "speed-threads": threads,
    "speed-reading": reading,
    "speed-over-generate": over_generate,
    "speed-over-others": over_others,
    "speed-many": many,
    "speed-gpu": gpu,
    "speed-rest": rest,
    "speed-machines": machines,
    "serve-load": serve_load,
}
