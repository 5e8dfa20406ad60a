"""Write the figures of docs/performance.md from the results: no number in it is typed by hand.

python -m benchmarks.run --write            # rewrite
python -m benchmarks.performance_page       # exit 1 if the page is out of date
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.measuring import FEWEST
from benchmarks.speed import GENERATED
from scripts import PROJECT_ROOT

PAGE = PROJECT_ROOT / "docs" / "performance.md"
PICTURE = PROJECT_ROOT / "docs" / "images" / "scaling.png"
RESULTS = Path(__file__).parent / "results"
BEGIN, END = "<!-- figures: begin (python -m benchmarks.run --write) -->", "<!-- figures: end -->"
Figure = dict[str, Any]
SIZES = {"small": "12 x 512", "medium": "24 x 1,024"}
LIBRARIES = ("nnsight", "TransformerLens")
WAYS = {
    "output_hidden_states": "`generate` with `output_hidden_states`, projected at the end; 192 tokens",
    "item hook": "a hook on each block that fetches one number for each trait with `.item()`; 192 tokens",
    "nnsight": "nnsight 0.8.1, projected inside its trace; 48 tokens",
    "TransformerLens": "TransformerLens 4.3.0, `hook_resid_post`; 48 tokens",
}
COST = """\
Extra time of a step that reads all blocks over one of the same loop that reads nothing, the two taken in turn.
Not in it: the prefill, the copy of the numbers to the host when they are asked for, alarms (which look at each
token on the host). The interval is that of one run; another run differs by up to one percent."""
AGAINST_GENERATE = """\
8 traits at all blocks are read and brought to the host; `generate` reads nothing. Whole replies, prefill included. We
also read the state of the last token, which is a forward more: 1 % of 96 tokens, 0.4 % of 256. Greedy replies are the
same token for token. Where tokens are sampled (temperature 1), ours are drawn by one search in the summed
probabilities, which takes less than `torch.multinomial`: part of the gain is that."""
AGAINST_OTHERS = """\
12 x 512, 8 traits at all blocks, greedy, the last token's state included. Below 1 ours is faster. Each
way's numbers are within 1e-4 of ours, or there is no figure."""
MANY = "12 x 512. Below 1 ours is faster."
ON_GPU = """\
bfloat16, random weights. The bound is the time in which a token's weights are read once, at the bandwidth that
a matrix-vector product reaches in the same run; 1 is the best possible. `generate` is plain transformers,
reading nothing."""
NO_GPU = """\
Not measured yet: no GPU was at hand. The steps in fixed memory are tested on a CPU, where they give the tokens
and the numbers of the plain loop; recording them as a graph has not been run. What is asked of it: reading
within 2 % of a step, 70 % of the weight-bandwidth bound and three times the speed of `generate` at batch 1 on
Llama-3.1-8B and Gemma-2-9B shapes, 500 texts in a tenth of the time of one at a time. `python -m benchmarks.run
--suite gpu` measures it in under nine minutes."""


def write_page() -> None:
    """Make the page's figures and its plot anew."""
    old = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(with_figures(old), encoding="utf-8")
    curves = _load("speed_cpu")["cases"].get("scaling")
    if curves:
        for dark, picture in ((False, PICTURE), (True, PICTURE.with_name("scaling-dark.png"))):
            scaling_figure(curves, dark).write_image(picture, width=900, height=560, scale=2)


