"""The Chromium that drives the tests of the pages: find one, install one, start one.

A browser that is already on the machine is used before anything is downloaded. `python -m tests.support.browser`
prints the path of the one that would be used; with `--install` it gets one first where there is none.
"""

from __future__ import annotations

import argparse
import functools
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
MAC_APPS = (
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
)
# Everything Chromium would do on the network on its own account is off: tests must pass on a closed network.
QUIET_ARGS = (
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",  # containers give /dev/shm 64 MB, too little for one page
    "--disable-gpu",
    "--disable-quic",
    "--disable-sync",
    "--no-first-run",
)

_PLAYWRIGHT_PATH = """
from playwright.sync_api import sync_playwright
with sync_playwright() as playwright:
    print(playwright.chromium.executable_path, end="")
"""


class NoChromiumError(RuntimeError):
    """No Chromium on this machine, or one that does not start."""


def _starts(path: str) -> bool:
    """Whether the binary answers `--version`: Ubuntu's `chromium-browser` may be a stub that names a snap."""
    try:
        return subprocess.run([path, "--version"], capture_output=True, timeout=60).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _candidates() -> Iterator[str]:
    yield from filter(None, map(shutil.which, NAMES))
    if sys.platform == "darwin":
        yield from MAC_APPS
    # Asked in a process of its own: playwright's synchronous interface cannot be started twice in one.
    found = subprocess.run([sys.executable, "-c", _PLAYWRIGHT_PATH], capture_output=True, text=True)
    if found.returncode == 0:
        yield found.stdout


@functools.cache
def chromium_path() -> str | None:
    """Path of a Chromium that starts, or None: `CHROMIUM_PATH`, then the system's, then playwright's own.

    Raises `NoChromiumError` when `CHROMIUM_PATH` is set and does not start: a named browser is never replaced
    by another.
    """
    named = os.environ.get("CHROMIUM_PATH")
    if named:
        if not _starts(named):
            raise NoChromiumError(f"CHROMIUM_PATH={named} does not start. Correct it or unset it.")
        return named
    return next((path for path in _candidates() if Path(path).exists() and _starts(path)), None)


def launch(playwright: Playwright, *, headless: bool = True) -> Browser:
    """Start the browser that `chromium_path` found; the caller closes it."""
    path = chromium_path()
    if path is None:
        raise NoChromiumError("No Chromium found. Install one with: make chromium (or set CHROMIUM_PATH)")
    args = list(QUIET_ARGS)
    if _is_root():
        args.append("--no-sandbox")  # Chromium refuses to start as root with its sandbox
    return playwright.chromium.launch(executable_path=path, headless=headless, args=args)


def _is_root() -> bool:
    return hasattr(os, "geteuid") and os.geteuid() == 0


def _install_commands() -> list[list[list[str]]]:
    """Ways to get a Chromium, best first; each way is a list of commands that must all succeed."""
    ways = []
    system = platform.freedesktop_os_release().get("ID") if sys.platform == "linux" else None
    if system == "debian" and _is_root():
        # Not on Ubuntu: its package is a stub for a snap, which containers cannot run.
        apt = ["apt-get", "-o", "Acquire::Retries=3"]
        ways.append([[*apt, "update"], [*apt, "install", "-y", "--no-install-recommends", "chromium"]])
    playwright = [sys.executable, "-m", "playwright", "install"]
    if sys.platform == "linux" and _is_root():
        playwright.append("--with-deps")  # the shared libraries that a bare system lacks
    ways.append([[*playwright, "chromium"]])
    return ways


def install() -> str:
    """Get a Chromium where there is none; returns its path, or raises `NoChromiumError` with what to do."""
    path = chromium_path()
    for way in _install_commands():
        if path is not None:
            return path
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for command in way:
            sys.stderr.write(f"No Chromium found, running: {' '.join(command)}\n")
            if subprocess.run(command, env=environment, stdin=subprocess.DEVNULL).returncode != 0:
                break
        chromium_path.cache_clear()
        path = chromium_path()
    if path is None:
        raise NoChromiumError(
            "No Chromium could be installed. Put Chromium or Chrome on PATH yourself, or set CHROMIUM_PATH."
        )
    return path


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.support.browser", description="Find the tests' Chromium.")
    parser.add_argument("--install", action="store_true", help="install one where there is none")
    try:
        path = install() if parser.parse_args().install else chromium_path()
    except NoChromiumError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(f"Chromium: {path or 'none'}\n")
    return 0 if path else 1


if __name__ == "__main__":
    sys.exit(main())
