"""What the page costs and how quickly it answers: streaming, scrubbing, the first view.

    python -m benchmarks.page

Writes `benchmarks/results/page.json`. Streaming: the demo model writes 500 tokens, all blocks read, alternately on its
own, with the payloads that the page is sent, and with a page in a Chromium on the same cores; paired ratios with the
interval of their mean. Scrubbing: the slider is dragged, and each step is timed with its style and layout. Long tasks:
what kept the page's main thread busy for more than 50 ms while a reply streamed in.
"""

from __future__ import annotations

import dataclasses
import os
import platform
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks.common import save
from persona_core.app.layout import build_app
from persona_core.app.pooled_model import PooledModel, load_monitor
from persona_core.app.serve import LAUNCH
from persona_core.app.served_set import ServedSet
from persona_core.app.settings import AppSettings
from persona_core.app.streaming import ReplyJob, stream_replies
from persona_core.traces.view.payload import pair_payload
from tests.support import pages
from tests.support.standins import FIRST, make_payload, words
from tests.support.view_page import shower

N_TOKENS, PAIRS, STEPS = 500, 12, 200
MESSAGES = [{"role": "user", "content": "Should I quit my job?"}]
SETTINGS = {"max_new_tokens": N_TOKENS, "temperature": 0.7}
SCRUBBED = ((2000, 8, 1), (2000, 8, 2), (8000, 16, 1), (8000, 16, 2))


class Timed:
    """A monitor that notes how long each of its streams took, from the first token to the last."""

    def __init__(self, monitor: Any) -> None:
        self._monitor = monitor
        self.seconds: list[float] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._monitor, name)

    def stream(self, *args: Any, **settings: Any) -> Iterator[Any]:
        started = None
        for step in self._monitor.stream(*args, **settings):
            started = started or time.monotonic()
            yield step
        self.seconds.append(time.monotonic() - (started or 0.0))


def main() -> int:
    settings = AppSettings(max_new_tokens=N_TOKENS)
    monitor = load_monitor(settings.model, None, settings.vectors, settings.blocks)
    monitor.lm = dataclasses.replace(monitor.lm, eos_ids=frozenset())  # every reply has the maximum length
    timed: Any = Timed(monitor)
    pooled = PooledModel(lambda: timed)

    def plainly(seed: int) -> None:
        for _ in timed.stream(MESSAGES, seed=seed, **SETTINGS):
            pass

    def with_payloads(seed: int) -> None:
        for _ in stream_replies(
            [ReplyJob(pooled, MESSAGES, "baseline", {**SETTINGS, "seed": seed})], threading.Event()
        ):
            pass

    plainly(0)
    figures: dict[str, Any] = {"tokens": N_TOKENS, "payloads": ratio(timed, plainly, with_payloads)}
    demo = build_app(ServedSet("", settings, {"baseline": pooled}))
    _, url, _ = demo.launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, **LAUNCH)
    try:
        with pages.chromium() as running:
            opened = pages.Pages(running, ("http://127.0.0.1", "file:"))
            figures["first_view_s"] = round(statistics.median(first_view(opened, url) for _ in range(5)), 2)
            page = opened.open(url)
            page.wait_for_selector("[data-chart=ready]")
            page.locator("#controls").get_by_text("Settings", exact=True).click()
            page.wait_for_timeout(1000)  # the sheet opens
            page.get_by_label("number input for Maximum length, tokens").fill(str(N_TOKENS))
            page.keyboard.press("Tab")
            on_page(page, 0)
            assert page.locator("#view .tv-tok").count() > N_TOKENS, "the page asks for as many tokens"
            page.evaluate(
                """() => {
                  window.tasks = [];
                  new PerformanceObserver((list) => tasks.push(...list.getEntries().map((t) => t.duration)))
                    .observe({ type: 'longtask' });
                }"""
            )
            figures["page"] = ratio(timed, plainly, partial(on_page, page))
            tasks = page.evaluate("tasks")
            figures["longest_task_ms"], figures["long_tasks"] = max(tasks, default=0), len(tasks)
            opened.close()
            opened = pages.Pages(running, ("file:",))
            figures["scrub"] = [scrub(opened, *shape) for shape in SCRUBBED]
            opened.close()
    finally:
        demo.close()
    figures |= {"cores": os.cpu_count(), "python": platform.python_version()}
    save("page", figures)
    return 0


def ratio(timed: Any, plain: Callable[[int], None], other: Callable[[int], None]) -> dict[str, float]:
    """Mean of the paired ratios of the times of `other` and `plain`, with its 95 % interval; the order alternates."""
    ratios = []
    for seed in tqdm(range(PAIRS), desc="pairs"):
        timed.seconds.clear()
        for run in (plain, other) if seed % 2 else (other, plain):
            run(seed)
        first, second = timed.seconds
        ratios.append(second / first if seed % 2 else first / second)
    half = 2.2 * statistics.stdev(ratios) / len(ratios) ** 0.5  # t of 11 degrees of freedom
    mean = statistics.mean(ratios)
    return {"value": round(mean, 4), "low": round(mean - half, 4), "high": round(mean + half, 4), "n": PAIRS}


def first_view(opened: Any, url: str) -> float:
    started = time.monotonic()
    opened.open(url, fresh=True).wait_for_selector("#view .tv-tok")
    return time.monotonic() - started


def on_page(page: Any, seed: int) -> None:
    """Write a reply on the page; returns when it is complete."""
    page.click("#new-chat")
    page.fill("#prompt textarea", f"Should I quit my job? {seed}")
    page.click("#generate")
    page.wait_for_selector("#view .tv[data-state=live]")
    page.wait_for_selector("#view .tv[data-state=done]", timeout=120_000)
    page.wait_for_selector("#generate:not([disabled])")


def scrub(opened: Any, n_tokens: int, n_traits: int, n_sides: int) -> dict[str, Any]:
    """Steps of a slider drag, in milliseconds."""
    payload = make_payload(words(n_tokens - FIRST), traits=[f"trait {i}" for i in range(n_traits)], name="a")
    with tempfile.TemporaryDirectory() as folder:
        page = shower(opened.open, Path(folder))(payload if n_sides == 1 else pair_payload(payload, payload))
    track = page.locator(".tv-track")
    track.scroll_into_view_if_needed()
    box = track.bounding_box()
    page.evaluate(
        """() => {
          window.steps = [];
          window.addEventListener('pointermove', () => (window.began = performance.now()), true);
          window.addEventListener('pointermove', () => {
            document.body.offsetHeight;
            steps.push(performance.now() - began);
          });
        }"""
    )
    page.mouse.move(box["x"] + 2, box["y"] + 10)
    page.mouse.down()
    for step in range(STEPS):
        page.mouse.move(box["x"] + 2 + (box["width"] - 4) * step / (STEPS - 1), box["y"] + 10)
    page.mouse.up()
    steps = page.evaluate("steps")[1:]
    page.close()
    return {
        "tokens": n_tokens,
        "traits": n_traits,
        "sides": n_sides,
        "median_ms": round(float(np.median(steps)), 1),
        "p95_ms": round(float(np.percentile(steps, 95)), 1),
    }


if __name__ == "__main__":
    raise SystemExit(main())
