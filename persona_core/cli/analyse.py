"""Analyse the runs of a results folder: when, how, where, the two models, the statistics. Tables and one HTML page.

It uses what the folder holds: `baseline` and `contaminated` (or any run), `replay` to tell text from weights, `neutral`
for alarms (persona monitor --prompts neutral --config neutral --seed 1; replies to at least 60 prompts, best 300 of
many kinds), annotated sentences for what the text shows (persona mark), and steered replies (persona intervene). The
page says what is missing.

Written to `analysis/` in the folder: `findings.json` (all figures), `replies.parquet` (a row per reply and trait),
`differences.parquet` (token by token, where both models read a text), `spans.parquet`, `onset.json` (the calibrated
detectors) and `report.html`, which works offline.

examples:
  persona analyse --results artifacts/persona-monitoring-persona-tiny --vectors artifacts/persona-vectors-persona-tiny
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from persona_core.cli.options import add_loading, add_results, add_seed, command_parser, loading
from persona_core.cli.running import execute, load


def arguments() -> argparse.ArgumentParser:
    parser = command_parser("analyse", __doc__)
    add_results(parser)
    parser.add_argument(
        "--vectors", type=Path, help="folder of the vectors: onset.json is written there too, for alarms during "
        "generation, unless the one there rests on more prompts",
    )  # fmt: skip
    parser.add_argument(
        "--annotations", "--marks", type=Path, help="file of annotated sentences (default: analysis/marks.jsonl)"
    )
    parser.add_argument("--rate", type=float, default=0.05, help="share of neutral replies that may raise an alarm")
    add_seed(parser, "random seed for every split, shuffle and bootstrap")
    parser.add_argument(
        "--model", help="baseline model, to compare z with its next-token entropy and with random directions"
    )
    parser.add_argument("--adapter", help="adapter of the contaminated model")
    add_loading(parser)
    parser.add_argument("--title", default="What the replies say", help="heading of the page")
    return parser


def main(argv: list[str] | None = None) -> int:
    return execute(arguments(), run, argv, first="loading {results}", resumes=False)


def run(options: argparse.Namespace) -> Sequence[str]:
    from persona_core.report.analysis_folder import analyse_folder
    from persona_core.report.sentences import group_reasons
    from persona_core.report.tables import REPORT
    from persona_core.traces.dataset import ANALYSIS

    models = {}
    if options.model is not None:
        models["baseline"] = load({**loading(options), "adapter": None, "adapter_revision": None})
        if options.adapter is not None:
            models["contaminated"] = load(loading(options))
    found = analyse_folder(
        options.results,
        vectors=options.vectors,
        annotations=options.annotations,
        models=models,
        rate=options.rate,
        seed=options.seed,
        title=options.title,
    )
    for reason in group_reasons([says for says in found.missing if says not in found.left_out]):
        print(f"not analysed: {reason}")
    print(options.results / ANALYSIS / REPORT)
    return found.left_out


if __name__ == "__main__":
    sys.exit(main())
