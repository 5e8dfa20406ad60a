"""How long `persona analyse` takes on the published runs: loading, all figures, tables and page.

    python -m benchmarks.analysis

Writes `benchmarks/results/analysis.json`: the median of three runs of the whole process.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.common import ARTIFACTS, ROOT, save
from demo_world.contaminated import RESULTS_NAME, VECTORS_NAME

RUNS = 3


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        results, vectors = Path(folder) / RESULTS_NAME, Path(folder) / VECTORS_NAME
        shutil.copytree(ARTIFACTS / RESULTS_NAME, results)
        shutil.copytree(ARTIFACTS / VECTORS_NAME, vectors)
        command = [sys.executable, "-m", "scripts.analyse", "--results", str(results), "--vectors", str(vectors)]
        seconds = []
        for _ in range(RUNS):
            started = time.monotonic()
            subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
            seconds.append(time.monotonic() - started)
        found = json.loads((results / "analysis" / "findings.json").read_text(encoding="utf-8"))
        figures = {
            "seconds": round(statistics.median(seconds), 1),
            "slowest": round(max(seconds), 1),
            "replies": sum(n for config, n in found["about"]["n_replies"].items() if config in found["how"]),
            "neutral": found["about"]["n_replies"]["neutral"],
            "page_mb": round((results / "analysis" / "report.html").stat().st_size / 1e6, 1),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
        }
    save("analysis", figures)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
