"""What the real model costs in the app: streaming against plain `generate`, memory, and threads on a busy machine.

    make weights
    python -m benchmarks.real_app

Writes `benchmarks/results/real_app.json`; about five minutes on two cores that are otherwise idle. Streaming: replies
of SmolLM2-135M-Instruct with all that the page is sent, alternately with `generate` of transformers on the same prompt.
Memory: the peak of a process that holds both sides and has written with both. Threads: a reply with one thread and with
two, on an idle machine and beside a busy process for each core.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from benchmarks.common import save
from benchmarks.measuring import ratio
from persona_core.app.settings import AppSettings, sets_from_environment

N_TOKENS, PAIRS = 64, 8
PROMPT = "Should I quit my job? I have been unhappy there for a year, but the pay is good."
MESSAGES = [{"role": "user", "content": PROMPT}]
SAMPLING = {"max_new_tokens": N_TOKENS, "temperature": 0.7}
BUSY = "while True: pass"


def main(argv: list[str]) -> int:
    if argv:
        print(peak_mb() if argv == ["memory"] else seconds_of(argv[1]))
        return 0
    found = {"tokens": N_TOKENS, "streaming": streaming(), "peak_mb": float(_child("memory")), "threads": threads()}
    save("real_app", found)
    return 0


def _real() -> AppSettings:
    return next(iter(sets_from_environment({}).values()))


def _demo() -> AppSettings:
    return list(sets_from_environment({}).values())[-1]


def _endless(monitor: Any) -> Any:
    monitor.lm = dataclasses.replace(monitor.lm, eos_ids=frozenset())  # every reply has the maximum length
    return monitor


# ---- streaming ----


def streaming() -> dict[str, Any]:
    """Seconds of `generate` over those of a streamed reply: 1 is as fast, above 0.9 is the target."""
    import torch

    from persona_core.app.pooled_model import PooledModel
    from persona_core.app.streaming import ReplyJob, stream_replies

    settings = _real()
    pooled = PooledModel.from_settings(settings)
    lm = _endless(pooled.monitor()).lm
    ids = torch.tensor([lm.chat.render(MESSAGES).token_ids])

    def plain(seed: int) -> None:
        torch.manual_seed(seed)
        limits = {"min_new_tokens": N_TOKENS, "max_new_tokens": N_TOKENS}
        with torch.inference_mode():
            lm.model.generate(ids, do_sample=True, temperature=0.7, top_k=0, top_p=1.0, pad_token_id=0, **limits)

    def streamed(seed: int) -> None:
        for _ in stream_replies(
            [ReplyJob(pooled, MESSAGES, "baseline", {**SAMPLING, "seed": seed})], threading.Event()
        ):
            pass

    seconds: dict[str, list[float]] = {"plain": [], "streamed": []}
    for number in range(PAIRS + 1):
        ways = [("plain", plain), ("streamed", streamed)]
        for name, way in ways if number % 2 else ways[::-1]:
            started = time.monotonic()
            way(number)
            if number:  # the first warms up
                seconds[name].append(time.monotonic() - started)
    each = {name: round(N_TOKENS / (sum(found) / len(found)), 1) for name, found in seconds.items()}
    return {"speed": ratio(seconds["plain"], seconds["streamed"]).to_dict(), "tokens_per_second": each}


# ---- memory ----


def peak_mb() -> float:
    """Peak memory of this process once both sides have written a reply."""
    from persona_core.app.served_set import served_sets

    settings = _real()
    (one,) = served_sets({"": settings})
    for pooled in one.models.values():
        pooled.monitor().generate(PROMPT, max_new_tokens=16, seed=0)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


# ---- threads ----


def threads() -> dict[str, Any]:
    """Seconds of a reply by model, machine and number of threads; and the ratio of two threads to one."""
    found: dict[str, Any] = {}
    for machine in ("idle", "busy"):
        with _busy() if machine == "busy" else contextlib.nullcontext():
            for model in ("real", "demo"):
                seconds = json.loads(_child("threads", model))
                found.setdefault(machine, {})[model] = {
                    "seconds": {n: round(sorted(times)[len(times) // 2], 2) for n, times in seconds.items()},
                    "two_over_one": ratio(seconds["2"], seconds["1"]).to_dict(),
                }
    return found


def seconds_of(model: str) -> str:
    """Seconds of replies in this process, with one thread and with two in turn, as JSON."""
    import torch

    from persona_core.app.pooled_model import load_monitor

    settings = _real() if model == "real" else _demo()
    monitor = _endless(load_monitor(settings.model, None, settings.vectors, "best"))
    seconds: dict[str, list[float]] = {"1": [], "2": []}
    for number in range(7):
        for n, times in seconds.items():
            torch.set_num_threads(int(n))
            started = time.monotonic()
            monitor.generate(PROMPT, max_new_tokens=N_TOKENS, seed=0)
            if number:  # the first warms up
                times.append(round(time.monotonic() - started, 3))
    return json.dumps(seconds)


@contextlib.contextmanager
def _busy() -> Iterator[None]:
    """A process that keeps a core busy, for each core."""
    running = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(os.cpu_count() or 1)]
    try:
        yield
    finally:
        for process in running:
            process.kill()


def _child(*arguments: str) -> str:
    command = [sys.executable, "-m", "benchmarks.real_app", *arguments]
    without = {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=without)
    return done.stdout.strip().splitlines()[-1]


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
