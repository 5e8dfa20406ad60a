"""How a command starts and ends: settings, first line, exit status; and how its results are written."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dotenv import find_dotenv, load_dotenv

from persona_core.cli.options import workers
from persona_core.errors import PersonaError, SettingError

if TYPE_CHECKING:
    from persona_core.models.language_model import LanguageModel
    from persona_core.monitor.jobs import Failure, Job, Row
    from persona_core.vectors.vectors import PersonaVectors

NOISY = ("httpx", "httpx2", "datasets", "transformers", "openai", "kaleido", "choreographer", "gguf")


def configure() -> None:
    """Settings from .env (the environment wins), our own log at INFO, chatty libraries at WARNING."""
    load_dotenv(find_dotenv(usecwd=True))
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")  # read when vLLM is imported
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.WARNING)


def execute(
    parser: argparse.ArgumentParser,
    run: Callable[[argparse.Namespace], Sequence[Failure | str]],
    argv: Sequence[str] | None,
    *,
    first: str = "loading {model}",
    resumes: bool = True,
) -> int:
    """Run a command and say how it ended: 0, 1 with what is missing or wrong, 130 when it was stopped.

    Args:
        parser: its options.
        run: does the work and returns what could not be done, with the reason. It is the place to import torch.
        argv: its arguments; None: those of the process.
        first: the line that appears before anything large is imported, with the options' values.
        resumes: whether the same command picks up where it stopped.
    """
    options, name = parser.parse_args(argv), parser.prog
    configure()
    started = time.monotonic()
    out = getattr(options, "out", None)
    if isinstance(out, Path) and out.is_file():  # otherwise found when the work is done and is to be written
        print(f"{name}: --out {out} is a file; name a folder.", file=sys.stderr)
        return 1
    print(f"{name}: {first.format(**vars(options))} ...", file=sys.stderr, flush=True)
    try:
        missing = run(options)
    except PersonaError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1
    except OSError as error:  # a full disk, a folder that cannot be written
        print(f"{name}: {error}. What was written is kept; run the same command to continue.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        rest = "resumes" if resumes else "keeps the finished part and repeats the rest"
        print(f"\nStopped. The same command {rest}.", file=sys.stderr)
        return 130
    for what in missing:
        print(f"missing: {what if isinstance(what, str) else ': '.join(what)}", file=sys.stderr)
    if missing:
        print(f"{len(missing)} could not be done; run the same command to retry.", file=sys.stderr)
    print(f"Done in {(time.monotonic() - started) / 60:.1f} minutes.")
    return 1 if missing else 0


def load(arguments: Mapping[str, Any]) -> LanguageModel:
    """The model that these arguments of `load_model` name, with as many threads as it can use."""
    from persona_core.models.loading import load_model
    from persona_core.models.threads import fit_threads

    lm = load_model(**arguments)
    fit_threads(lm)
    return lm


def read_vectors(options: argparse.Namespace) -> PersonaVectors:
    """The vectors of `--vectors`."""
    from persona_core.utils.hub import split_revision
    from persona_core.vectors.vectors import PersonaVectors

    return PersonaVectors.from_pretrained(*split_revision(options.vectors))


def carry_out(
    options: argparse.Namespace, arguments: Mapping[str, Any], vectors: PersonaVectors, job: Job, work: Path
) -> tuple[list[Row], list[Failure]]:
    """Run the job here, or on Ray workers with --ray."""
    blocks = _blocks(options.blocks)
    if options.ray:
        from persona_core.monitor.ray import run_sharded

        return run_sharded(arguments, vectors, blocks, job, work, workers(options))
    from persona_core.monitor.jobs import run_job
    from persona_core.monitor.monitor import PersonaMonitor

    return run_job(PersonaMonitor(load(arguments), vectors, blocks), job, work)


def _blocks(text: str) -> str | list[int]:
    """ "best", "all", or the numbers of a list such as 8,12."""
    if text in ("best", "all"):
        return text
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise SettingError(f"--blocks {text!r}; expected best, all, or numbers such as 8,12.") from error


def check_config(name: str) -> None:
    """A config is part of a file's name and of the card's header; the Hub refuses "data" and "default"."""
    if not name.replace("-", "").replace("_", "").isalnum() or not name.isascii() or name in ("data", "default"):
        raise SettingError(f"--config {name!r}; expected letters, digits, - and _, and neither 'data' nor 'default'.")


def work_folder(work: Path | None, out: Path, name: str) -> Path:
    """Where unfinished work is kept: beside the result, not in it."""
    return (work or out.parent / f"{out.name}.work") / name


def keep_results(rows: list[Row], out: Path, config: str) -> None:
    """Write one config of a results dataset, and the card of the whole folder."""
    from persona_core.report.card import write_results_card
    from persona_core.traces.dataset import DATA, write_results

    if not rows:
        return
    path = write_results(rows, out / DATA / f"{config}.parquet", rows[0]["traits"])
    write_results_card(out)
    print(f"{len(rows)} rows: {path}")
