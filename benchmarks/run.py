"""How fast it is: ratios within one run, written as JSON and as tables and plots into docs/performance.md.

    python -m benchmarks.run --suite cpu      # about 25 minutes on two cores
    python -m benchmarks.run --suite peers    # nnsight and TransformerLens, in an environment of their own
    python -m benchmarks.run --suite gpu      # under nine minutes; needs a GPU of 40 GB or more
    python -m benchmarks.run --write          # only write docs/performance.md anew from what was measured

`--only NAME ...` measures some cases of a suite again and keeps the others.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks import footprint, scaling, speed
from benchmarks.measuring import machine
from benchmarks.models import MEDIUM, SMALL, llama
from benchmarks.performance_page import GENERATED, write_page

RESULTS = Path(__file__).parent / "results"
Case = Callable[[], dict[str, Any]]
SIZES = {"small": SMALL, "medium": MEDIUM}
ROUNDS = 3  # of generations whose forwards are taken in turn: they differ by 0.3 %

logger = logging.getLogger("benchmarks")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", choices=("cpu", "gpu", "peers"))
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these cases; the others are kept as they are")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch on a CPU (2)")
    parser.add_argument("--write", action="store_true", help="measure nothing")
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.set_num_threads(options.threads)
    if options.suite and not options.write:
        cases = suite(options.suite)
        unknown = set(options.only or ()) - set(cases)
        if unknown:
            parser.error(f"no case {', '.join(sorted(unknown))}; there are {', '.join(cases)}")
        measure(options.suite, {name: case for name, case in cases.items() if name in (options.only or cases)})
    write_page()
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


def measure(name: str, cases: dict[str, Case]) -> None:
    """Measure cases, and write each into the suite's results as soon as it is there."""
    path = RESULTS / f"speed_{name}.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"cases": {}}
    known["machine"] = machine()
    for case, run in cases.items():
        logger.info("%s ...", case)
        known["cases"][case] = run()
        logger.info("%s", known["cases"][case])
        path.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")


def cpu() -> dict[str, Case]:
    """What two cores can tell."""
    found: dict[str, Case] = {}
    for size, shape in SIZES.items():
        for batch, n_new in ((1, 160), (16, 80)):
            found[f"live/{size}/{batch}"] = lambda s=shape, b=batch, n=n_new: speed.live_reading(llama(*s), b, n)  # type: ignore[misc]
        for batch, n_new in GENERATED:
            found[f"generate/{size}/{batch}/{n_new}"] = lambda s=shape, b=batch, n=n_new: speed.over_generate(  # type: ignore[misc]
                llama(*s), b, n, ROUNDS
            )
    found["thousand/small/1"] = lambda: speed.live_reading(llama(*SMALL), 1, 160, 1000)
    found["thousand/medium/1"] = lambda: speed.live_reading(llama(*MEDIUM), 1, 100, 1000)
    for batch in (1, 16):
        found[f"peers/small/{batch}"] = lambda b=batch: speed.peers(llama(*SMALL), b, 48, 5)  # type: ignore[misc]
    found["texts/small"] = lambda: speed.given_texts(llama(*SMALL), 500, 2)
    found["mixed/small"] = lambda: speed.mixed_lengths(llama(*SMALL), 200, 16, 160, 64, 2)
    found["memory"] = footprint.memory
    found["start"] = footprint.start_up
    found["scaling"] = lambda: scaling.curves(llama(*SMALL))
    return found


if __name__ == "__main__":
    raise SystemExit(main())
