"""Import per-token result files of the older form into a results dataset.

    python -m scripts.import_results old/results.json --out outputs/imported

The file: a JSON list of {prompt, response, tokens, projections: {trait: [...]}, metadata}. What it does not say (token
ids, vectors, null, block) is marked as unknown, and the values as those before each token; the app and `Trace.warnings`
say so.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from persona_core.monitor.jobs import Failure
from persona_core.traces.importing import import_results
from scripts.running import check_config, keep_results, reported


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, help=".json files of the same traits")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results dataset")
    parser.add_argument("--config", default="imported", help="name in the dataset (default: %(default)s)")
    options = parser.parse_args(argv)
    return reported("import_results", lambda: run(options))


def run(options: argparse.Namespace) -> list[Failure]:
    check_config(options.config)
    keep_results([row for path in options.files for row in import_results(path)], options.out, options.config)
    return []


if __name__ == "__main__":
    sys.exit(main())
