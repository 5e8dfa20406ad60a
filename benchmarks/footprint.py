"""Memory and start-up, each in a separate process.

python -m benchmarks.footprint plain    # one generation of 512 tokens, nothing read; prints the peak in bytes
python -m benchmarks.footprint read     # the same with 8 traits read at all blocks
"""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measuring import ratio

PEAK_OF = 512  # new tokens


def memory(rounds: int = 6) -> dict[str, Any]:
    """Peak memory while 512 tokens are monitored at all blocks, over the same generation without reading."""
    peaks: dict[str, list[float]] = {"plain": [], "read": []}
    for _ in range(rounds):
        for way, found in peaks.items():
            found.append(float(_run("benchmarks.footprint", way)))
    plain = round(float(np.median(peaks["plain"])) / 1e6, 1)
    return {"plain_mb": plain, "over_plain": ratio(peaks["read"], peaks["plain"]).to_dict()}


def start_up(rounds: int = 5) -> dict[str, Any]:
    """Seconds that `import persona_core` takes, without the start of the interpreter."""
    code = "import time; started = time.perf_counter(); import persona_core; print(time.perf_counter() - started)"
    seconds = [float(_out([sys.executable, "-c", code])) for _ in range(rounds)]
    loaded = _out([sys.executable, "-c", "import sys, persona_core; print('torch' in sys.modules)"])
    return {"import_s": round(float(np.median(seconds)), 4), "imports_torch": loaded == "True"}


def _run(module: str, *arguments: str) -> str:
    return _out([sys.executable, "-m", module, *arguments])


def _out(command: list[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip().splitlines()[-1]


def _generate(way: str) -> int:
    from benchmarks.models import SMALL, directions, llama, prompts
    from benchmarks.speed import run_of
    from persona_core.inference.sampling import Sampling

    lm = llama(*SMALL)
    read = directions(lm)
    _forget_peak()
    run = run_of(lm, prompts(1), Sampling(PEAK_OF, temperature=1.0), read if way == "read" else {})
    run.finish()
    if way == "read":
        run.readings(0)
    return _peak()


def _forget_peak() -> None:
    """Reset the peak: building the model takes more memory than running it."""
    if sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def _peak() -> int:
    """Bytes; outside Linux the peak of the whole process."""
    if sys.platform == "linux":
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    print(_generate(sys.argv[1]))
