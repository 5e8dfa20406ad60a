"""From a clone to a first reply: what a newcomer waits for and downloads.

    python -m benchmarks.first_run

Clones this repository into a temporary folder, runs `make install` there with an empty pip cache, starts the app twice
and writes `benchmarks/results/first_run.json`: seconds to install, megabytes downloaded, seconds from the start of the
server to a first view in Chromium (cold and again), and seconds to a generated reply.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, sync_playwright

from benchmarks.common import ROOT, save
from tests.support.browser import launch

UNITS = {"kB": 1e-3, "MB": 1.0, "GB": 1e3}


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "clone"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        started = time.monotonic()
        environment = {**os.environ, "PIP_CACHE_DIR": str(Path(folder) / "cache"), "PIP_PROGRESS_BAR": "off"}
        run = subprocess.run(["make", "install"], cwd=clone, env=environment, capture_output=True, text=True)
        if run.returncode:
            print(run.stdout[-3000:], run.stderr[-3000:], file=sys.stderr)
            return run.returncode
        figures: dict[str, Any] = {
            "install_s": round(time.monotonic() - started, 1),
            "download_mb": round(downloaded(run.stdout)),
            "environment_mb": round(size(clone / ".venv") / 1e6),
        }
        for name in ("cold", "warm"):
            view, reply = start_and_ask(clone)
            figures |= {f"first_view_{name}_s": view, f"first_reply_{name}_s": reply}
    figures |= {"cores": os.cpu_count(), "python": platform.python_version(), "system": platform.system()}
    save("first_run", figures)
    return 0


def downloaded(log: str) -> float:
    """Megabytes of the wheels that pip fetched, a wheel on a local path included."""
    total = sum(float(n) * UNITS[unit] for n, unit in re.findall(r"Downloading \S+ \(([\d.]+) (kB|MB|GB)\)", log))
    local = (Path(p) for p in re.findall(r"Processing (\S+\.whl)", log))
    return total + sum(p.stat().st_size / 1e6 for p in local if p.is_file())


def size(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file() and not p.is_symlink())


def start_and_ask(clone: Path) -> tuple[float, float]:
    """Seconds from the start of the server to the first view, and from the click on Send to the whole reply."""
    with server(clone) as (started, url), sync_playwright() as playwright:
        browser = launch(playwright)
        try:
            page = browser.new_page()
            open_when_up(page, url)
            page.wait_for_selector(".tv[data-state=done]", timeout=60_000)
            view = time.monotonic() - started
            page.locator("#prompt textarea").fill("Should I quit my job?")
            clicked = time.monotonic()
            page.locator("#generate").click()
            page.wait_for_selector("#view .tv[data-state=live]", timeout=120_000)
            page.wait_for_selector("#view .tv[data-state=done]", timeout=120_000)
            return round(view, 2), round(time.monotonic() - clicked, 2)
        finally:
            browser.close()


def open_when_up(page: Page, url: str, timeout: float = 60.0) -> None:
    end = time.monotonic() + timeout
    while True:
        try:
            page.goto(url)
            return
        except Exception as error:
            if "ERR_CONNECTION_REFUSED" not in str(error) or time.monotonic() > end:
                raise
            time.sleep(0.05)


@contextlib.contextmanager
def server(clone: Path) -> Iterator[tuple[float, str]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "PERSONA_PORT": str(port), "PERSONA_HOST": "127.0.0.1"}
    started = time.monotonic()
    process = subprocess.Popen(
        [str(clone / ".venv" / "bin" / "python"), "app.py"], cwd=clone, env=environment, stdout=subprocess.DEVNULL
    )
    try:
        yield started, f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(timeout=20)


if __name__ == "__main__":
    sys.exit(main())
