"""Long runs over many prompts or texts: resumable, with the same rows in the end.

    work-folder/
      plan.json               what the rows depend on
      batches/00000.parquet   the rows of one part: a few batches that are done together

A run that was stopped, even killed, resumes with the missing parts. The batches are always the same and every reply has
a seed, so the rows equal those of an uninterrupted run, or of one distributed over workers.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from tqdm import tqdm

from persona_core.elicitation.prompts import Prompt, RecordedConversation
from persona_core.errors import CorruptFile, SettingError
from persona_core.inference.memory import BATCHES_PER_PART, in_halves
from persona_core.inference.sampling import Sampling
from persona_core.traces.dataset import read_ids, read_results, write_results
from persona_core.traces.trace import Trace
from persona_core.utils.checks import check_integer
from persona_core.utils.workdir import check_plan, lock

if TYPE_CHECKING:
    from persona_core.monitor.monitor import PersonaMonitor

T = TypeVar("T")
Row = dict[str, Any]
Failure = tuple[str, str]
"""The id of a failed item, and the reason."""


class Job(Protocol):
    """Work on each of many items."""

    @property
    def batch_size(self) -> int: ...

    @property
    def items(self) -> Sequence[Any]:
        """In order; each has an `id`, unique in the job."""
        ...

    def settings(self) -> dict[str, Any]:
        """What the rows depend on besides the model and the vectors, as JSON values."""
        ...

    def rows(self, monitor: PersonaMonitor, items: Sequence[Any]) -> list[Row]:
        """A row for each of some items, in order."""
        ...


@dataclass(frozen=True)
class GenerateJob:
    """Have the model answer prompts.

    Attributes:
        items: the prompts.
        sampling: how tokens are chosen.
        seed: of the run; each reply's seed is derived from it and the prompt's id, independent of the
            other prompts.
        batch_size: replies written at once.
    """

    items: tuple[Prompt, ...]
    sampling: Sampling = field(default_factory=lambda: Sampling(max_new_tokens=256, temperature=0.7))
    seed: int = 0
    batch_size: int = 16

    def settings(self) -> dict[str, Any]:
        prompts = [[p.id, p.system, p.prompt] for p in self.items]
        return {"sampling": self.sampling.to_dict(), "seed": self.seed, "prompts": prompts}

    def rows(self, monitor: PersonaMonitor, items: Sequence[Prompt]) -> list[Row]:
        traces = monitor.generate_batch(
            [p.messages for p in items],
            batch_size=self.batch_size,
            seed=[seed_of(p.id, self.seed) for p in items],
            **self.sampling.to_dict(),
        )
        return [
            trace.to_row(id=p.id, messages=p.messages, set=p.set, category=p.category)
            for trace, p in zip(traces, items, strict=True)
        ]


@dataclass(frozen=True)
class ReadJob:
    """Read conversations that any model wrote."""

    items: tuple[RecordedConversation, ...]
    batch_size: int = 16

    def settings(self) -> dict[str, Any]:
        return {"transcripts": [[i.id, i.writer, [dict(m) for m in i.messages]] for i in self.items]}

    def rows(self, monitor: PersonaMonitor, items: Sequence[RecordedConversation]) -> list[Row]:
        found = []
        for writer in dict.fromkeys(i.writer for i in items):
            theirs = [i for i in items if i.writer == writer]
            traces = monitor.read_batch([list(i.messages) for i in theirs], writer=writer)
            found += [
                trace.to_row(id=i.id, messages=i.messages[:-1], set=i.set, category=i.category)
                for trace, i in zip(traces, theirs, strict=True)
            ]
        order = {item.id: index for index, item in enumerate(items)}
        return sorted(found, key=lambda row: order[row["id"]])


@dataclass(frozen=True)
class ReplayItem:
    """A row of another run, whose reply is read again by its ids."""

    id: str
    row: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True)
class ReplayJob:
    """Read replies of another run by their ids; both models must have the same tokenizer."""

    items: tuple[ReplayItem, ...]
    batch_size: int = 16

    @classmethod
    def of(cls, rows: Sequence[Row], batch_size: int = 16) -> ReplayJob:
        return cls(tuple(ReplayItem(row["id"], row) for row in rows), batch_size)

    def settings(self) -> dict[str, Any]:
        return {"replies": [[i.id, i.row["writer"], list(i.row["token_ids"])] for i in self.items]}

    def rows(self, monitor: PersonaMonitor, items: Sequence[ReplayItem]) -> list[Row]:
        traces = monitor.read_batch([Trace.from_row(i.row) for i in items])
        same = ("id", "messages", "set", "category")
        return [trace.to_row(**{k: item.row[k] for k in same}) for trace, item in zip(traces, items, strict=True)]


def run_job(
    monitor: PersonaMonitor, job: Job, folder: str | Path, progress: bool = True
) -> tuple[list[Row], list[Failure]]:
    """Do the unfinished parts of a job, and return all rows.

    Args:
        monitor: the model and the vectors.
        job: what to do.
        folder: the work folder; created if needed.
        progress: show a progress bar.

    Returns:
        The rows in the order of the items, and the failed items with the reason. A second call retries them.

    Raises:
        SettingError: the folder belongs to another job, model or vectors, or another process is using it.
    """
    with open_work_folder(folder, job, identity_of(monitor)) as parts:
        failed: list[Failure] = []
        with tqdm(total=len(job.items), desc="monitoring", unit="text", disable=not progress) as bar:
            for part in parts:
                bar.update(part.n_done)
                if part.pending:
                    rows, lost = run_part(monitor, job, part.pending, part.name)
                    part.save(rows, monitor.vectors.traits)
                    failed += lost
                    bar.update(len(part.pending))
        return [row for part in parts for row in part.rows()], failed


def identity_of(monitor: PersonaMonitor) -> dict[str, Any]:
    """The model and the vectors that rows depend on."""
    return {"model": monitor.lm.identity, "vectors": monitor.vectors.fingerprint, "blocks": list(monitor.blocks)}


def run_part(monitor: PersonaMonitor, job: Job, items: Sequence[Any], name: str) -> tuple[list[Row], list[Failure]]:
    """One part. Touches no file, so that it can run on any worker."""
    found, failed = in_halves(items, lambda some: job.rows(monitor, some), name)
    return [row for rows in found for row in rows], [(item.id, why) for item, why in failed]


def seed_of(prompt_id: str, seed: int) -> int:
    """The seed of one reply, which depends on the run's seed and the prompt's id only.

    >>> seed_of("pilot-01", 0) != seed_of("pilot-02", 0), seed_of("pilot-01", 0) == seed_of("pilot-01", 0)
    (True, True)
    """
    return zlib.crc32(f"{seed}/{prompt_id}".encode())


# ---- the work folder ----


class JobPart:
    """A few batches of a job, and their file."""

    def __init__(self, path: Path, items: Sequence[Any]) -> None:
        self.name, self.items = path.stem, tuple(items)
        self._path = path
        ids = set(self._read(read_ids))
        self.pending = tuple(i for i in items if i.id not in ids)
        self.n_done = len(items) - len(self.pending)

    def rows(self) -> list[Row]:
        """The saved rows, in the order of the items."""
        return self._read(read_results)

    def _read(self, read: Callable[[Path], list[T]]) -> list[T]:
        if not self._path.is_file():
            return []
        try:
            return read(self._path)
        except CorruptFile as error:
            raise CorruptFile(f"{error} Delete it to redo its part.") from error

    def save(self, rows: Sequence[Row], traits: Sequence[str]) -> None:
        """Add rows."""
        if not rows:
            return
        order = {item.id: index for index, item in enumerate(self.items)}
        write_results(sorted([*self.rows(), *rows], key=lambda row: order[row["id"]]), self._path, traits)


@contextmanager
def open_work_folder(folder: str | Path, job: Job, depends_on: Mapping[str, Any]) -> Iterator[list[JobPart]]:
    """The job's parts, in a folder locked against other processes."""
    ids = [item.id for item in job.items]
    if not ids:
        raise SettingError("Nothing to do: the job has no items.")
    check_integer("batch_size", job.batch_size)
    if len(set(ids)) < len(ids):
        raise SettingError(f"The id {next(i for i in ids if ids.count(i) > 1)!r} occurs twice; make the ids unique.")
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    held = lock(path)
    try:
        check_plan(path, {**depends_on, "batch_size": job.batch_size, **job.settings()})
        size = job.batch_size * BATCHES_PER_PART
        starts = range(0, len(ids), size)
        yield [
            JobPart(path / "batches" / f"{number:05d}.parquet", job.items[start : start + size])
            for number, start in enumerate(starts)
        ]
    finally:
        held.release()
