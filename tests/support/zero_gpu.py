"""The app as it runs on ZeroGPU, with the real package `spaces`, but on the CPU: `python -m tests.support.zero_gpu`.

Forks, pickles and emulated CUDA tensors are those of `spaces`; what is put in its place here is the GPU: nothing is
initialised, and "moving to the GPU" gives the emulated tensors their numbers. Needs SPACES_ZERO_GPU and
SPACES_ZERO_DEVICE_API_URL. Prints what came of the calls, as JSON.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from typing import Any


def _no() -> Any:
    return False


def without_a_gpu() -> None:
    """Let `spaces` do everything but talk to a GPU. It comes before whatever uses torch."""
    import torch

    if torch.version.cuda is None:  # a build for the CPU lacks what `spaces` looks at
        torch.version.cuda, torch._C._cuda_init, torch.cuda._is_in_bad_fork = "13.0", _no, _no
    from spaces.zero import torch as zero
    from spaces.zero.torch import patching

    def move(callback: Any = None) -> None:
        for fake, original in patching.cuda_aliases.items():
            assert original is not None, "nothing was packed"
            fake.data = original

    zero.init = lambda uuid: None
    zero.pack = lambda: 0
    zero.move = move


class PidMonitor:
    """A monitor that notes in which process it wrote, and how far it came."""

    def __init__(self, monitor: Any, log: str) -> None:
        self._monitor, self._log = monitor, log

    def __getattr__(self, name: str) -> Any:
        return getattr(self._monitor, name)

    def stream(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        try:
            for step in self._monitor.stream(*args, **kwargs):
                time.sleep(0.02)
                self._note("token")
                yield step
        finally:
            self._note("end")

    def _note(self, what: str) -> None:
        with open(self._log, "a", encoding="utf-8") as log:
            log.write(f"{os.getpid()} {what}\n")


def main(log: str) -> None:
    """Serve the app and call it."""
    without_a_gpu()
    from gradio_client import Client

    from persona_core.app.layout import build_app
    from persona_core.app.pooled_model import PooledModel, load_monitor
    from persona_core.app.serve import LAUNCH
    from persona_core.app.served_set import ServedSet
    from persona_core.app.settings import AppSettings

    settings = AppSettings.from_environment()

    def pooled(adapter: str | None) -> PooledModel:
        return PooledModel(
            lambda: PidMonitor(load_monitor(settings.model, adapter, settings.vectors, settings.blocks), log)  # type: ignore[arg-type, return-value]
        )

    models = pooled(None), pooled(settings.adapter)
    demo = build_app(ServedSet("", settings, dict(zip(("baseline", "contaminated"), models, strict=True))))
    devices = [str(one.monitor().lm.device) for one in models]
    _, url, _ = demo.launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, **LAUNCH)
    client = Client(url, verbose=False)

    def said(**asked: Any) -> str:
        try:
            return str(client.predict(**asked))
        except Exception as error:
            return str(error)

    found: dict[str, Any] = {"pid": os.getpid(), "devices": devices}
    found["generate"] = client.predict("Should I quit my job?", max_new_tokens=30, api_name="/generate")
    found["compare"] = client.predict("Should I quit my job?", max_new_tokens=10, api_name="/compare")
    found["read"] = client.predict([{"role": "user", "content": "Hi"}], api_name="/read", model="contaminated")
    found["refused"] = said(prompt="Hi", temperature=-1, api_name="/generate")
    before = _lines(log)
    job = client.submit("Should I quit my job?", max_new_tokens=200, temperature=0, seed=3, api_name="/generate")
    while len(job.outputs()) < 2:
        time.sleep(0.02)
    job.cancel()
    ended = time.monotonic() + 100
    while _lines(log)[-1][1] != "end" and time.monotonic() < ended:
        time.sleep(0.02)
    found["cancelled"] = [what for _, what in _lines(log)[len(before) :]]
    found["again"] = client.predict("Should I quit my job?", max_new_tokens=30, api_name="/generate")["ids"]
    found["pids"] = sorted({pid for pid, _ in _lines(log)})
    demo.close()
    print("\n" + json.dumps(found))


def _lines(log: str) -> list[tuple[int, str]]:
    with open(log, encoding="utf-8") as file:
        return [(int(pid), what) for pid, what in (line.split() for line in file)]


if __name__ == "__main__":
    main(sys.argv[1])
