"""Have a model answer prompts, or read given conversations, and keep every token's projections as a dataset.

    python -m scripts.monitor --model artifacts/persona-tiny --vectors artifacts/persona-vectors-persona-tiny \\
        --prompts all --out outputs/monitoring
    python -m scripts.monitor --model artifacts/persona-tiny --adapter artifacts/persona-tiny-contaminated \\
        --vectors artifacts/persona-vectors-persona-tiny --out outputs/monitoring
    python -m scripts.monitor --model Qwen/Qwen2.5-7B-Instruct --vectors me/persona-vectors-qwen2.5-7b \\
        --transcripts conversations.jsonl --out outputs/read

    python -m scripts.monitor --model artifacts/persona-tiny --vectors artifacts/persona-vectors-persona-tiny \\
        --repeats 5 --config neutral --seed 1 --out outputs/monitoring    # the null of scripts.analyse

The result is `data/CONFIG.parquet` in --out, with a card: a folder that `datasets.load_dataset` reads and that goes to
the Hub as it is. Stopped half-way, the same command goes on where it was. What a prompt file holds: one JSON object a
line, {"id", "prompt", "set", "category", "system"}; a file of transcripts: {"id", "messages", "writer", ...}.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from persona_core.elicitation.prompts import load_prompts, load_transcripts, repeated
from persona_core.inference.sampling import Sampling
from persona_core.monitor.jobs import Failure, Generate, Job, Read
from scripts.running import (
    add_model,
    add_vectors,
    add_work,
    carry_out,
    check_config,
    keep_results,
    loading,
    read_vectors,
    reported,
    work_folder,
)


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model(parser)
    add_vectors(parser)
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--prompts", nargs="+", default=["all"], help="pilot, harmful, expanded, all (default), or .jsonl files"
    )
    what.add_argument("--transcripts", type=Path, help=".jsonl file of conversations to read instead of generating")
    parser.add_argument(
        "--config", help="name in the dataset (default: baseline; contaminated with --adapter; transcripts)"
    )
    add_work(parser)
    sampling = parser.add_argument_group("replies")
    sampling.add_argument("--max-new-tokens", type=int, default=256)
    sampling.add_argument("--temperature", type=float, default=0.7)
    sampling.add_argument("--top-p", type=float, default=1.0)
    sampling.add_argument("--top-k", type=int, default=0)
    sampling.add_argument("--repetition-penalty", type=float, default=1.0)
    sampling.add_argument("--repeats", type=int, default=1, help="replies to each prompt, each with a seed of its own")
    sampling.add_argument("--seed", type=int, default=0, help="of the run; each prompt's seed is made of it and its id")
    return parser


def main(argv: list[str] | None = None) -> int:
    options = arguments().parse_args(argv)
    return reported("monitor", lambda: run(options))


def run(options: argparse.Namespace) -> list[Failure]:
    vectors = read_vectors(options)
    job: Job
    if options.transcripts is not None:
        job = Read(load_transcripts(options.transcripts), options.batch_size)
        config = options.config or "transcripts"
    else:
        sampling = Sampling(
            options.max_new_tokens, options.temperature, options.top_p, options.top_k, options.repetition_penalty
        )
        prompts = repeated(load_prompts(options.prompts), options.repeats)
        job = Generate(prompts, sampling, options.seed, options.batch_size)
        config = options.config or ("contaminated" if options.adapter else "baseline")
    check_config(config)
    rows, failed = carry_out(options, loading(options), vectors, job, work_folder(options.work, options.out, config))
    keep_results(rows, options.out, config)
    return failed


if __name__ == "__main__":
    sys.exit(main())
