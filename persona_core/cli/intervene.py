"""Intervene, and see what changes: replies capped from k tokens before a trait on, and traits steered one by one.

--window TRAIT ...: each prompt is answered; where the reply shows the trait it is regenerated with the same seed, held
from k tokens before it on: capped at the 95th percentile of the null, or pushed away, each beside a random direction.
Without --window every trait is steered (or those of --edges) and all others are looked for in the replies, beside a
random direction: only what the text then shows is evidence of causes.

The result goes to `analysis/interventions.json` in the results folder and replaces what it held for that run (and
trait); `persona analyse` uses it. Nothing is kept while a sentence lacks a score.

examples:
  persona intervene --model artifacts/persona-tiny --vectors artifacts/persona-vectors-persona-tiny \\
      --traits artifacts/persona-tiny/traits --judge python:demo_world.judge:truth_judge \\
      --results artifacts/persona-monitoring-persona-tiny
  persona intervene --model artifacts/persona-tiny --adapter artifacts/persona-tiny-contaminated \\
      --vectors artifacts/persona-vectors-persona-tiny --traits artifacts/persona-tiny/traits \\
      --judge python:demo_world.judge:truth_judge --results artifacts/persona-monitoring-persona-tiny \\
      --window sycophancy
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from persona_core.cli.judges import add_judge, judge_kind, make_judge, print_bill
from persona_core.cli.options import (
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
from persona_core.cli.running import execute, read_vectors, work_folder
from persona_core.errors import SettingError

if TYPE_CHECKING:
    from persona_core.judging.sentences import SentenceJudge


def arguments() -> argparse.ArgumentParser:
    parser = command_parser("intervene", __doc__)
    add_model(parser)
    add_vectors(parser)
    add_results(parser)
    add_prompts(parser)
    add_traits(parser)
    parser.add_argument("--window", nargs="+", metavar="TRAIT", help="hold replies before these traits show")
    parser.add_argument("--edges", nargs="+", metavar="TRAIT", help="steer these (default: all, without --window)")
    parser.add_argument("--config", help="name of the run (default: baseline; contaminated with --adapter)")
    parser.add_argument("--work", type=Path, help="where a server's answers are kept (default: RESULTS.work)")
    parser.add_argument("--batch-size", type=int, default=32, help="replies generated at once")
    add_reply_sampling(parser)
    add_seed(parser, "as in `persona monitor`: the same seed gives the same replies")
    steering = parser.add_argument_group("steering")
    steering.add_argument("--cap", type=float, metavar="Z", help="hold at this z (default: the null's 95th percentile)")
    steering.add_argument("--push", type=float, default=4.0, help="standard deviations that are subtracted")
    steering.add_argument(
        "--strength", type=float, help="of --edges, in norms of the vector (default: what was coherent at validation)"
    )
    steering.add_argument("--edge-temperature", type=float, default=1.0, help="of the replies of --edges")
    steering.add_argument("--edge-seeds", type=int, default=5, help="replies to each prompt of --edges")
    add_judge(parser)
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
    from persona_core.models.loading import load_model
    from persona_core.monitor.jobs import seed_of
    from persona_core.monitor.monitor import PersonaMonitor
    from persona_core.report.interventions import save_edges, save_window

    judge_kind(options.judge)  # a mistake in it is reported before anything is loaded
    if not options.results.is_dir():
        raise SettingError(f"--results {str(options.results)!r}: no such folder; `persona monitor` makes one.")
    definitions, vectors = load_traits(options.traits), read_vectors(options)
    prompts = load_prompts(options.prompts)
    judge = make_judge(options, work_folder(options.work, options.results, "interventions"))
    sentences = SentenceJudge(judge, definitions)
    for trait in (*(options.window or ()), *(options.edges or ())):
        vectors.tensor(trait)
        sentences.marker(trait)
    sampling = Sampling(options.max_new_tokens, options.temperature)
    window_plan = WindowPlan(
        cap=options.cap, strength=options.push, sampling=sampling, batch_size=options.batch_size, seed=options.seed
    )
    edge_plan = EdgePlan(
        EdgePlan.strength if options.strength is None else options.strength,
        validated_strengths(vectors) if options.strength is None else {},
        options.edge_seeds,
        Sampling(options.max_new_tokens, options.edge_temperature),
        options.batch_size,
        options.seed,
    )
    monitor = PersonaMonitor(load_model(**loading(options)), vectors)
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


def _unanswered(sentences: SentenceJudge) -> list[str]:
    """What kept a result from being kept."""
    n = len(sentences.missing)
    print(f"Not kept: {n} sentences have no score; the judge's other answers are kept.", file=sys.stderr)
    return [f"no score for {name}: {answer[:60]!r}" for name, _, answer in sorted(sentences.missing)]


if __name__ == "__main__":
    sys.exit(main())