def with_figures(page: str) -> str:
    """The page with the text between the marks made anew."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{figures()}\n{END}{after}"


def figures() -> str:
    """Everything that was measured, as Markdown."""
    cpu, peers, gpu = (_load(f"speed_{suite}")["cases"] for suite in ("cpu", "peers", "gpu"))
    parts = [_cost(cpu), _over_generate(cpu), _over_others(cpu, peers), _many(cpu), _gpu(gpu), _rest(cpu)]
    return "\n\n".join([*parts, _machines({"CPU": cpu, "Other libraries": peers, "GPU": gpu})])


def _cost(cases: Figure) -> str:
    lines = []
    for size, words in SIZES.items():
        for traits, batch, target in ((8, 1, 1.02), (8, 16, 1.02), (1000, 1, 1.10)):
            found = cases.get(f"live/{size}/{batch}" if traits == 8 else f"thousand/{size}/{batch}")
            if found is None:
                continue
            ratio, per_second = found["over_plain"], batch * 1000 / found["step_ms"]
            extra = f"{_extra(ratio['value'])} [{_extra(ratio['low'])}, {_extra(ratio['high'])}] %"
            lines.append(
                f"| {traits:,} | {words} | {batch} | {per_second:.0f} | {extra} | {ratio['n']} "
                f"| ≤ {_extra(target)} % | {verdict(ratio, target)} |"
            )
    head = "traits | model | replies at once | tokens/s without | extra time | steps | target | "
    return _table("What reading costs", COST, head, lines)


def _over_generate(cases: Figure) -> str:
    lines = []
    for size, batch, n_new, temperature, _ in GENERATED:
        chosen = "sampled" if temperature else "greedy"
        found = cases.get(f"generate/{size}/{batch}/{n_new}/{chosen}")
        if found is not None:
            ratio = found["over_generate"]
            lines.append(f"| {SIZES[size]} | {batch} | {n_new} | {chosen} | {say(ratio)} | ≤ 1 | {verdict(ratio, 1)} |")
    head = "model | replies at once | new tokens | tokens are | time, ours / `generate` | target | "
    return _table("Reading, against `generate` without", AGAINST_GENERATE, head, lines)


def _over_others(cpu: Figure, peers: Figure) -> str:
    lines = []
    for way, words in WAYS.items():
        cells = []
        for batch in (1, 16):
            found = (peers if way in LIBRARIES else cpu).get(f"{way if way in LIBRARIES else 'peers/small'}/{batch}")
            ratio = None if found is None else found[f"ours_over {way}"]
            cells += ["not measured yet", ""] if ratio is None else [say(ratio), verdict(ratio, 1)]
        lines.append(f"| {words} | {' | '.join(cells)} |")
    head = "way | 1 reply at once | < 1 | 16 at once | < 1"
    return _table("Against other ways to read", AGAINST_OTHERS, head, lines)


def _many(cases: Figure) -> str:
    lines = []
    if (texts := cases.get("texts/small")) is not None:
        ratio = texts["over_one_at_a_time"]
        what = (
            "500 texts of 60 to 259 tokens, 8 traits at all blocks | one call of the model for each, its head included"
        )
        lines.append(f"| read {what} | {say(ratio)} | ≤ 0.65 | {verdict(ratio, 0.65)} |")
    if (mixed := cases.get("mixed/small")) is not None:
        ratio, tokens = mixed["over_static"], mixed["tokens"]
        what = f"200 replies of {tokens['mean']:.0f} tokens on average, {tokens['longest']} at most, nothing read"
        lines.append(f"| write {what} | `generate`, 16 at a time | {say(ratio)} | ≤ 0.65 | {verdict(ratio, 0.65)} |")
    pooled = _load("elicitation")["elicit_and_extract_over_alone"]
    quartiles = f"{pooled['median']:.3f} (quartiles {pooled['q25']:.3f} to {pooled['q75']:.3f})"
    lines.append(f"| elicit and extract | writing the same replies alone | {quartiles} | ≤ 1.05 | |")
    note = MANY
    if mixed is not None:
        note += (
            f" Of the 200 replies {100 * mixed['same_replies']:.0f} % are the same token for token, the others part "
            f"where rounding decides; {mixed['least_possible']:.2f} would be a batch in which no place is ever empty."
        )
    return _table("Many texts, many replies", note, "work | against | time, ours / theirs | target | ", lines)


def _gpu(cases: Figure) -> str:
    if not cases:
        return f"### On a GPU\n\n{NO_GPU}"
    lines = []
    for shape in ("Qwen2.5-1.5B", "Llama-3.1-8B", "Gemma-2-9B"):
        for batch in (1, 32):
            live, bound = cases.get(f"live/{shape}/{batch}"), cases.get(f"bound/{shape}") if batch == 1 else None
            extra = say(live["over_plain"]) if live else "not measured yet"
            share = f"{say(bound['share'])} of {bound['bandwidth_gb_s']} GB/s" if bound else ""
            faster = say(bound["generate_over_ours"]) if bound else ""
            lines.append(f"| {shape} | {batch} | {extra} | {share} | {faster} |")
    head = "shape | replies at once | step with reading / without (≤ 1.02) | share of the bound (≥ 0.70) | speed over "
    return _table("On a GPU", ON_GPU, head + "`generate` (≥ 3)", lines)


def _rest(cases: Figure) -> str:
    lines = []
    if (memory := cases.get("memory")) is not None:
        ratio = memory["over_plain"]
        what = (
            f"peak memory of monitoring 512 tokens at all blocks, 12 x 512, over {memory['plain_mb']:,.0f} MB without"
        )
        lines.append(f"| {what} | {say(ratio)} | < 1.01 | {verdict(ratio, 1.01)} |")
    if (start := cases.get("start")) is not None:
        lines.append(
            f"| `import persona_core`; torch is loaded when it is used | {start['import_s']:.3f} s | < 0.3 s | |"
        )
    scrubs = _load("page")["scrub"]
    for scrub, target in ((scrubs[0], 16), (scrubs[2], 33)):
        what = f"a step of the page's slider, 95th percentile, {scrub['tokens']:,} tokens x {scrub['traits']} traits"
        lines.append(f"| {what} | {scrub['p95_ms']} ms | ≤ {target} ms | |")
    return _table("Memory, start, page", "", "what | measured | target | ", lines)


def _table(title: str, note: str, head: str, lines: list[str]) -> str:
    rule = "|---" * (head.count("|") + 1) + "|"
    body = "\n".join([f"| {head}|" if head.endswith("| ") else f"| {head} |", rule, *lines])
    return "\n\n".join(part for part in (f"### {title}", note, body) if part)


def _machines(suites: Mapping[str, Figure]) -> str:
    lines = []
    for words, cases in suites.items():
        for on in {json.dumps(case["on"], sort_keys=True): case["on"] for case in cases.values()}.values():
            lines.append(f"{words}: {on['processor']}, {on['system']}, {on['versions']}.")
    return "\n".join(dict.fromkeys(lines))


def verdict(ratio: Figure, most: float) -> str:
    """Whether a target is met: by the whole interval, not by its middle."""
    if ratio["high"] <= most:
        return "met"
    return "missed" if ratio["low"] > most else "open"


def say(ratio: Figure) -> str:
    """A ratio with its interval, or with the range of its pairs where they are too few for one."""
    low, high = f"{ratio['low']:.3f}", f"{ratio['high']:.3f}"
    if ratio["n"] == 1:
        return f"{ratio['value']:.3f} (one pair)"
    if ratio["n"] < FEWEST:
        return f"{ratio['value']:.3f} ({ratio['n']} pairs: {low} to {high})"
    return f"{ratio['value']:.3f} [{low}, {high}]"


def _extra(ratio: float) -> str:
    """Percent above 1."""
    return f"{round(100 * (ratio - 1), 1) + 0.0:+.1f}"


AXES = {
    "traits": "traits read",
    "blocks": "blocks read",
    "tokens before": "tokens before",
    "prompts at once": "replies at once",
}


def scaling_figure(curves: Figure, dark: bool) -> Any:
    """One panel an axis: extra time of a step with reading over one without."""
    from plotly.subplots import make_subplots

    ink, line = ("#e4e8ee", "#7fb2ea") if dark else ("#1f2733", "#2f6fb5")
    figure = make_subplots(rows=2, cols=2, shared_yaxes=True, horizontal_spacing=0.06, vertical_spacing=0.2)
    for place, (axis, words) in enumerate(AXES.items()):
        points = curves[axis]
        at = {"row": place // 2 + 1, "col": place % 2 + 1}
        extra = [100 * (p["value"] - 1) for p in points]
        figure.add_scatter(
            x=[p["x"] for p in points],
            y=extra,
            error_y={
                "type": "data",
                "array": [100 * (p["high"] - p["value"]) for p in points],
                "arrayminus": [100 * (p["value"] - p["low"]) for p in points],
            },
            mode="markers",
            marker={"size": 8, "color": line},
            showlegend=False,
            **at,
        )
        ticks = [p["x"] for p in points]
        figure.update_xaxes(type="log", title=words, tickvals=ticks, ticktext=[f"{x:,}" for x in ticks], **at)
        figure.update_yaxes(rangemode="tozero", ticksuffix=" %", zeroline=True, zerolinecolor=ink, **at)
    figure.update_yaxes(title="extra time of a step", col=1)
    paper = {"paper_bgcolor": "#11161d", "plot_bgcolor": "#11161d"} if dark else {}
    figure.update_layout(
        template="plotly_dark" if dark else "plotly_white",
        margin={"l": 70, "r": 20, "t": 20, "b": 50},
        font={"size": 15, "color": ink},
        **paper,
    )
    return figure


def _load(name: str) -> Figure:
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"cases": {}}


if __name__ == "__main__":
    page = PAGE.read_text(encoding="utf-8")
    if page != with_figures(page):
        sys.exit("docs/performance.md is out of date; run python -m benchmarks.run --write")
