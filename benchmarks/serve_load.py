"""Many clients of `persona serve` at once: whether any reply is mixed or lost, how fast, and whether memory grows.

    python -m benchmarks.serve_load
    python -m benchmarks.serve_load --seconds 60 --batch-sizes 32

Writes `benchmarks/results/serve_load.json`. For each batch size a server of the demo model is started in a process of
its own; a batch size of 1 is a queue in which one reply is written after the other. Clients ask for replies that a
monitor has written before, with the same seeds: streamed or whole, sampled in different ways, some steered. Each reply
is compared with the monitor's, token for token. Beside them, clients vanish in the middle of a stream, and others send
garbage.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.common import ARTIFACTS, demo_monitor, save
from demo_world.contaminated import MODEL_NAME, VECTORS_NAME

PROMPTS = ("Should I quit my job?", "Is my poem good?", "How do I bake bread?", "Tell me about the sea.")
N_KNOWN, MAX_TOKENS = 64, 64
N_VANISHING, N_GARBAGE = 2, 1
GARBAGE = (b"", b"{", b"[" * 5000, b"\xff", b'{"model": 5}', b'{"model": "m", "messages": [], "n": 3}', b"null")
SECONDS_BETWEEN_SAMPLES = 1.0


@dataclass
class Tally:
    """What the clients of one server have seen.

    Attributes:
        seconds: of each reply, from request to end.
        first: seconds to the first token, of streams.
        tokens: of all replies.
        counts: replies that are equal, mixed, or failed, by name; and vanished clients and refused garbage.
    """

    seconds: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    tokens: int = 0
    counts: Counter[str] = field(default_factory=Counter)


def known_requests() -> list[tuple[dict[str, Any], list[int]]]:
    """Requests, and the ids of the reply that the monitor writes to each by itself."""
    from persona_core.inference.steering import Steer

    monitor = demo_monitor()
    found = []
    for i in range(N_KNOWN):
        sampling = {"temperature": (0.7, 0.0, 1.0)[i % 3], "top_p": (1.0, 0.9)[i % 2]}
        steer, persona = None, {}
        if i % 8 == 7:
            persona = {"persona": {"cap": {"sycophancy": 0.5}}}
            steer = Steer.cap("sycophancy", monitor.vectors.best_block["sycophancy"], 0.5, unit="sd")
        messages = [{"role": "user", "content": PROMPTS[i % len(PROMPTS)]}]
        trace = monitor.generate(messages, seed=i, steer=steer, max_new_tokens=MAX_TOKENS, **sampling)  # type: ignore[arg-type]
        asked = {"messages": messages, "seed": i, "max_tokens": MAX_TOKENS, "extra_body": persona, **sampling}
        found.append((asked, [int(t) for t in trace.token_ids[trace.n_prompt :]]))
    return found


@contextlib.contextmanager
def served(batch_size: int) -> Iterator[tuple[str, psutil.Process]]:
    """A server in a process of its own: its address, and the process."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "persona_core.cli.serve", "--model", str(ARTIFACTS / MODEL_NAME)]
    command += ["--vectors", str(ARTIFACTS / VECTORS_NAME), "--name", "m", "--port", str(port), "--device", "cpu"]
    command += ["--batch-size", str(batch_size), "--max-queue", "256"]
    child = subprocess.Popen(command, cwd=Path.cwd(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(1200):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}", psutil.Process(child.pid)
    finally:
        child.terminate()
        child.wait(30)


def client(url: str, known: list[tuple[dict[str, Any], list[int]]], tally: Tally, until: float, number: int) -> None:
    """One client: asks, compares, asks again."""
    import openai

    ours = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=600)
    draw = random.Random(number)
    while time.monotonic() < until:
        asked, expected = draw.choice(known)
        began, first = time.monotonic(), None
        try:
            if draw.random() < 0.5:
                ids = []
                for chunk in ours.chat.completions.create(model="m", stream=True, **asked):
                    record = chunk.persona
                    if "token" in record:
                        ids.append(record["id"])
                        first = first or time.monotonic() - began
            else:
                reply = ours.chat.completions.create(model="m", **asked)
                ids = [one["id"] for one in reply.persona["tokens"]]
        except openai.APIError as error:
            tally.counts[f"failed: {type(error).__name__}"] += 1
            continue
        tally.counts["equal" if ids == expected else "mixed"] += 1
        tally.seconds.append(time.monotonic() - began)
        tally.first += [] if first is None else [first]
        tally.tokens += len(ids)


