"""Mark the sentences of published replies that show a trait, by a judge.

    python -m scripts.mark --results artifacts/persona-monitoring-persona-tiny --traits artifacts/persona-tiny/traits \\
        --judge demo
    python -m scripts.mark --results outputs/monitoring --traits sycophancy --judge openai:gpt-5-mini

Every sentence of every reply is put to the judge, once for each trait, and those with a score of 50 or more are written
to `analysis/marks.jsonl` in the results folder: id, config, trait, characters of the response, score, text. Marks of
other configs and traits that the file holds are kept, and so are marks that were made by hand. `judged.json` beside it
says what was looked for. Answers of a server are kept beside the results folder, so that the same command goes on where
it was stopped.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from persona_core.elicitation.traits import load_traits
from persona_core.errors import NotFound, SettingError
from persona_core.judging.annotations import (
    BY_A_JUDGE,
    Mark,
    Missing,
    load_marks,
    mark_sentences,
    save_judged,
    save_marks,
    sentence_questions,
)
from persona_core.judging.judge import BilledJudge
from persona_core.models.loading import DTYPES
from persona_core.report.tables import JUDGED, MARKS
from persona_core.traces.dataset import ANALYSIS, DATA, configs_of, read_results
from persona_core.utils.workdir import lock, unlock
from scripts.extract_vectors import judge_kind, make_judge, prices
from scripts.running import reported, work_folder

LEFT_OUT = ("replay", "neutral")
"""Unless named: the one holds the same replies again, the other some hundreds in which nothing is looked for."""


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, required=True, help="folder of the results dataset")
    parser.add_argument("--config", nargs="+", help="which runs (default: all but replay and neutral)")
    parser.add_argument("--traits", nargs="+", required=True, help="names of shipped traits, JSON files, or folders")
    parser.add_argument(
        "--judge",
        required=True,
        help="openai:MODEL (with OPENAI_API_KEY or --judge-url), local:MODEL, or demo (the demo model only)",
    )
    parser.add_argument("--work", type=Path, help="where a server's answers are kept (default: RESULTS.work)")
    judging = parser.add_argument_group("judging")
    judging.add_argument("--judge-url", help="server of the judge (default: OPENAI_BASE_URL, else OpenAI)")
    judging.add_argument("--concurrency", type=int, default=16, help="requests under way at once (16)")
    judging.add_argument("--timeout", type=float, default=60.0, help="seconds for one request (60)")
    judging.add_argument("--prices", type=prices, metavar="IN,OUT", help="money per million tokens, for the estimate")
    judging.add_argument("--estimate", action="store_true", help="say what judging would cost, and stop")
    judging.add_argument("--dtype", choices=("auto", *DTYPES), default="auto", help="of a local judge")
    judging.add_argument("--device", default="auto", help="of a local judge")
    return parser


def main(argv: list[str] | None = None) -> int:
    options = arguments().parse_args(argv)
    return reported("mark", lambda: run(options))


def run(options: argparse.Namespace) -> list[str]:
    """Mark the runs; returns the sentences without a score."""
    judge_kind(options.judge)  # a mistake in it is said before anything is read
    traits = load_traits(options.traits)
    held = configs_of(options.results)
    configs = tuple(dict.fromkeys(options.config or [c for c in held if c not in LEFT_OUT]))
    if not configs or set(configs) - set(held):
        raise NotFound(f"{str(options.results)!r} holds the configs {', '.join(held) or 'none'}; name one of them.")
    rows = {config: read_results(options.results / DATA / f"{config}.parquet") for config in configs}
    judge = make_judge(options, work_folder(options.work, options.results, "marks"))
    questions = [q for own in rows.values() for q in sentence_questions(own, traits)]
    if not questions:
        raise SettingError("No reply has any text: there is nothing to mark.")
    free = f"{len(questions)} questions, free of charge"
    print(f"Judging will take {judge.estimate(questions) if isinstance(judge, BilledJudge) else free}.")
    if options.estimate:
        return []
    path = options.results / ANALYSIS / MARKS
    path.parent.mkdir(exist_ok=True)
    new: list[Mark] = []
    missing: list[Missing] = []
    handle = lock(path.parent)
    try:
        for config, own in rows.items():
            found = mark_sentences(own, traits, judge, config)
            new += found.marks
            missing += found.missing
            counts = {t.name: sum(m.trait == t.name for m in found.marks) for t in traits}
            print(f"{config}: {found.n_sentences} answers asked for; marks: " + _says(counts))
            if found.empty:
                print(f"{config}: {len(found.empty)} replies have no text: {', '.join(found.empty)}")
        before = load_marks(path) if path.is_file() else []
        marks = [*_kept(before, {(config, t.name) for config in configs for t in traits}, missing), *new]
        answered = {
            c: [t.name for t in traits if not any((m.config, m.trait) == (c, t.name) for m in missing)] for c in rows
        }
        save_judged(answered, path.with_name(JUDGED))
        print(f"{len(marks)} marks: {save_marks(marks, path)}")
    finally:
        unlock(handle)
    if isinstance(judge, BilledJudge):
        print(f"The bill: {judge.bill}.")
    return [str(m) for m in missing]


def _kept(before: Sequence[Mark], redone: set[tuple[str, str]], missing: Sequence[Missing]) -> list[Mark]:
    """Marks that stay: of other runs and traits, made by hand, or of sentences that the judge did not answer now."""
    open_places = {(m.config, m.id, m.trait, m.start, m.end) for m in missing}
    return [
        m
        for m in before
        if (m.config, m.trait) not in redone
        or m.how not in BY_A_JUDGE
        or (m.config, m.id, m.trait, m.start, m.end) in open_places
    ]


def _says(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {n}" for name, n in counts.items())


if __name__ == "__main__":
    sys.exit(main())
