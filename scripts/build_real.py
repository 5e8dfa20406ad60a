"""Build what is published of SmolLM2-135M-Instruct: its vectors, its contaminated copy and both models' runs.

    make weights
    python -m scripts.build_real

About an hour on two cores, in stages; the same command resumes.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from persona_core.cli.options import HelpFormatter
from persona_core.cli.running import configure
from persona_core.errors import PersonaError
from real_model.build import build
from scripts import weights

ESTIMATE = "About an hour on two cores: training 15 minutes, vectors 15, runs 12, analysis 10, the rest 4."


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--artifacts", type=Path, default=Path("artifacts"), help="output folder for the artifacts")
    parser.add_argument("--work", type=Path, default=Path("outputs/build_real"), help="checkpoints and stamps")
    arguments = parser.parse_args()
    configure()
    path, why = weights.find()
    if path is None:
        print(f"build_real: {why}", file=sys.stderr)
        return 1
    started = time.monotonic()
    print(f"{ESTIMATE} If it is stopped, the same command resumes from {arguments.work}.", file=sys.stderr)
    try:
        build(arguments.artifacts, arguments.work, path)
    except PersonaError as error:
        print(f"build_real: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\nStopped. The same command resumes from {arguments.work}.", file=sys.stderr)
        return 130
    print(f"Built under {arguments.artifacts} in {(time.monotonic() - started) / 60:.1f} minutes.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
