"""What the commands that run a model over many texts share: options, loading, and how they end."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from persona_core.errors import PersonaError, SettingError
from persona_core.models.loading import DTYPES, load_model
from persona_core.monitor.jobs import Failure, Job, Row, run_job
from persona_core.monitor.monitor import PersonaMonitor
from persona_core.report.card import write_results_card
from persona_core.traces.dataset import DATA, write_results
from persona_core.utils.hub import split_revision
from persona_core.vectors.vectors import PersonaVectors
from scripts.settings import configure


def add_model(parser: argparse.ArgumentParser, adapter: bool = True) -> None:
    """Options that say which model is loaded and how; `loading` reads them."""
    parser.add_argument("--model", required=True, help="Hub id (also with @revision) or folder")
    if adapter:
        parser.add_argument("--adapter", help="PEFT adapter on top of it, Hub id (also with @revision) or folder")
    else:
        parser.set_defaults(adapter=None)
    add_loading(parser)


def add_loading(parser: argparse.ArgumentParser) -> None:
    """How a model is loaded."""
    group = parser.add_argument_group("loading the model")
    group.add_argument("--dtype", choices=("auto", *DTYPES), default="auto")
    group.add_argument("--device", default="auto", help="auto, cpu, cuda:1, or balanced over all devices")
    group.add_argument("--quantization", choices=("8bit", "4bit"), help="needs bitsandbytes")


def add_vectors(parser: argparse.ArgumentParser) -> None:
    """The vectors that a model is read with."""
    parser.add_argument("--vectors", required=True, help="persona vectors, Hub id (also with @revision) or folder")


def add_work(parser: argparse.ArgumentParser) -> None:
    """Options of a resumable run."""
    parser.add_argument("--out", type=Path, required=True, help="folder of the results dataset")
    parser.add_argument("--work", type=Path, help="where batches are kept until all are there (default: OUT.work)")
    parser.add_argument("--batch-size", type=int, default=16, help="texts in one forward (16)")
    parser.add_argument(
        "--blocks", default="best", help="best (default), all (for heat maps), or numbers such as 8,12: what is read"
    )
    parser.add_argument("--ray", type=int, metavar="N", help="share the batches out to N Ray workers, a model each")


def loading(options: argparse.Namespace) -> dict[str, Any]:
    """Arguments of `load_model`."""
    name, revision = split_revision(options.model)
    adapter, adapter_revision = (None, None) if options.adapter is None else split_revision(options.adapter)
    return {
        "name": name,
        "revision": revision,
        "adapter": adapter,
        "adapter_revision": adapter_revision,
        "dtype": options.dtype,
        "device": options.device,
        "quantization": options.quantization,
    }


def read_vectors(options: argparse.Namespace) -> PersonaVectors:
    """The vectors of `--vectors`."""
    return PersonaVectors.from_pretrained(*split_revision(options.vectors))


def carry_out(
    options: argparse.Namespace, arguments: Mapping[str, Any], vectors: PersonaVectors, job: Job, work: Path
) -> tuple[list[Row], list[Failure]]:
    """Run the job here, or share it out with --ray."""
    blocks = _blocks(options.blocks)
    if options.ray:
        from persona_core.monitor.ray import run_sharded

        return run_sharded(arguments, vectors, blocks, job, work, options.ray)
    return run_job(PersonaMonitor(load_model(**arguments), vectors, blocks), job, work)


def _blocks(text: str) -> str | list[int]:
    """ "best", "all", or the numbers of a list such as 8,12."""
    if text in ("best", "all"):
        return text
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise SettingError(f"--blocks {text!r}; expected best, all, or numbers such as 8,12.") from error


# ---- what comes of it ----


def check_config(name: str) -> None:
    """A config is part of a file's name and of the card's header; the Hub refuses "data" and "default"."""
    if not name.replace("-", "").replace("_", "").isalnum() or not name.isascii() or name in ("data", "default"):
        raise SettingError(f"--config {name!r}; expected letters, digits, - and _, and neither 'data' nor 'default'.")


def work_folder(work: Path | None, out: Path, name: str) -> Path:
    """Where what is not finished is kept: beside the result, not in it."""
    return (work or out.parent / f"{out.name}.work") / name


def keep_results(rows: list[Row], out: Path, config: str) -> None:
    """Write one config of a results dataset, and the card of the whole folder."""
    if not rows:
        return
    path = write_results(rows, out / DATA / f"{config}.parquet", rows[0]["traits"])
    write_results_card(out)
    print(f"{len(rows)} rows: {path}")


def reported(command: str, run: Callable[[], Sequence[Failure | str]], resumes: bool = True) -> int:
    """Run a command and say how it ended: 0, 1 with what is missing or wrong, 130 when it was stopped.

    Args:
        command: its name, for messages.
        run: does the work and returns what could not be done, with the reason.
        resumes: whether the same command goes on where it was stopped.
    """
    configure()
    begun = time.monotonic()
    try:
        missing = run()
    except PersonaError as error:
        print(f"{command}: {error}", file=sys.stderr)
        return 1
    except OSError as error:  # a full disk, a folder that cannot be written
        print(f"{command}: {error}. What was written is kept; the same command goes on.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        rest = "goes on from here" if resumes else "does again what was under way; what was finished is kept"
        print(f"\nStopped. The same command {rest}.", file=sys.stderr)
        return 130
    for what in missing:
        print(f"missing: {what if isinstance(what, str) else ': '.join(what)}", file=sys.stderr)
    if missing:
        print(f"{len(missing)} could not be done; the same command tries them again.", file=sys.stderr)
    print(f"Done in {(time.monotonic() - begun) / 60:.1f} minutes.")
    return 1 if missing else 0
