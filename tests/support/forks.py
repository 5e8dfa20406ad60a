"""New processes that need not import torch first: each is forked from one that has, and can be killed like any other.

with forking("persona_core.vectors.vectors") as forks:
    done = forks.run(["-m", "scripts.publish", "--dry-run"])
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

BRIEFLY = "--briefly"
ROOT = Path(__file__).resolve().parents[2]


class Fork:
    """A running process, with the questions that tests ask of a `subprocess.Popen`."""

    def __init__(self, forks: Forks, pid: int) -> None:
        self._forks, self.pid = forks, pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self._forks.ask("poll", self.pid)
        return self.returncode

    def wait(self) -> int:
        if self.returncode is None:
            self.returncode = self._forks.ask("wait", self.pid)
        assert self.returncode is not None
        return self.returncode

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


class Forks:
    """Starts processes; arguments are those of the interpreter: `-m module …`, `-c code …` or a file."""

    def __init__(self, server: subprocess.Popen[str]) -> None:
        self._server = server

    def ask(self, *question: Any) -> Any:
        assert self._server.stdin is not None and self._server.stdout is not None
        self._server.stdin.write(json.dumps(question) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())

    def start(
        self,
        arguments: Sequence[str],
        folder: Path = ROOT,
        environment: Mapping[str, str] | None = None,
        stdout: str = os.devnull,
        stderr: str = os.devnull,
    ) -> Fork:
        known = dict(os.environ if environment is None else environment)
        return Fork(self, self.ask("start", [*arguments], str(folder), known, stdout, stderr))

    def run(
        self, arguments: Sequence[str], folder: Path = ROOT, environment: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        with tempfile.TemporaryDirectory() as place:
            out, err = Path(place, "out"), Path(place, "err")
            status = self.start(arguments, folder, environment, str(out), str(err)).wait()
            return subprocess.CompletedProcess([*arguments], status, out.read_text(), err.read_text())


@contextmanager
def forking(*modules: str, briefly: bool = False, environment: Mapping[str, str] | None = None) -> Iterator[Forks]:
    """Forks of one process that has imported these modules.

    Args:
        environment: variables that the modules read when they are imported.
        briefly: whether what is run hardly waits where it would sleep.
    """
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.support.forks", *([BRIEFLY] if briefly else []), *modules],
        cwd=ROOT,
        env={**os.environ, **(environment or {}), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield Forks(server)
    finally:
        server.communicate()  # its input ends, and so does it


# ---- in the process that forks ----


def _child(questions: IO[str], answers: IO[str]) -> list[Any] | None:
    """Forks as it is asked to. Returns what a child is to do, in the child, and None at the end of the questions."""
    for line in questions:
        kind, *about = json.loads(line)
        if kind == "start":
            if (pid := os.fork()) == 0:
                return about
            answer: int | None = pid
        else:
            pid, status = os.waitpid(about[0], os.WNOHANG if kind == "poll" else 0)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    return None


def _become(folder: str, environment: dict[str, str], stdout: str, stderr: str) -> None:
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for path, own in ((os.devnull, 0), (stdout, 1), (stderr, 2)):
        place = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        os.dup2(place, own)
        os.close(place)


def _wait_briefly() -> None:
    """Clients try again as often as they decide, but hardly wait in between."""
    sleep = time.sleep
    time.sleep = lambda seconds: sleep(min(float(seconds), 0.05))


def main() -> None:
    for name in sys.argv[1:]:
        if name == BRIEFLY:
            _wait_briefly()
        else:
            importlib.import_module(name)
    gc.freeze()  # a fork that ends would otherwise look through all that was imported, and so copy it: 1.5 s
    questions, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    todo = _child(questions, answers)
    if todo is None:
        return
    (first, *rest), folder, environment, stdout, stderr = todo
    os.close(questions.fileno())
    os.close(answers.fileno())
    _become(folder, environment, stdout, stderr)
    if first == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif first == "-c":
        sys.argv = ["-c", *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = [first, *rest]
        runpy.run_path(first, run_name="__main__")


if __name__ == "__main__":
    main()
