"""How fast it is: ratios within one run, written as JSON to `benchmarks/results/`.

    python -m benchmarks.run --suite cpu      # about 45 minutes on two cores
    python -m benchmarks.run --suite peers    # nnsight and TransformerLens, in a separate environment
    python -m benchmarks.run --suite gpu      # under nine minutes; needs a GPU of 40 GB or more
    python -m scripts.docs                    # afterwards: bring the tables of docs/performance.md up to date

`--only NAME ...` measures some cases of a suite again and keeps the others.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import footprint, scaling, speed
from benchmarks.measuring import machine
from benchmarks.models import MEDIUM, SMALL, llama

RESULTS = Path(__file__).parent / "results"
Case = Callable[[], dict[str, Any]]
SIZES = {"small": SMALL, "medium": MEDIUM}

logger = logging.getLogger("benchmarks")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", choices=("cpu", "gpu", "peers"), required=True, help="which cases to measure")
    parser.add_argument("--only", nargs="+", metavar="CASE", help="measure these cases and keep the others")
    parser.add_argument("--list", action="store_true", help="list the suite's cases and measure none")
    parser.add_argument("--threads", type=int, default=2, help="torch threads on a CPU (2)")
    options = parser.parse_args(argv)
    if options.threads < 1:
        parser.error(f"--threads {options.threads}; expected an integer of at least 1")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    for noisy in ("kaleido", "choreographer"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    torch.set_num_threads(options.threads)
    cases = suite(options.suite)
    if unknown := set(options.only or ()) - set(cases):
        parser.error(f"unknown cases {', '.join(sorted(unknown))}; expected some of {', '.join(cases)}")
    if options.list:
        print(*cases, sep="\n")
        return 0
    found = measure(options.suite, cases, options.only or list(cases))
    if "scaling" in found:
        scaling.draw(found["scaling"])
    return 0


def suite(name: str) -> dict[str, Case]:
    """The cases of a suite, in the order in which they are measured."""
    if name == "cpu":
        return cpu()
    if name == "gpu":
        from benchmarks.gpu import cases

        return cases()
    from benchmarks.peers import cases as peer_cases

    return peer_cases()


def measure(name: str, cases: Mapping[str, Case], wanted: Sequence[str]) -> dict[str, Any]:
    """Measure some cases, writing each into the suite's results as soon as it is there; return all of them."""
    path = RESULTS / f"speed_{name}.json"
    before = json.loads(path.read_text(encoding="utf-8"))["cases"] if path.is_file() else {}
    known = {case: found for case, found in before.items() if case in cases}  # drop cases that no longer exist
    for case in wanted:
        logger.info("%s ...", case)
        known[case] = cases[case]() | {"on": machine(gpu=name == "gpu")}
        logger.info("%s", known[case])
        path.write_text(json.dumps({"cases": known}, indent=1) + "\n", encoding="utf-8")
    return known


def cpu() -> dict[str, Case]:
    """The cases that two cores can measure."""
    found: dict[str, Case] = {}
    for size, shape in SIZES.items():
        for batch, n_new in ((1, 160), (16, 160 if size == "small" else 80)):
            found[f"live/{size}/{batch}"] = lambda s=shape, b=batch, n=n_new: speed.live_reading(llama(*s), b, n)  # type: ignore[misc]
    for size, batch, n_new, temperature, rounds in speed.GENERATED:
        name = f"generate/{size}/{batch}/{n_new}/{'sampled' if temperature else 'greedy'}"
        found[name] = lambda s=size, b=batch, n=n_new, t=temperature, r=rounds: (  # type: ignore[misc]
            speed.over_generate(llama(*SIZES[s]), b, n, t, r)
        )
    found["thousand/small/1"] = lambda: speed.live_reading(llama(*SMALL), 1, 160, 1000)
    found["thousand/medium/1"] = lambda: speed.live_reading(llama(*MEDIUM), 1, 100, 1000)
    for batch, rounds in ((1, 6), (16, 3)):
        found[f"peers/small/{batch}"] = lambda b=batch, r=rounds: speed.peers(llama(*SMALL), b, 192, r)  # type: ignore[misc]
    found["texts/small"] = lambda: speed.given_texts(llama(*SMALL), 500, 2)
    found["mixed/small"] = lambda: speed.mixed_lengths(llama(*SMALL), 200, 16, 160, 64, 2)
    found["memory"] = footprint.memory
    found["start"] = footprint.start_up
    found["scaling"] = lambda: scaling.curves(llama(*SMALL))
    return found


if __name__ == "__main__":
    raise SystemExit(main())
