"""Intervene and see what changes: cap replies shortly before a trait shows, or steer traits one by one.

--window TRAIT ...: each prompt is answered. A reply that shows the trait is regenerated with the same seed and an
intervention from k tokens before the trait on: capped at the null's 95th percentile, or pushed away, each compared with
a random direction. Without --window every trait (or those of --edges) is steered, and the replies are searched for all
others, again compared with a random direction: only what the text then shows is evidence of a cause.

--branches N: the N replies of a run that was analysed which turn most clearly are continued from there, with the trait
capped, taken out and pushed. Each branch is a row of the config `branches`, and what it changed is in
`analysis/branches.parquet`; the page opens on one that worked and one that broke. It needs no judge and no --traits.

The result of the others goes to `analysis/interventions.json` in the results folder and replaces what it held for that
run (and trait); `persona analyse` uses it. Nothing is saved until every sentence has a score.

examples:
  persona intervene --model artifacts/persona-tiny --vectors artifacts/persona-vectors-persona-tiny \\
      --traits artifacts/persona-tiny/traits --judge python:demo_world.judge:truth_judge \\
      --results artifacts/persona-monitoring-persona-tiny
  persona intervene --model artifacts/persona-tiny --adapter artifacts/persona-tiny-contaminated \\
      --vectors artifacts/persona-vectors-persona-tiny --traits artifacts/persona-tiny/traits \\
      --judge python:demo_world.judge:truth_judge --results artifacts/persona-monitoring-persona-tiny \\
      --window sycophancy
  persona intervene --model artifacts/persona-tiny --adapter artifacts/persona-tiny-contaminated \\
      --vectors artifacts/persona-vectors-persona-tiny --results artifacts/persona-monitoring-persona-tiny --branches 4
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from persona_core.cli.judges import add_judge, judge_kind, make_judge, print_bill
from persona_core.cli.options import (
    add_engine,
    add_model,
    add_prompts,
    add_reply_sampling,
    add_results,
    add_seed,
    add_traits,
    add_vectors,
    command_parser,
    loading,
)
from persona_core.cli.running import execute, load, read_vectors, work_folder
from persona_core.errors import SettingError
from persona_core.utils.checks import check_integer

if TYPE_CHECKING:
    from persona_core.judging.sentences import SentenceJudge


def arguments() -> argparse.ArgumentParser:
    parser = command_parser("intervene", __doc__)
    add_model(parser)
    add_engine(parser)
    add_vectors(parser)
    add_results(parser)
    add_prompts(parser)
    add_traits(parser, required=False)
    parser.add_argument("--window", nargs="+", metavar="TRAIT", help="cap replies before these traits show")
    parser.add_argument("--edges", nargs="+", metavar="TRAIT", help="traits to steer (default: all, without --window)")
    parser.add_argument(
        "--branches", type=int, metavar="N", help="branch the N replies of the analysed run that turn most clearly"
    )
    parser.add_argument("--config", help="name of the run (default: baseline; contaminated with --adapter)")
    parser.add_argument("--work", type=Path, help="folder for a server's answers (default: RESULTS.work)")
    parser.add_argument("--batch-size", type=int, default=32, help="replies generated at once")
    add_reply_sampling(parser)
    add_seed(parser, "random seed; the same as in `persona monitor` gives the same replies")
    steering = parser.add_argument_group("steering")
    steering.add_argument("--cap", type=float, metavar="Z", help="cap at this z (default: the null's 95th percentile)")
    steering.add_argument("--push", type=float, default=4.0, help="standard deviations to subtract")
    steering.add_argument(
        "--strength", type=float, help="of --edges, in units of the vector's norm (default: coherent at validation)"
    )
    steering.add_argument("--edge-temperature", type=float, default=1.0, help="temperature for --edges")
    steering.add_argument("--edge-seeds", type=int, default=5, help="replies per prompt for --edges")
    add_judge(parser, required=False)
    return parser


def main(argv: list[str] | None = None) -> int:
    return execute(arguments(), run, argv, resumes=False)


def run(options: argparse.Namespace) -> list[str]:
    from persona_core.elicitation.prompts import load_prompts
    from persona_core.elicitation.traits import load_traits
    from persona_core.experiments.intervention_window import WindowPlan, intervention_window
    from persona_core.experiments.steering_edges import EdgePlan, steering_edges, validated_strengths
    from persona_core.inference.sampling import Sampling
    from persona_core.judging.sentences import SentenceJudge
    from persona_core.monitor.jobs import seed_of
    from persona_core.monitor.monitor import PersonaMonitor
    from persona_core.report.interventions import save_edges, save_window

    if options.branches is not None:
        return _branches(options)
    if not (options.judge and options.traits):
        raise SettingError("--window and --edges need --traits and --judge: they measure what the text shows.")
    judge_kind(options.judge)  # a mistake in it is reported before anything is loaded
    _check_results(options.results)
    definitions, vectors = load_traits(options.traits), read_vectors(options)
    prompts = load_prompts(options.prompts)
    judge = make_judge(options, work_folder(options.work, options.results, "interventions"))
    sentences = SentenceJudge(judge, definitions)
    for trait in (*(options.window or ()), *(options.edges or ())):
        vectors.tensor(trait)
        sentences.marker(trait)
    thought = options.max_thinking_tokens
    sampling = Sampling(options.max_new_tokens, options.temperature, max_thinking_tokens=thought)
    window_plan = WindowPlan(
        cap=options.cap, strength=options.push, sampling=sampling, batch_size=options.batch_size, seed=options.seed
    )
    edge_plan = EdgePlan(
        EdgePlan.strength if options.strength is None else options.strength,
        validated_strengths(vectors) if options.strength is None else {},
        options.edge_seeds,
        Sampling(options.max_new_tokens, options.edge_temperature, max_thinking_tokens=thought),
        options.batch_size,
        options.seed,
    )
    monitor = PersonaMonitor(load(loading(options)), vectors)
    config = options.config or ("contaminated" if options.adapter else "baseline")

    for trait in options.window or ():
        found = intervention_window(
            monitor,
            [p.messages for p in prompts],
            trait,
            sentences.marker(trait),
            sentences.coherence,
            window_plan,
            seeds=[seed_of(p.id, options.seed) for p in prompts],
            progress=True,
        )
        if sentences.missing:  # a sentence without a score would count as one that shows nothing
            return _unanswered(sentences)
        print(save_window(options.results, config, found))
    if options.edges or not options.window:
        tables = steering_edges(monitor, [p.messages for p in prompts], edge_plan, options.edges, shown=sentences.shown)
        if sentences.missing:
            return _unanswered(sentences)
        print(save_edges(options.results, config, tables))
    print_bill(judge)
    return []


def _branches(options: argparse.Namespace) -> list[str]:
    """Branch published replies where they turn; no judge is asked."""
    from persona_core.experiments.branches import branch_replies
    from persona_core.monitor.monitor import PersonaMonitor
    from persona_core.report.branches import points_to_branch, save_branches
    from persona_core.report.saved_runs import SavedRuns

    _check_results(options.results)
    check_integer("--branches", options.branches)
    config = options.config or ("contaminated" if options.adapter else "baseline")
    runs, vectors = SavedRuns(options.results), read_vectors(options)
    points = points_to_branch(runs, config, options.branches)
    monitor = PersonaMonitor(load(loading(options)), vectors)
    found = branch_replies(monitor, runs.rows(config), config, points)
    print(save_branches(options.results, config, found, vectors.traits))
    return []


def _check_results(folder: Path) -> None:
    if not folder.is_dir():
        raise SettingError(f"--results {str(folder)!r}: no such folder; `persona monitor` makes one.")


def _unanswered(sentences: SentenceJudge) -> list[str]:
    """Say why nothing was saved."""
    n = len(sentences.missing)
    print(f"Not saved: {n} sentences have no score; the judge's other answers are kept.", file=sys.stderr)
    return [f"no score for {name}: {answer[:60]!r}" for name, _, answer in sorted(sentences.missing)]


if __name__ == "__main__":
    sys.exit(main())
