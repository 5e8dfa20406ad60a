"""Analyse the runs of a results folder: when, how, where, the two models, the statistics. Tables and one HTML page.

    python -m scripts.analyse --results artifacts/persona-monitoring-persona-tiny \\
        --vectors artifacts/persona-vectors-persona-tiny

It takes what the folder holds: `baseline` and `contaminated` (or any run), `replay` to tell text from weights,
`neutral` for alarms (scripts.monitor --config neutral --repeats 5 --seed 1; at least 300 replies), marked sentences for
what the text shows (scripts.mark), and what was steered (scripts.intervene). What is not there is said on the page.

Written to `analysis/` in the folder: `findings.json` (all figures), `replies.parquet` (a row for each reply and trait),
`differences.parquet` (token by token, where both models read a text), `spans.parquet`, `onset.json` (the calibrated
detectors) and `report.html`, which works offline.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from persona_core.models.loading import load_model
from persona_core.report.analysis_folder import analyse_folder
from persona_core.report.sentences import group_reasons
from persona_core.report.tables import REPORT
from persona_core.traces.dataset import ANALYSIS
from scripts.running import add_loading, loading, reported


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, required=True, help="folder of the results dataset")
    parser.add_argument(
        "--vectors", type=Path, help="folder of the vectors: their cosines are the floor of couplings; onset.json is "
        "written there as well, for alarms while a model writes",
    )  # fmt: skip
    parser.add_argument("--marks", type=Path, help="file of marked sentences (default: analysis/marks.jsonl)")
    parser.add_argument("--rate", type=float, default=0.05, help="share of neutral replies that may alarm (0.05)")
    parser.add_argument("--seed", type=int, default=0, help="of every split, shuffle and bootstrap")
    parser.add_argument("--model", help="the baseline, to hold its next-token entropy and random directions against z")
    parser.add_argument("--adapter", help="of the contaminated model")
    add_loading(parser)
    parser.add_argument("--title", default="What the replies say", help="heading of the page")
    return parser


def main(argv: list[str] | None = None) -> int:
    options = arguments().parse_args(argv)
    return reported("analyse", lambda: run(options), resumes=False)


def run(options: argparse.Namespace) -> list[str]:
    models = {}
    if options.model is not None:
        models["baseline"] = load_model(**{**loading(options), "adapter": None, "adapter_revision": None})
        if options.adapter is not None:
            models["contaminated"] = load_model(**loading(options))
    found = analyse_folder(
        options.results,
        vectors=options.vectors,
        marks=options.marks,
        models=models,
        rate=options.rate,
        seed=options.seed,
        title=options.title,
    )
    for reason in group_reasons(found.missing):
        print(f"not analysed: {reason}")
    print(options.results / ANALYSIS / REPORT)
    return []


if __name__ == "__main__":
    sys.exit(main())
