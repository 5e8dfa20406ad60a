"""Write the figures of docs/performance.md from the results: no number in it is typed by hand.

python -m benchmarks.run --write            # rewrite
python -m benchmarks.performance_page       # exit 1 if the page is out of date
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from scripts import PROJECT_ROOT

PAGE = PROJECT_ROOT / "docs" / "performance.md"
PICTURE = PROJECT_ROOT / "docs" / "images" / "scaling.png"
RESULTS = Path(__file__).parent / "results"
BEGIN, END = "<!-- figures: begin (python -m benchmarks.run --write) -->", "<!-- figures: end -->"
Figure = dict[str, Any]
SIZES = {"small": "12 blocks x 512", "medium": "24 blocks x 1,024"}
# Replies at once, new tokens: reading the last one as well is a forward more, 1 % of 96 and 0.4 % of 256.
GENERATED = ((1, 96), (1, 256), (16, 96))


def write_page() -> None:
    """Make the page's figures and its plot anew."""
    old = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(with_figures(old), encoding="utf-8")
    curves = _load("speed_cpu")["cases"].get("scaling")
    if curves:
        scaling_figure(curves).write_image(PICTURE, width=1100, height=300, scale=2)


def with_figures(page: str) -> str:
    """The page with the text between the marks made anew."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{figures()}\n{END}{after}"


def figures() -> str:
    """Everything that was measured, as Markdown."""
    suites = {suite: _load(f"speed_{suite}") for suite in ("cpu", "peers", "gpu")}
    parts = [_targets(suites)]
    for suite, words in (("cpu", "CPU"), ("peers", "Other libraries"), ("gpu", "GPU")):
        known = suites[suite]["machine"]
        if known:
            versions = f"torch {known['torch']}, transformers {known['transformers']}"
            parts.append(f"{words}: {known['processor']}, {known['system']}, {versions}.")
    return "\n\n".join(parts)


def rows() -> Iterator[tuple[str, str, str, str, str]]:
    """What is asked for: words, target, suite, case, key of the case's result."""
    for size, words in SIZES.items():
        for batch in (1, 16):
            what = f"reading 8 traits at all blocks, over the same loop without reading; CPU, {words}, batch {batch}"
            yield what, "≤ 1.02", "cpu", f"live/{size}/{batch}", "over_plain"
    for size, words in SIZES.items():
        for batch, n_new in GENERATED:
            what = f"the same, over `generate` without any reading; CPU, {words}, batch {batch}, {n_new} new tokens"
            yield what, "≤ 1.00", "cpu", f"generate/{size}/{batch}/{n_new}", "over_generate"
    for size, words in SIZES.items():
        what = f"1,000 traits at all blocks, over the same loop without reading; CPU, {words}"
        yield what, "≤ 1.10", "cpu", f"thousand/{size}/1", "over_plain"
    for batch in (1, 16):
        at = f"the same work; CPU, batch {batch}"
        small = f"peers/small/{batch}"
        yield f"over `output_hidden_states`, {at}", "< 1", "cpu", small, "ours_over output_hidden_states"
        yield f"over a hook with `.item()` for each trait, {at}", "< 1", "cpu", small, "ours_over item hook"
        for other in ("nnsight", "TransformerLens"):
            yield f"over {other}, {at}", "< 1", "peers", f"{other}/{batch}", f"ours_over {other}"
    what = "500 given replies, over one at a time with `output_hidden_states`"
    yield f"reading {what}; CPU", "≤ 0.65", "cpu", "texts/small", "over_one_at_a_time"
    yield f"reading {what}; GPU", "≤ 0.1", "gpu", "texts/Qwen2.5-1.5B", "over_one_at_a_time"
    what = "200 replies of mixed length, over `generate` on batches of 16"
    yield f"{what}; CPU", "≤ 0.65", "cpu", "mixed/small", "over_static"
    for batch in (1, 32):
        what = f"reading 8 traits at all blocks, over the same loop without; GPU, Llama-3.1-8B shape, batch {batch}"
        yield what, "≤ 1.02", "gpu", f"live/Llama-3.1-8B/{batch}", "over_plain"
    for shape in ("Llama-3.1-8B", "Gemma-2-9B"):
        at = f"GPU, {shape} shape, bfloat16, batch 1, all blocks read"
        yield f"share of the weight-bandwidth bound; {at}", "≥ 0.70", "gpu", f"bound/{shape}", "share"
        yield f"speed over eager `generate`; {at}", "≥ 3", "gpu", f"bound/{shape}", "generate_over_ours"


def _targets(suites: Mapping[str, Figure]) -> str:
    found = []
    for what, target, suite, case, key in rows():
        measured = suites[suite]["cases"].get(case)
        found.append((what, target, "not measured yet" if measured is None else say(measured[key])))
    cases = suites["cpu"]["cases"]
    if "memory" in cases:
        more = f"{100 * cases['memory']['more']:+.2f} %"
        found.append(("peak memory of monitoring 512 tokens at all blocks, over the plain model; CPU", "< 1 %", more))
    if "start" in cases:
        found.append(("`import persona_core`", "< 0.3 s", f"{cases['start']['import_s']:.3f} s"))
    pooled = _load("elicitation")["elicit_and_extract_over_alone"]
    quartiles = f"{pooled['median']:.3f} (quartiles {pooled['q25']:.3f} to {pooled['q75']:.3f})"
    found.append(("eliciting and extracting, over writing the replies alone; CPU", "≤ 1.05", quartiles))
    scrubs = _load("page")["scrub"]
    for scrub, target in ((scrubs[0], "≤ 16 ms"), (scrubs[2], "≤ 33 ms")):
        what = f"{scrub['tokens']:,} tokens x {scrub['traits']} traits"
        found.append((f"a step of the page's slider, 95th percentile; {what}", target, f"{scrub['p95_ms']} ms"))
    body = "\n".join(f"| {what} | {target} | {measured} |" for what, target, measured in found)
    return f"| figure | target | measured |\n|---|---|---|\n{body}"


def say(ratio: Figure) -> str:
    """A ratio with its interval."""
    if ratio["n"] == 1:
        return f"{ratio['value']:.3f} (one pair)"
    return f"{ratio['value']:.3f} [{ratio['low']:.3f}, {ratio['high']:.3f}]"


def scaling_figure(curves: Figure) -> Any:
    """One panel an axis: the ratio of a step with reading to one without."""
    from plotly.subplots import make_subplots

    figure = make_subplots(rows=1, cols=len(curves), subplot_titles=list(curves), shared_yaxes=True)
    for column, points in enumerate(curves.values(), 1):
        value = [p["value"] for p in points]
        figure.add_scatter(
            x=[str(p["x"]) for p in points],
            y=value,
            error_y={
                "type": "data",
                "array": [p["high"] - p["value"] for p in points],
                "arrayminus": [p["value"] - p["low"] for p in points],
            },
            mode="lines+markers",
            line={"color": "#2f6fb5"},
            showlegend=False,
            row=1,
            col=column,
        )
        figure.add_hline(y=1, line={"dash": "dot", "color": "#566072"}, row=1, col=column)
    figure.update_yaxes(title="step with reading / without", row=1, col=1)
    figure.update_layout(template="plotly_white", margin={"l": 60, "r": 20, "t": 40, "b": 40}, font={"size": 13})
    return figure


def _load(name: str) -> Figure:
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"cases": {}, "machine": {}}


if __name__ == "__main__":
    page = PAGE.read_text(encoding="utf-8")
    if page != with_figures(page):
        sys.exit("docs/performance.md is out of date; run python -m benchmarks.run --write")
