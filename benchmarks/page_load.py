"""What a visitor waits for and fetches: text, chart, long tasks and bytes of the first view, and the size of an export.

    python -m benchmarks.page_load

Writes `benchmarks/results/page_load.json`; three minutes on cores that are otherwise idle. Each page is opened by
visitors with an empty cache: the app on each of its sets, the static site of each, and one reply exported as HTML.
All are medians. A task is measured in CPU time of the page's main thread, the rest by the clock from the navigation on.
Gradio's own files are counted apart; bytes are uncompressed.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks.common import save
from persona_core.app.layout import build_app
from persona_core.app.serve import LAUNCH
from persona_core.app.served_set import served_sets
from persona_core.app.settings import AppSettings, sets_from_environment
from persona_core.report.home import load_home
from persona_core.report.saved_runs import SavedRuns
from persona_core.report.site import export_site
from tests.support import pages

VISITS = 3
QUIET = 1500  # ms after the chart within which a task still belongs to loading
# Every page of Gradio asks for these; what else the app's asks for is ours.
GRADIOS = ("/assets/", "/static/", "/theme.css", "/svelte/", "/gradio_api/startup-events", "/gradio_api/heartbeat")
WATCH = """
window.seen = {text: null, chart: null};
new MutationObserver(() => {
  if (seen.text === null && document.querySelector('.tv-tok')) seen.text = performance.now();
  if (seen.chart === null && document.querySelector('[data-chart=ready]')) seen.chart = performance.now();
}).observe(document, {subtree: true, childList: true, attributes: true, attributeFilter: ['data-chart']});
"""


def main() -> int:
    found: dict[str, Any] = {"app": {}, "site": {}, "export_kb": {}}
    sets = sets_from_environment({})
    with pages.chromium() as running:
        demo = build_app(*served_sets(sets))
        _, url, _ = demo.launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, **LAUNCH)
        try:
            for number, name in enumerate(sets):
                address = url if not number else url + demo.pages[number][0]
                found["app"][name] = visits(running, address, GRADIOS)
        finally:
            demo.close()
        for name, settings in sets.items():
            with site(settings) as address:
                found["site"][name] = visits(running, address)
            home = load_home(settings.vectors, SavedRuns(str(settings.results)))
            if home.first_reply is not None:
                found["export_kb"][name] = kb(len(home.first_reply.trace.to_html().encode()))
    save("page_load", found | {"visits": VISITS, "cores": os.cpu_count()})
    return 0


def visits(running: Any, url: str, gradios: tuple[str, ...] = ()) -> dict[str, float]:
    """Medians over visits; the first one only warms the server."""
    found = [visit(running, url, gradios) for _ in range(VISITS + 1)][1:]
    return {key: round(statistics.median(one[key] for one in found), 1) for key in found[0]}


def visit(running: Any, url: str, gradios: tuple[str, ...]) -> dict[str, float]:
    context = running.new_context(viewport={"width": 1440, "height": 900})
    page = context.new_page()
    page.add_init_script(WATCH)
    answers: list[Any] = []
    page.on("response", lambda answer: answers.append(answer))
    running.start_tracing(page=page, categories=["toplevel", "disabled-by-default-devtools.timeline"])
    page.goto(url)
    page.wait_for_selector("[data-chart=ready]", state="attached")
    page.wait_for_timeout(QUIET)
    longest = longest_task(json.loads(running.stop_tracing())["traceEvents"])
    seen = page.evaluate("seen")
    sizes = {"own_kb": 0.0, "gradio_kb": 0.0}
    for answer in answers:
        path = urlsplit(answer.url).path
        if answer.url.startswith("data:") or "queue/data" in path or "heartbeat" in path:
            continue
        sizes["gradio_kb" if path.startswith(gradios) else "own_kb"] += kb(len(answer.body()))
    context.close()
    times = {"text_ms": seen["text"], "chart_after_text_ms": seen["chart"] - seen["text"]}
    return times | {"longest_task_ms": longest} | sizes


def longest_task(events: list[dict[str, Any]]) -> float:
    """Milliseconds of CPU of the longest task on a main thread."""
    thread = {(e["pid"], e["tid"]) for e in events if e.get("args", {}).get("name") == "CrRendererMain"}
    tasks = (e for e in events if e["name"] == "RunTask" and (e["pid"], e["tid"]) in thread)
    return max(e.get("tdur", 0) for e in tasks) / 1000


@contextmanager
def site(settings: AppSettings) -> Iterator[str]:
    """The static site of a set, behind a plain file server."""

    class Files(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    with tempfile.TemporaryDirectory() as folder:
        export_site(str(settings.results), Path(folder) / "site", vectors=settings.vectors)
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Files, directory=str(Path(folder) / "site")))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()


def kb(n_bytes: int) -> float:
    return round(n_bytes / 1000, 1)


if __name__ == "__main__":
    raise SystemExit(main())
