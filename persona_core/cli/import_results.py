"""Convert per-token result files in the older format into a results dataset.

The file: a JSON list of {prompt, response, tokens, projections: {trait: [...]}, metadata}. It lacks token ids,
vectors, null and block; these are marked as unknown, and the values as those before each token. The app and
`Trace.warnings` say so.

examples:
  persona import old/results.json --out outputs/imported
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from persona_core.cli.options import command_parser
from persona_core.cli.running import check_config, execute, keep_results

if TYPE_CHECKING:
    from persona_core.monitor.jobs import Failure


def main(argv: list[str] | None = None) -> int:
    parser = command_parser("import", __doc__)
    parser.add_argument("files", nargs="+", type=Path, help=".json files with the same traits")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results dataset")
    parser.add_argument("--config", default="imported", help="config name in the dataset")
    return execute(parser, run, argv, first="loading {files[0]}")


def run(options: argparse.Namespace) -> Sequence[Failure]:
    from persona_core.traces.importing import import_results

    check_config(options.config)
    keep_results([row for path in options.files for row in import_results(path)], options.out, options.config)
    return []


if __name__ == "__main__":
    sys.exit(main())
