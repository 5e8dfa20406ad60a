"""A process of its own for work that may hang, fill the memory or crash: its calls, its limits and its end.

The child runs functions of this package, one at a time, and sends back what they return or yield. A generator advances
when its caller asks for the next item, as it would in this process. The child's environment has no token or key. It
ends with `end`, with this process, however that ends, and after ten minutes without a call.

Pipes and pickles are those of `multiprocessing`; the start is not, as its children have this process's environment.
What the child sends is not trusted: it is read as plain values, arrays and traces, and nothing else is looked up or
called, so a child that a hostile model has taken over gains nothing here.
"""

from __future__ import annotations

import io
import logging
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from inspect import isgenerator
from logging.handlers import QueueHandler
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil

from persona_core.app.error_messages import unexpected_message
from persona_core.errors import PersonaError, ServerError, SettingError

logger = logging.getLogger(__name__)

IDLE_SECONDS = 600.0
SECONDS_BETWEEN_CHECKS = 0.1
"""Of the memory: a child that fills 3 GB a second is ended 0.3 GB past its limit."""
MAX_BYTES = 2**28
"""Of one result: what a child sends must not fill the app's memory. A long reply takes a few MB."""

_START = "from persona_core.app.limited_process import serve_calls; serve_calls({fd}, {parent}, {level})"
_SECRET = re.compile(r"(^|_)(TOKEN|KEY|SECRET|PASSWORD|PASSWD|CREDENTIAL)S?(_|$)", re.IGNORECASE)


@dataclass(frozen=True)
class TimeLimit:
    """How long a call may take until it returns or yields; then the process is ended.

    Attributes:
        seconds: of that time.
        setting: of the app's owner that it comes from.
    """

    seconds: float
    setting: str


class LimitedProcess:
    """A child process, started at once.

    Args:
        name: of what runs in it, for messages.
        max_gb: of memory, mapped files not counted; past it the process is ended.
        setting: of the app's owner that `max_gb` comes from.

    >>> process = LimitedProcess("A sum", max_gb=4, setting="none")
    >>> process.call(TimeLimit(60, "none"), sum, [1, 2])
    3
    >>> process.end()
    """

    def __init__(self, name: str, max_gb: float, setting: str) -> None:
        self.name, self._max_gb, self._setting = name, max_gb, setting
        self._lock = threading.RLock()  # reentrant: a generator may be collected, and so closed, during a call
        self._open: object | None = None  # the generator in the child
        self._connection, theirs = Pipe()
        level = logging.getLogger().getEffectiveLevel()
        self._child = subprocess.Popen(
            [sys.executable, "-c", _START.format(fd=theirs.fileno(), parent=os.getpid(), level=level)],
            env=_environment(os.environ),
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the app, which then ends the child
        )
        theirs.close()
        self._usage = psutil.Process(self._child.pid)
        # Also runs when this object is collected and when the app exits. The pipe stays open: it may be in use.
        self._end = weakref.finalize(self, _kill, self._child)

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def alive(self) -> bool:
        """Whether it takes calls."""
        return self._end.alive and self._child.poll() is None

    def end(self) -> None:
        """End the process. A call that is under way raises `ServerError`."""
        self._end()

    def call(self, limit: TimeLimit, function: Callable[..., Any], *args: Any) -> Any:
        """What the function returns in the child.

        Args:
            limit: the longest that it may take.
            function: at module level; arguments and result go through pickle.

        Raises:
            PersonaError: with the message of one in the child.
            SettingError: it took too long or needed too much memory.
            ServerError: another error in the child, or its end.
        """
        with self._lock:
            self._close_open(limit)
            return self._exchange(limit, (function, args))[1]

    def stream(self, limit: TimeLimit, function: Callable[..., Iterator[Any]], *args: Any) -> Iterator[Any]:
        """What the generator function yields in the child; the limit holds for each item.

        Closing it closes the generator in the child. So does a later call, if nobody closes this one.

        Raises:
            As `call`.
        """
        this = object()
        with self._lock:
            self._close_open(limit)
            kind, item = self._exchange(limit, (function, args))
            self._open = this if kind == "item" else None
        try:
            while kind == "item":
                yield item
                with self._lock:
                    if self._open is not this:
                        raise ServerError(f"{self.name} has begun a later run; this one was ended.")
                    kind, item = self._exchange(limit, True)
                    self._open = this if kind == "item" else None
        finally:
            with self._lock:
                if self._open is this:
                    self._close_open(limit)

    def _close_open(self, limit: TimeLimit) -> None:
        if self._open is not None:
            self._open = None
            if self.alive:
                self._exchange(limit, False)

    def _exchange(self, limit: TimeLimit, message: Any) -> tuple[str, Any]:
        """Send a message; what the child answers: ("value", result), ("item", item) or ("end", None)."""
        deadline = time.monotonic() + limit.seconds
        try:
            self._connection.send(message)
            while True:
                arrived = self._connection.poll(SECONDS_BETWEEN_CHECKS)
                self._check_memory()
                if arrived:
                    kind, content = _read(self._connection.recv_bytes(MAX_BYTES))
                    if kind == "error":
                        self._open = None
                        raise PersonaError(content)
                    if kind != "log":
                        return kind, content
                    logging.getLogger(content[0]).log(content[1], "%s", content[2])
                if time.monotonic() > deadline:
                    raise self._ended(f"took more than {limit.seconds:g} seconds", limit.setting)
        except (EOFError, OSError) as error:
            self._open = None
            raise self._gone() from error

    def _check_memory(self) -> None:
        try:
            used = self._usage.memory_info()
        except psutil.Error:  # it has just ended
            return
        # Pages of mapped files can be dropped: safetensors maps the weights. On other systems than Linux they count.
        if used.rss - getattr(used, "shared", 0) > self._max_gb * 1e9:
            raise self._ended(f"needed more than {self._max_gb:g} GB of memory", self._setting)

    def _ended(self, what: str, setting: str) -> SettingError:
        self._open = None
        self.end()
        logger.warning("%s %s; its process was ended.", self.name, what)
        return SettingError(f"{self.name} {what}, the limit of this app ({setting}), and was ended.")

    def _gone(self) -> ServerError:
        if not self._end.alive:
            return ServerError(f"{self.name} was released.")
        with suppress(subprocess.TimeoutExpired):  # the pipe closes a moment before the process ends
            self._child.wait(1)
        status = self._child.poll()
        self.end()
        if status is None:
            how = "its result could not be read"
        else:
            how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
        logger.error("The process of %s ended: %s.", self.name, how)
        return ServerError(f"The process of {self.name} ended ({how}). The app's own models are not affected.")


