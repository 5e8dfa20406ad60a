"""Have each of two models read the other's replies, to separate the effects of text and weights.

It takes the configs `baseline` and `contaminated` that `persona monitor` wrote to --out, and adds the config `replay`:
the model without the adapter reads the contaminated replies, the one with it the baseline's, with the same token ids.
For a contaminated model that is not an adapter, use --contaminated-model.

examples:
  persona replay --model artifacts/persona-tiny --adapter artifacts/persona-tiny-contaminated \\
      --vectors artifacts/persona-vectors-persona-tiny --out outputs/monitoring
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from persona_core.cli.options import add_engine, add_model, add_vectors, add_work, command_parser, loading
from persona_core.cli.running import carry_out, execute, keep_results, read_vectors, work_folder
from persona_core.errors import NotFound, SettingError

if TYPE_CHECKING:
    from persona_core.monitor.jobs import Failure, Row


def arguments() -> argparse.ArgumentParser:
    parser = command_parser("replay", __doc__)
    add_model(parser)
    add_engine(parser)
    add_vectors(parser)
    parser.add_argument("--contaminated-model", help="full model instead of an adapter: Hub id or folder")
    add_work(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    return execute(arguments(), run, argv)


def run(options: argparse.Namespace) -> Sequence[Failure]:
    from persona_core.monitor.jobs import ReplayJob
    from persona_core.traces.dataset import DATA, read_results
    from persona_core.utils.hub import split_revision

    if (options.adapter is None) == (options.contaminated_model is None):
        raise SettingError("Name the contaminated model: either --adapter or --contaminated-model.")
    vectors = read_vectors(options)
    base = {**loading(options), "adapter": None, "adapter_revision": None}
    changed = loading(options)
    if options.contaminated_model is not None:
        changed["name"], changed["revision"] = split_revision(options.contaminated_model)
        changed["gguf_file"] = None
    rows: list[Row] = []
    failed: list[Failure] = []
    for reader, model, writer in (("baseline", base, "contaminated"), ("contaminated", changed, "baseline")):
        path = options.out / DATA / f"{writer}.parquet"
        if not path.is_file():
            raise NotFound(f"No {str(path)!r}; run `persona monitor` for the config {writer!r} first.")
        job = ReplayJob.of(read_results(path), options.batch_size)
        work = work_folder(options.work, options.out, "replay") / f"{reader}-reads-{writer}"
        found, lost = carry_out(options, model, vectors, job, work)
        rows += found
        failed += lost
    keep_results(rows, options.out, "replay")
    return failed


if __name__ == "__main__":
    sys.exit(main())
