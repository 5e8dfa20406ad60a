"""Annotate the sentences of published replies that show a trait, with a judge.

Every sentence of every reply is judged once per trait, and those with a score of 50 or more are written to
`analysis/marks.jsonl` in the results folder: id, config, trait, characters of the response, score, text. Annotations of
other configs and traits in that file are kept, as are those made by hand. `judged.json` lists which traits were judged.
A server's answers are cached beside the results folder, so the same command resumes.

examples:
  persona mark --results artifacts/persona-monitoring-persona-tiny --traits artifacts/persona-tiny/traits \\
      --judge python:demo_world.judge:truth_judge
  persona mark --results outputs/monitoring --traits sycophancy --judge openai:gpt-5-mini
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from persona_core.cli.judges import add_judge, cost_of, judge_kind, make_judge, print_bill
from persona_core.cli.options import DTYPES, add_results, add_traits, command_parser
from persona_core.cli.running import execute, work_folder
from persona_core.errors import NotFound, SettingError

if TYPE_CHECKING:
    from persona_core.judging.annotations import Annotation, UnscoredSentence

SKIPPED = ("replay", "neutral")
"""Unless named: the first holds the same replies again, the second hundreds that need no annotations."""


def arguments() -> argparse.ArgumentParser:
    parser = command_parser("mark", __doc__)
    add_results(parser)
    parser.add_argument("--config", nargs="+", help="which runs (default: all but replay and neutral)")
    add_traits(parser)
    parser.add_argument("--work", type=Path, help="folder for a server's answers (default: RESULTS.work)")
    add_judge(parser)
    parser.add_argument("--estimate", action="store_true", help="print what judging would cost, and exit")
    parser.add_argument("--dtype", choices=DTYPES, default="auto", help="for a local judge")
    parser.add_argument("--device", default="auto", help="for a local judge")
    return parser


def main(argv: list[str] | None = None) -> int:
    return execute(arguments(), run, argv, first="loading {results}")


def run(options: argparse.Namespace) -> list[str]:
    """Annotate the runs; returns the sentences without a score."""
    from persona_core.elicitation.traits import load_traits
    from persona_core.judging.annotations import (
        annotate_sentences,
        load_annotations,
        save_annotations,
        save_judged_traits,
        sentence_questions,
    )
    from persona_core.report.tables import ANNOTATIONS, JUDGED
    from persona_core.traces.dataset import ANALYSIS, DATA, configs_of, read_results
    from persona_core.utils.workdir import lock

    judge_kind(options.judge)  # a mistake in it is reported before anything is read
    traits = load_traits(options.traits)
    present = configs_of(options.results)
    configs = tuple(dict.fromkeys(options.config or [c for c in present if c not in SKIPPED]))
    if not configs or set(configs) - set(present):
        raise NotFound(f"{str(options.results)!r} holds the configs {', '.join(present) or 'none'}; name one of them.")
    rows = {config: read_results(options.results / DATA / f"{config}.parquet") for config in configs}
    judge = make_judge(options, work_folder(options.work, options.results, "marks"))
    questions = [q for of_config in rows.values() for q in sentence_questions(of_config, traits)]
    if not questions:
        raise SettingError("No reply has any text: there is nothing to annotate.")
    print(f"Judging will take {cost_of(judge, questions)}.")
    if options.estimate:
        return []
    path = options.results / ANALYSIS / ANNOTATIONS
    path.parent.mkdir(exist_ok=True)
    new: list[Annotation] = []
    missing: list[UnscoredSentence] = []
    held = lock(path.parent)
    try:
        for config, of_config in rows.items():
            found = annotate_sentences(of_config, traits, judge, config)
            new += found.annotations
            missing += found.unscored
            counts = ", ".join(f"{t.name} {sum(m.trait == t.name for m in found.annotations)}" for t in traits)
            print(f"{config}: {found.n_sentences} questions; sentences that show a trait: {counts}")
            if found.empty:
                print(f"{config}: {len(found.empty)} replies have no text: {', '.join(found.empty)}")
        before = load_annotations(path) if path.is_file() else []
        kept = _kept(before, {(config, t.name) for config in configs for t in traits}, missing)
        answered = {
            c: [t.name for t in traits if not any((m.config, m.trait) == (c, t.name) for m in missing)] for c in rows
        }
        save_judged_traits(answered, path.with_name(JUDGED))
        print(f"{len(kept) + len(new)} annotations: {save_annotations([*kept, *new], path)}")
    finally:
        held.release()
    print_bill(judge)
    return [str(m) for m in missing]


def _kept(
    before: Sequence[Annotation], redone: set[tuple[str, str]], missing: Sequence[UnscoredSentence]
) -> list[Annotation]:
    """Annotations that stay: of other runs and traits, made by hand, or of sentences that got no score this time."""
    from persona_core.judging.annotations import BY_A_JUDGE

    unscored = {(m.config, m.id, m.trait, m.start, m.end) for m in missing}
    return [
        m
        for m in before
        if (m.config, m.trait) not in redone
        or m.how not in BY_A_JUDGE
        or (m.config, m.id, m.trait, m.start, m.end) in unscored
    ]


if __name__ == "__main__":
    sys.exit(main())
