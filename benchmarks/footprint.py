"""Memory and start-up, each in a process of its own.

python -m benchmarks.footprint plain    # one generation of 512 tokens, nothing read; prints the peak in bytes
python -m benchmarks.footprint read     # the same with 8 traits read at all blocks
"""

from __future__ import annotations

import resource
import subprocess
import sys
from typing import Any

import numpy as np

PEAK_OF = 512  # new tokens


def memory(rounds: int = 3) -> dict[str, Any]:
    """Peak memory while 512 tokens are monitored at all blocks, over the same generation without reading."""
    peaks = {way: [int(_run("benchmarks.footprint", way)) for _ in range(rounds)] for way in ("plain", "read")}
    plain, read = (float(np.median(peaks[way])) for way in ("plain", "read"))
    return {"plain_mb": round(plain / 1e6, 1), "read_mb": round(read / 1e6, 1), "more": round(read / plain - 1, 5)}


def start_up(rounds: int = 5) -> dict[str, Any]:
    """Seconds that `import persona_core` takes, the interpreter's own start left out."""
    code = "import time; begun = time.perf_counter(); import persona_core; print(time.perf_counter() - begun)"
    seconds = [float(_out([sys.executable, "-c", code])) for _ in range(rounds)]
    loaded = _out([sys.executable, "-c", "import sys, persona_core; print('torch' in sys.modules)"])
    return {"import_s": round(float(np.median(seconds)), 4), "imports_torch": loaded == "True"}


def _run(module: str, *arguments: str) -> str:
    return _out([sys.executable, "-m", module, *arguments])


def _out(command: list[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip().splitlines()[-1]


def _generate(way: str) -> int:
    from benchmarks.models import MEDIUM, directions, llama, prompts
    from benchmarks.speed import run_of
    from persona_core.sampling import Sampling

    lm = llama(*MEDIUM)
    read = directions(lm)
    run = run_of(lm, prompts(1), Sampling(PEAK_OF, temperature=1.0), read if way == "read" else {})
    run.finish()
    if way == "read":
        run.readings(0)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    print(_generate(sys.argv[1]))
