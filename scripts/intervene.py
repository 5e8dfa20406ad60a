"""Step in, and see what it changes: replies held from k tokens before a trait on, and traits steered one by one.

    python -m scripts.intervene --model artifacts/persona-tiny --vectors artifacts/persona-vectors-persona-tiny \\
        --traits artifacts/persona-tiny/traits --judge demo --results artifacts/persona-monitoring-persona-tiny
    python -m scripts.intervene --model artifacts/persona-tiny --adapter artifacts/persona-tiny-contaminated \\
        --vectors artifacts/persona-vectors-persona-tiny --traits artifacts/persona-tiny/traits --judge demo \\
        --results artifacts/persona-monitoring-persona-tiny --window sycophancy

--window TRAIT ...: each prompt is answered; where the reply shows the trait it is written again with the same seed,
held from k tokens before it on: capped at the 95th percentile of the null, or pushed away, each beside a random
direction. Without --window every trait is steered (or those of --edges) and all others are looked for in the replies,
beside a random direction: only what the text then shows speaks of causes.

The result goes to `analysis/interventions.json` in the results folder, in place of what was kept for that run (and
trait); scripts.analyse takes it in. Nothing is kept while a sentence lacks a score.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from persona_core.elicitation.prompts import load_prompts
from persona_core.elicitation.traits import load_traits
from persona_core.errors import SettingError
from persona_core.experiments.intervention_window import WindowPlan, intervention_window
from persona_core.experiments.steering_edges import EdgePlan, steering_edges, validated_strengths
from persona_core.inference.sampling import Sampling
from persona_core.judging.judge import BilledJudge
from persona_core.judging.sentences import SentenceJudge
from persona_core.models.loading import load_model
from persona_core.monitor.jobs import seed_of
from persona_core.monitor.monitor import PersonaMonitor
from persona_core.report.analysis_folder import save_edges, save_window
from scripts.extract_vectors import judge_kind, make_judge, prices
from scripts.running import add_model, add_vectors, loading, read_vectors, reported, work_folder


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model(parser)
    add_vectors(parser)
    parser.add_argument("--results", type=Path, required=True, help="folder of the results dataset")
    parser.add_argument("--prompts", nargs="+", default=["all"], help="pilot, harmful, expanded, all, or .jsonl files")
    parser.add_argument("--traits", nargs="+", required=True, help="names of shipped traits, JSON files, or folders")
    parser.add_argument("--judge", required=True, help="openai:MODEL, local:MODEL, or demo (the demo model only)")
    parser.add_argument("--window", nargs="+", metavar="TRAIT", help="hold replies before these traits show")
    parser.add_argument("--edges", nargs="+", metavar="TRAIT", help="steer these (default: all, without --window)")
    parser.add_argument("--config", help="name of the run (default: baseline; contaminated with --adapter)")
    parser.add_argument("--work", type=Path, help="where a server's answers are kept (default: RESULTS.work)")
    parser.add_argument("--batch-size", type=int, default=32, help="replies written at once (32)")
    parser.add_argument("--max-new-tokens", type=int, default=256)
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--seed", type=int, default=0, help="as in scripts.monitor: the same replies are written")
    steering = parser.add_argument_group("steering")
    steering.add_argument("--cap", type=float, metavar="Z", help="hold at this z (default: the null's 95th percentile)")
    steering.add_argument("--push", type=float, default=4.0, help="standard deviations that are taken off (4)")
    steering.add_argument(
        "--strength", type=float, help="of --edges, in norms of the vector (default: what was coherent at validation)"
    )
    steering.add_argument("--edge-temperature", type=float, default=1.0, help="of the replies of --edges (1)")
    steering.add_argument("--edge-seeds", type=int, default=5, help="replies to each prompt of --edges (5)")
    judging = parser.add_argument_group("judging")
    judging.add_argument("--judge-url", help="server of the judge (default: OPENAI_BASE_URL, else OpenAI)")
    judging.add_argument("--concurrency", type=int, default=16, help="requests under way at once (16)")
    judging.add_argument("--timeout", type=float, default=60.0, help="seconds for one request (60)")
    judging.add_argument("--prices", type=prices, metavar="IN,OUT", help="money per million tokens, for the bill")
    return parser


def main(argv: list[str] | None = None) -> int:
    options = arguments().parse_args(argv)
    return reported("intervene", lambda: run(options), resumes=False)


def run(options: argparse.Namespace) -> list[str]:
    judge_kind(options.judge)  # a mistake in it is said before anything is loaded
    if not options.results.is_dir():
        raise SettingError(f"--results {str(options.results)!r}: no such folder; scripts.monitor makes one.")
    definitions, vectors = load_traits(options.traits), read_vectors(options)
    prompts = load_prompts(options.prompts)
    judge = make_judge(options, work_folder(options.work, options.results, "interventions"))
    sentences = SentenceJudge(judge, definitions)
    for trait in (*(options.window or ()), *(options.edges or ())):
        vectors.tensor(trait)
        sentences.marker(trait)
    sampling = Sampling(options.max_new_tokens, options.temperature)
    held = WindowPlan(
        cap=options.cap, strength=options.push, sampling=sampling, batch_size=options.batch_size, seed=options.seed
    )
    steered = EdgePlan(
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
            held,
            seeds=[seed_of(p.id, options.seed) for p in prompts],
            progress=True,
        )
        if sentences.missing:  # a sentence without a score would count as one that shows nothing
            return unanswered(sentences)
        print(save_window(options.results, config, found))
    if options.edges or not options.window:
        tables = steering_edges(monitor, [p.messages for p in prompts], steered, options.edges, shown=sentences.shown)
        if sentences.missing:
            return unanswered(sentences)
        print(save_edges(options.results, config, tables))
    if isinstance(judge, BilledJudge):
        print(f"The bill: {judge.bill}.")
    return []


def unanswered(sentences: SentenceJudge) -> list[str]:
    """What kept a result from being kept."""
    print(
        f"Not kept: {len(sentences.missing)} sentences have no score; the judge's other answers are.", file=sys.stderr
    )
    return [f"no score for {name}: {answer[:60]!r}" for name, _, answer in sorted(sentences.missing)]


if __name__ == "__main__":
    sys.exit(main())