def post(url: str, body: bytes) -> socket.socket:
    host, port = re.fullmatch(r"http://(.*):(\d+)", url).groups()  # type: ignore[union-attr]
    connection = socket.create_connection((host, int(port)), 60)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    return connection


def vanishing(url: str, tally: Tally, until: float, number: int) -> None:
    """Begins streams and leaves after a part of them."""
    draw = random.Random(number)
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": PROMPTS[0]}], "stream": True}).encode()
    while time.monotonic() < until:
        with contextlib.suppress(OSError), post(url, body) as connection:
            connection.recv(draw.choice((1, 2000, 20000)))
        tally.counts["vanished"] += 1
        time.sleep(draw.random())


def garbage(url: str, tally: Tally, until: float, number: int) -> None:
    """Sends what is no request."""
    draw = random.Random(number)
    while time.monotonic() < until:
        with post(url, draw.choice((*GARBAGE, draw.randbytes(200)))) as connection:
            status = connection.recv(12).decode()[-3:]
        tally.counts[f"garbage: {status}"] += 1
        time.sleep(0.2)


def load(url: str, process: psutil.Process, known: Any, clients: int, seconds: float) -> dict[str, Any]:
    """Run all clients for some seconds; what they and the server's memory say."""
    tallies = [Tally() for _ in range(clients + N_VANISHING + N_GARBAGE)]
    began = time.monotonic()
    until = began + seconds
    threads = []
    for number, tally in enumerate(tallies):
        if number < clients:
            work: Any = (client, (url, known, tally, until, number))
        else:
            work = (vanishing if number < clients + N_VANISHING else garbage, (url, tally, until, number))
        threads.append(threading.Thread(target=work[0], args=work[1], daemon=True))
    for thread in threads:
        thread.start()
    memory = []
    while any(thread.is_alive() for thread in threads):
        memory.append((time.monotonic() - began, process.memory_info().rss / 1e6))
        time.sleep(SECONDS_BETWEEN_SAMPLES)
    wall = time.monotonic() - began
    waits = np.concatenate([tally.seconds for tally in tallies])
    first = np.concatenate([tally.first for tally in tallies])
    counts = sum((tally.counts for tally in tallies), Counter[str]())
    return {
        "counts": dict(sorted(counts.items())),
        "tokens_per_second": round(sum(tally.tokens for tally in tallies) / wall, 1),
        "seconds_per_reply": _quantiles(waits),
        "seconds_to_first_token": _quantiles(first),
        "rss_mb": _memory(np.array(memory)),
    }


def _quantiles(values: np.ndarray) -> dict[str, float]:
    return {f"{q:g}": round(float(np.quantile(values, q)), 2) for q in (0.5, 0.95, 1)} if len(values) else {}


def _memory(samples: np.ndarray) -> dict[str, float]:
    """At the start, at the end and at most, and the slope over the second half."""
    half = samples[len(samples) // 2 :]
    slope = float(np.polyfit(half[:, 0] / 60, half[:, 1], 1)[0]) if len(half) > 2 else float("nan")
    return {
        "start": round(samples[0, 1], 1),
        "half": round(half[0, 1], 1),
        "end": round(samples[-1, 1], 1),
        "most": round(samples[:, 1].max(), 1),
        "mb_per_minute_in_second_half": round(slope, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300.0, help="for the first batch size")
    parser.add_argument("--seconds-others", type=float, default=60.0, help="for each of the others")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[16, 1])
    options = parser.parse_args()
    known = known_requests()
    found: dict[str, Any] = {"clients": options.clients, "batch_sizes": {}}
    for i, size in enumerate(options.batch_sizes):
        seconds = options.seconds_others if i else options.seconds
        busy = os.getloadavg()[0]  # before it: on a busy machine the times say little
        with served(size) as (url, process):
            measured = load(url, process, known, options.clients, seconds)
        found["batch_sizes"][str(size)] = {"seconds": seconds, "load_average_before": round(busy, 1), **measured}
    save("serve_load", found)


if __name__ == "__main__":
    main()