class _Answer(pickle.Unpickler):
    """Reads what a child sends. Only these classes are looked up; anything else could run code in this process."""

    known = frozenset(
        {
            ("numpy", "dtype"),
            ("numpy", "ndarray"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "scalar"),
            ("numpy._core.numeric", "_frombuffer"),
            ("persona_core.app.streaming", "Progress"),
            ("persona_core.traces.provenance", "Provenance"),
            ("persona_core.traces.specific", "LogOdds"),
            ("persona_core.traces.trace", "Trace"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.known:
            raise pickle.UnpicklingError(f"{module}.{name} is not what a result is made of")
        return super().find_class(module, name)


def _read(message: bytes) -> tuple[str, Any]:
    """A child's answer.

    Raises:
        EOFError: it is no answer that this module's `serve_calls` would send.
    """
    try:
        kind, content = _Answer(io.BytesIO(message)).load()
        if kind == "log":
            name, level, text = content
            content = str(name), int(level), str(text)
        return str(kind), content
    except Exception as error:  # reading bytes of another's making raises whatever they lead it to
        logger.warning("A process sent what cannot be read: %s", error)
        raise EOFError from error


def _kill(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    child.wait()


def _environment(ours: Mapping[str, str]) -> dict[str, str]:
    """The child's environment: no tokens and keys, nor the token that `hf auth login` saved."""
    kept = {name: value for name, value in ours.items() if not _SECRET.search(name)}
    here = os.pathsep.join(filter(None, sys.path))  # of a checkout, too, wherever the app was started
    return {**kept, "PYTHONPATH": here, "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1", "HF_TOKEN_PATH": os.devnull}


# ---- in the child -----------------------------------------------------------------------------------------------


def serve_calls(fd: int, parent: int, level: int) -> None:
    """Answer the calls that come through the pipe until it closes.

    Args:
        fd: of this end of the pipe.
        parent: process id of the app.
        level: of its log.
    """
    pipe = _ChildPipe(Connection(fd))
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    root = logging.getLogger()
    root.addHandler(QueueHandler(pipe))  # type: ignore[arg-type]  # of a queue it needs only `put_nowait`
    root.setLevel(level)
    with suppress(OSError):  # where the system runs out of memory, it ends this process and not the app
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    while True:
        function, args = pipe.received()
        try:
            result = function(*args)
            if isgenerator(result):
                with closing(result):
                    for item in result:
                        pipe.send("item", item)
                        if not pipe.received():  # closed by its caller
                            break
                pipe.send("end", None)
            else:
                pipe.send("value", result)
        except PersonaError as error:
            pipe.send("error", str(error))
        except Exception as error:
            logger.exception("A call failed in a process of its own")
            pipe.send("error", unexpected_message("The call", error))


class _ChildPipe:
    """The child's end of the pipe: answers, and the records of its log, which may come from several threads."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._lock = threading.Lock()

    def send(self, kind: str, content: Any) -> None:
        with self._lock:
            self._connection.send((kind, content))

    def put_nowait(self, record: logging.LogRecord) -> None:
        self.send("log", (record.name, record.levelno, record.getMessage()))

    def received(self) -> Any:
        """The next message; ends this process if none comes."""
        try:
            if self._connection.poll(IDLE_SECONDS):
                return self._connection.recv()
        except EOFError:
            pass
        raise SystemExit


def _end_with(parent: int) -> None:
    """End this process with the app, also during a call."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
