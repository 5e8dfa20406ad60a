"""What the reading directions cost: seconds and memory of one block's covariance, at several widths.

    python -m benchmarks.whitening

A block's work does not depend on the others', so 32 blocks cost 32 times as much and no more memory. Writes
`benchmarks/results/whitening.json`. About three minutes on two cores.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from typing import Any

import numpy as np

from benchmarks.common import save
from persona_core.vectors.whitening import MAX_TOKENS, within_class_covariance

WIDTHS = (576, 2048, 4096)
N_CLASSES, N_TRAITS, N_BLOCKS = 17, 8, 32


def main() -> int:
    if len(sys.argv) > 1:
        return one(int(sys.argv[1]))
    found: dict[str, Any] = {"n_tokens": MAX_TOKENS, "n_traits": N_TRAITS, "n_blocks": N_BLOCKS, "widths": {}}
    for width in WIDTHS:  # each in a process of its own, whose peak memory is its own
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.whitening", str(width)], capture_output=True, text=True, check=True
        )
        seconds, megabytes = (float(part) for part in done.stdout.split())
        found["widths"][str(width)] = {
            "seconds_a_block": round(seconds, 2),
            "minutes_for_all_blocks": round(seconds * N_BLOCKS / 60, 2),
            "megabytes": round(megabytes),
            "stored_megabytes_a_reply": round(16 * N_BLOCKS * width * 2 / 2**20, 2),
        }
    save("whitening", found)
    return 0


def one(width: int) -> int:
    """Print the seconds of one block, and the peak memory beyond that of the classes' states."""
    rng = np.random.default_rng(0)
    states = rng.standard_normal((MAX_TOKENS // N_CLASSES, width), dtype=np.float32)
    vectors = rng.standard_normal((N_TRAITS, width))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    covariance = within_class_covariance(states for _ in range(N_CLASSES))
    covariance.along(covariance.solve(vectors))
    seconds = time.perf_counter() - started
    print(seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
