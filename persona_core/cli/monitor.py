"""Have a model answer prompts or read existing conversations, and save every token's projections as a dataset.

The result is `data/CONFIG.parquet` in --out, with a card: a folder that `datasets.load_dataset` reads and that can be
pushed to the Hub as it is. The same command resumes a run that was stopped.

A prompt file holds one JSON object per line: {"id", "prompt", "set", "category", "system"}. A file of transcripts:
{"id", "messages", "writer", ...}.

examples:
  persona monitor --model artifacts/persona-tiny --vectors artifacts/persona-vectors-persona-tiny \\
      --prompts all --out outputs/monitoring
  persona monitor --model artifacts/persona-tiny --adapter artifacts/persona-tiny-contaminated \\
      --vectors artifacts/persona-vectors-persona-tiny --out outputs/monitoring
  persona monitor --model Qwen/Qwen2.5-7B-Instruct --vectors me/persona-vectors-qwen2.5-7b \\
      --transcripts conversations.jsonl --out outputs/read

the null for `persona analyse`:
  persona monitor --model artifacts/persona-tiny --vectors artifacts/persona-vectors-persona-tiny \\
      --prompts neutral --config neutral --seed 1 --out outputs/monitoring
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from persona_core.cli.options import (
    add_engine,
    add_model,
    add_prompts,
    add_reply_sampling,
    add_seed,
    add_vectors,
    add_work,
    command_parser,
    loading,
)
from persona_core.cli.running import carry_out, check_config, execute, keep_results, read_vectors, work_folder

if TYPE_CHECKING:
    from persona_core.monitor.jobs import Failure, Job


def arguments() -> argparse.ArgumentParser:
    parser = command_parser("monitor", __doc__)
    add_model(parser)
    add_engine(parser)
    add_vectors(parser)
    source = parser.add_mutually_exclusive_group()
    add_prompts(source)
    source.add_argument("--transcripts", type=Path, help=".jsonl file of conversations to read instead of generating")
    parser.add_argument(
        "--config", help="config name (default: baseline; contaminated with --adapter; transcripts with --transcripts)"
    )
    add_work(parser)
    sampling = parser.add_argument_group("replies")
    add_reply_sampling(sampling)
    sampling.add_argument("--top-p", type=float, default=1.0, help="nucleus sampling; 1 disables it")
    sampling.add_argument("--top-k", type=int, default=0, help="sample from the k likeliest tokens; 0 disables it")
    sampling.add_argument("--repetition-penalty", type=float, default=1.0, help="repetition penalty; 1 disables it")
    sampling.add_argument("--repeats", type=int, default=1, help="replies per prompt, each with its own seed")
    add_seed(sampling, "random seed; each prompt's is derived from it and the prompt's id")
    return parser


def main(argv: list[str] | None = None) -> int:
    return execute(arguments(), run, argv)


def run(options: argparse.Namespace) -> Sequence[Failure]:
    from persona_core.elicitation.prompts import load_prompts, load_transcripts, repeated
    from persona_core.inference.sampling import Sampling
    from persona_core.monitor.jobs import GenerateJob, ReadJob

    vectors = read_vectors(options)
    job: Job
    if options.transcripts is not None:
        job = ReadJob(load_transcripts(options.transcripts), options.batch_size)
        config = options.config or "transcripts"
    else:
        sampling = Sampling(
            options.max_new_tokens,
            options.temperature,
            options.top_p,
            options.top_k,
            options.repetition_penalty,
            options.max_thinking_tokens,
        )
        prompts = repeated(load_prompts(options.prompts), options.repeats)
        job = GenerateJob(prompts, sampling, options.seed, options.batch_size)
        config = options.config or ("contaminated" if options.adapter else "baseline")
    check_config(config)
    rows, failed = carry_out(options, loading(options), vectors, job, work_folder(options.work, options.out, config))
    keep_results(rows, options.out, config)
    return failed


if __name__ == "__main__":
    sys.exit(main())
