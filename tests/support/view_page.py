"""A bare page with nothing but a token view, and questions that the tests ask of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from persona_core.traces.view.assets import script, styles, template
from tests.support.standins import Payload


def bare_page(dark: bool = False) -> str:
    """Leaves the view in `window.view`, and its states in `window.states`."""
    return (
        "<!doctype html><meta charset=utf-8><link rel=icon href='data:,'>"
        f"<style>body {{ margin: 8px }} {styles()}</style>"
        f"<body class='{'dark' if dark else ''}'>{template()}<script>{script()}\n"
        "window.states = []; window.branches = [];\n"
        f"window.view = mountTokenView(document.body, {{ onState: (s) => states.push(s), "
        "link: () => 'https://here/?at=1' });</script>"
    )


def shower(open_page: Callable[..., Any], folder: Path) -> Callable[..., Any]:
    """`show(payload, dark=False, width=…)`: the payload in a new bare page."""

    def show(payload: Payload | None, *, dark: bool = False, **kwargs: Any) -> Any:
        path = folder / "page.html"
        path.write_text(bare_page(dark), encoding="utf-8")
        page = open_page(path.as_uri(), **kwargs)
        update(page, payload)
        return page

    return show


def update(page: Any, payload: Payload | None) -> None:
    """Hand the view a payload as JSON, as it arrives from a server."""
    page.evaluate("text => view.update(JSON.parse(text))", json.dumps(payload))


def token(page: Any, index: int, side: int = 0) -> Any:
    return page.locator(".tv-pane").nth(side).locator(f".tv-tok[data-i='{index}']")


def cursor(page: Any, shift: int = 0) -> int:
    """The position at which every panel agrees the cursor is at; `shift`: of the first side."""
    positions = page.evaluate(
        """(shift) => {
          const area = document.querySelector('.tv-area').getBoundingClientRect();
          const line = document.querySelector('.tv-cursor').getBoundingClientRect();
          const thumb = document.querySelector('.tv-thumb');
          const { from, to } = document.querySelector('.tv-area').dataset;
          const start = -Number(thumb.getAttribute('aria-valuemin'));
          const readout = document.querySelector('.tv-position').textContent;
          const named = Number(readout.match(/oken (\\d+)/)[1]) + (readout.startsWith('Token') ? start : 0);
          const at = (x) => Math.floor((x - area.left) / area.width * (to - from)) + Number(from);
          return [
            Number(document.querySelector('.tv-at').dataset.i) + shift,
            start + Number(thumb.getAttribute('aria-valuenow')),
            at(line.left + line.width / 2),
            at(thumb.getBoundingClientRect().left + 8),
            named,
          ];
        }""",
        shift,
    )
    assert len(set(positions)) == 1, positions
    return int(positions[0])


def bars(page: Any) -> list[str]:
    return page.locator(".tv-row:not(.tv-row-head) .tv-value").all_inner_texts()


def scores(page: Any) -> list[str]:
    """The large numbers of the readout, one a side."""
    return page.locator(".tv-score").all_inner_texts()


def strip(page: Any, key: str, name: str) -> list[int]:
    """Strengths along the row of that name in a heat strip, 0 to 255 for each pixel."""
    return page.evaluate(
        """([key, name]) => {
          const c = document.querySelector(`.tv-heat[data-strip="${key}"]`);
          const names = [...c.parentElement.querySelectorAll('.tv-lane-name')].map((one) => one.textContent);
          const [row, rows] = [names.indexOf(name), names.length];
          const y = Math.floor((row + 0.3) * c.height / rows);
          const copy = new OffscreenCanvas(c.width, 1).getContext('2d', { willReadFrequently: true });
          copy.drawImage(c, 0, -y);
          const data = copy.getImageData(0, 0, c.width, 1).data;
          return Array.from({ length: c.width }, (_, x) => data[4 * x + 3]);
        }""",
        [key, name],
    )


def position_of_strongest(row: list[int], n_positions: int) -> int:
    return int((row.index(max(row)) + 0.5) / len(row) * n_positions)  # the middle of its first pixel


def lines(page: Any, side: int = 0) -> dict[str, list[float | None]]:
    """The trend lines that are drawn on a side: trait -> its values, None for a gap."""
    drawn = page.evaluate(
        """(side) => view.chart().sides[side].lines.map((line) =>
          [line.trait, [...line.values].map((value) => Number.isNaN(value) ? null : value)])""",
        side,
    )
    return dict(drawn)


def choose(page: Any, name: str, value: str) -> None:
    """Make a choice in the sheet "View"."""
    page.evaluate("document.querySelector('[data-part=options]').open = true")
    page.locator(f".tv-choice select[name={name}]").select_option(value)
    page.evaluate("document.querySelector('[data-part=options]').open = false")


def shown_tokens(page: Any, side: int = 0) -> list[str]:
    return page.locator(".tv-pane").nth(side).locator(".tv-tok").evaluate_all("all => all.map(t => t.textContent)")


def texts(values: Sequence[Any]) -> list[str]:
    """Scores as the page writes them."""
    return [
        "–" if np.isnan(v) else f"{round(float(v), 4):+.2f}".replace("-", "−").replace("−0.00", "+0.00") for v in values
    ]
