"""Functions and models that hang, fill the memory, crash or complain. They run in a process of their own."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from persona_core.errors import UnknownTrait


def hang(*_: Any) -> None:
    time.sleep(600)


def fill(*_: Any) -> None:
    """Take memory without end, 50 MB at a time, and use it: at most 3 GB, should nobody stop it."""
    taken = []
    for _part in range(60):
        taken.append(b"x" * 50_000_000)
        time.sleep(0.02)


def exit_at_once(*_: Any) -> None:
    os._exit(3)


def segfault(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def killed(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def complain(*_: Any) -> None:
    raise UnknownTrait("charm", ["evil"])


def stumble(*_: Any) -> None:
    raise RuntimeError("the secret of /srv/models")


def unsendable(*_: Any) -> Any:
    return lambda: None


def say(text: str) -> None:
    logging.getLogger("persona_core.said").warning("%s", text)


def chatter(*_: Any) -> None:
    while True:
        say("still here")


def environment() -> dict[str, str]:
    return dict(os.environ)


def saved_token() -> str | None:
    from huggingface_hub import get_token

    return get_token()


def count(log: str, n: int) -> Iterator[int]:
    """0 to n - 1, each noted in a file before it is yielded, and then "closed"."""
    with Path(log).open("a", encoding="utf-8", buffering=1) as file:
        try:
            for i in range(n):
                file.write(f"{i}\n")
                yield i
        finally:
            file.write("closed\n")


def count_then(n: int, what: str) -> Iterator[int]:
    yield from range(n)
    globals()[what]()


def load(model: str, *_: Any) -> Any:
    """The monitor of "org/good", a tiny model, or what one of these functions does: "org/hang" never loads.

    "org/slow" hangs at its first token.
    """
    what = model.partition("/")[2]
    if what not in ("good", "slow"):
        return globals()[what]()
    from tests.support.standins import SlowMonitor, steady_monitor

    return steady_monitor() if what == "good" else SlowMonitor(steady_monitor(), 600)


class Trap:
    """What makes whoever unpickles it create a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (Path(self.path),)


def set_a_trap(path: str) -> Any:
    return Trap(path)
