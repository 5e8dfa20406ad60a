"""Ratios of ways to do the same work, alternating within one run, so a busy machine slows all of them alike."""

from __future__ import annotations

import gc
import itertools
import platform
import random
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import greenlet
import numpy as np
import torch
import transformers
from torch import nn

N_RESAMPLES = 2000
MIN_PAIRS = 6
"""The fewest pairs that give a 95 % interval."""


@dataclass(frozen=True)
class Ratio:
    """Time of one way over that of another.

    Attributes:
        value: median over the pairs.
        low, high: 95 % interval of the median, by resampling pairs. It cannot leave the range of the pairs, which
            contains the median of all with 50 % for two pairs, 94 % for five, 97 % for six: below six it is that range.
        n: pairs.
    """

    value: float
    low: float
    high: float
    n: int

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
    """The ratio of paired times.

    >>> ratio([1.0, 2.0, 3.0], [2.0, 4.0, 6.0]).value
    0.5
    """
    pairs = np.asarray(ours, float) / np.asarray(theirs, float)
    if len(pairs) < MIN_PAIRS:
        return _rounded(float(np.median(pairs)), float(pairs.min()), float(pairs.max()), len(pairs))
    drawn = np.random.default_rng(0).choice(pairs, (N_RESAMPLES, len(pairs)))
    low, high = np.quantile(np.median(drawn, axis=1), [0.025, 0.975])
    return _rounded(float(np.median(pairs)), float(low), float(high), len(pairs))


def _rounded(value: float, low: float, high: float, n: int) -> Ratio:
    return Ratio(round(value, 4), round(low, 4), round(high, 4), n)


def stepwise(ways: Mapping[str, Callable[[], Iterator[Any]]], warm_up: int = 4) -> dict[str, list[float]]:
    """Seconds of each step of several iterators that advance alternately; which comes first rotates.

    The iterators must have the same number of steps; the first ones are not counted.
    """
    running = {name: make() for name, make in ways.items()}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    names = list(ways)
    gc.collect()
    gc.disable()  # a collection would count against a single way
    try:
        for step in itertools.count():
            for name in names[step % len(names) :] + names[: step % len(names)]:
                started = now()
                if next(running[name], None) is None:
                    return {name: times[warm_up : min(map(len, seconds.values()))] for name, times in seconds.items()}
                seconds[name].append(now() - started)
    finally:
        gc.enable()
        for one in running.values():
            one.close()  # type: ignore[attr-defined]
    raise AssertionError("counting does not end")


def in_turn(
    ways: Mapping[str, Callable[[int], Any]], blocks: Iterable[nn.Module], rounds: int, warm_up: int = 1
) -> dict[str, list[float]]:
    """Seconds of each way in each round, its forward passes alternating with those of the others.

    A busy second then slows all of them alike; whole generations one after the other would differ by 5 % on a machine
    that others use as well. Each way runs in a greenlet, which pauses where a forward reaches one of the blocks. The
    way that has done the smallest part of its forwards comes next. The first rounds are not counted; they tell how
    many forwards each way has.

    Args:
        ways: each receives the number of the round.
        blocks: the first block of each model at hand.
    """

    def pause(*_: Any) -> None:
        parent = greenlet.getcurrent().parent
        if parent is not None:
            parent.switch()

    seconds: dict[str, list[float]] = {name: [] for name in ways}
    n_forwards: dict[str, int] = {}
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode())  # of the thread: what one way sets must not change for another
        for block in blocks:
            stack.callback(block.register_forward_pre_hook(pause).remove)
        for number in range(warm_up + rounds):
            spent, n_forwards = _one_round(ways, number, n_forwards)
            for name, time_spent in spent.items():
                seconds[name].append(time_spent)
    return {name: times[warm_up:] for name, times in seconds.items()}


def _one_round(
    ways: Mapping[str, Callable[[int], Any]], number: int, n_forwards: Mapping[str, int]
) -> tuple[dict[str, float], dict[str, int]]:
    """Seconds of each way, and how often it paused."""
    names = random.Random(number).sample(list(ways), len(ways))  # who follows whom changes
    running = {name: greenlet.greenlet(ways[name]) for name in names}
    spent, done = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0)
    gc.collect()
    gc.disable()  # a collection would count against a single way
    try:
        while running:
            name = min(running, key=lambda n: (done[n] / n_forwards.get(n, 1), names.index(n)))
            started = now()
            running[name].switch(*(() if done[name] else (number,)))
            spent[name] += now() - started
            done[name] += 1
            if running[name].dead:
                del running[name]
    finally:
        gc.enable()
    return spent, done


def in_rounds(ways: Mapping[str, Callable[[int], Any]], rounds: int, warm_up: int = 1) -> dict[str, list[float]]:
    """Seconds of each way in each round; the first ones are not counted. A way receives the number of the round."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    names = list(ways)
    for number in range(warm_up + rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            gc.collect()
            started = now()
            ways[name](number)
            seconds[name].append(now() - started)
    return {name: times[warm_up:] for name, times in seconds.items()}


def now() -> float:
    """The clock, once the GPU is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def machine(gpu: bool = False) -> dict[str, str]:
    """The machine that a figure is measured on."""
    processor = torch.cuda.get_device_name() if gpu else f"{_cpu()}, {torch.get_num_threads()} threads"
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    return {"system": f"{platform.system()} {platform.machine()}", "processor": processor, "versions": versions}


def _cpu() -> str:
    """Its name, if the system has one."""
    if sys.platform != "linux":
        return platform.processor() or platform.machine()
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
