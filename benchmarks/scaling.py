"""How the cost of reading scales with traits, blocks, tokens before and prompts at once; and the picture of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.common import ROOT
from benchmarks.measuring import ratio, stepwise
from benchmarks.models import directions, prompts, separate
from benchmarks.speed import run_of
from persona_core.inference.sampling import Sampling
from persona_core.models.language_model import LanguageModel

STEPS = 48
PICTURES = ROOT / "docs" / "images"
AXES = {
    "traits": "traits read",
    "blocks": "blocks read",
    "tokens before": "tokens before",
    "prompts at once": "replies at once",
}


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
            "plain": run_of(separate(lm), ids, sampling, {}).steps,
            "reading": run_of(separate(lm), ids, sampling, read).steps,
        }
    )
    return {"x": x, **ratio(seconds["reading"], seconds["plain"]).to_dict()}


def draw(curves: dict[str, Any], folder: Path = PICTURES) -> None:
    """Write `scaling.png` and its dark version."""
    for dark, name in ((False, "scaling.png"), (True, "scaling-dark.png")):
        figure(curves, dark).write_image(folder / name, width=900, height=560, scale=2)


def figure(curves: dict[str, Any], dark: bool) -> Any:
    """One panel per axis: extra time of a step with reading over one without."""
    from plotly.subplots import make_subplots

    ink, line = ("#e4e8ee", "#7fb2ea") if dark else ("#1f2733", "#2f6fb5")
    made = make_subplots(rows=2, cols=2, shared_yaxes=True, horizontal_spacing=0.06, vertical_spacing=0.2)
    for panel, (axis, words) in enumerate(AXES.items()):
        points = curves[axis]
        at = {"row": panel // 2 + 1, "col": panel % 2 + 1}
        extra = [100 * (p["value"] - 1) for p in points]
        made.add_scatter(
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
        made.update_xaxes(type="log", title=words, tickvals=ticks, ticktext=[f"{x:,}" for x in ticks], **at)
        made.update_yaxes(rangemode="tozero", ticksuffix=" %", zeroline=True, zerolinecolor=ink, **at)
    made.update_yaxes(title="extra time of a step", col=1)
    paper = {"paper_bgcolor": "#11161d", "plot_bgcolor": "#11161d"} if dark else {}
    made.update_layout(
        template="plotly_dark" if dark else "plotly_white",
        margin={"l": 70, "r": 20, "t": 20, "b": 50},
        font={"size": 15, "color": ink},
        **paper,
    )
    return made
