"""Long runs over many prompts or texts: in fixed batches, each kept as soon as it is done, the same rows at the end.

    work-folder/
      plan.json               what everything in the folder rests on
      batches/00000.parquet   the rows of a few batches that were done together

A run that was stopped, also by a kill, goes on with the batches that are not there. A batch has the same neighbours and
every reply its own seed, so the rows are those of a run that was never stopped, or that was shared out to workers.
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
"""The id of what could not be done, and why."""


class Job(Protocol):
    """What is done with each of many items."""

    @property
    def batch_size(self) -> int: ...

    @property
    def items(self) -> Sequence[Any]:
        """In order; every one has an `id`, unique in the job."""
        ...

    def settings(self) -> dict[str, Any]:
        """All that the rows rest on beside the model and the vectors, as JSON values."""
        ...

    def rows(self, monitor: PersonaMonitor, items: Sequence[Any]) -> list[Row]:
        """A row for each of some items, in order."""
        ...


@dataclass(frozen=True)
class Generate:
    """Have the model answer prompts.

    Attributes:
        items: the prompts.
        sampling: how tokens are chosen.
        seed: of the run; each reply's own seed is made of it and of the prompt's id, so that a prompt is answered the
            same whichever others are asked.
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
class Read:
    """Read conversations that any model wrote."""

    items: tuple[RecordedConversation, ...]
    batch_size: int = 16

    def settings(self) -> dict[str, Any]:
        return {"transcripts": [[i.id, i.writer, [dict(m) for m in i.messages]] for i in self.items]}

    def rows(self, monitor: PersonaMonitor, items: Sequence[RecordedConversation]) -> list[Row]:
        found = []
        for writer in dict.fromkeys(i.writer for i in items):
            own = [i for i in items if i.writer == writer]
            traces = monitor.read_batch([list(i.messages) for i in own], writer=writer)
            found += [
                trace.to_row(id=i.id, messages=i.messages[:-1], set=i.set, category=i.category)
                for trace, i in zip(traces, own, strict=True)
            ]
        places = {item.id: place for place, item in enumerate(items)}
        return sorted(found, key=lambda row: places[row["id"]])


@dataclass(frozen=True)
class Written:
    """A row of another run, whose reply is to be read again by its ids."""

    id: str
    row: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True)
class Replay:
    """Read replies of another run by their ids; the reader must write text with the same tokenizer."""

    items: tuple[Written, ...]
    batch_size: int = 16

    @classmethod
    def of(cls, rows: Sequence[Row], batch_size: int = 16) -> Replay:
        return cls(tuple(Written(row["id"], row) for row in rows), batch_size)

    def settings(self) -> dict[str, Any]:
        return {"replies": [[i.id, i.row["writer"], list(i.row["token_ids"])] for i in self.items]}

    def rows(self, monitor: PersonaMonitor, items: Sequence[Written]) -> list[Row]:
        traces = monitor.read_batch([Trace.from_row(i.row) for i in items])
        same = ("id", "messages", "set", "category")
        return [trace.to_row(**{k: item.row[k] for k in same}) for trace, item in zip(traces, items, strict=True)]


def run_job(
    monitor: PersonaMonitor, job: Job, folder: str | Path, progress: bool = True
) -> tuple[list[Row], list[Failure]]:
    """Do what has not been done yet, and hand over all rows.

    Args:
        monitor: the model and the vectors.
        job: what to do.
        folder: the work folder; made if it is not there.
        progress: show a bar.

    Returns:
        The rows in the order of the items, and what could not be done with the reason. A second call tries it again.

    Raises:
        SettingError: the folder was begun with another job, model or vectors, or another process works in it.
    """

    with working(folder, job, described(monitor)) as batches:
        failed: list[Failure] = []
        with tqdm(total=len(job.items), desc="monitoring", unit="text", disable=not progress) as bar:
            for batch in batches:
                bar.update(batch.n_kept)
                if batch.open:
                    rows, lost = do_batch(monitor, job, batch.open, batch.name)
                    batch.keep(rows, monitor.vectors.traits)
                    failed += lost
                    bar.update(len(batch.open))
        return [row for batch in batches for row in batch.rows()], failed


def described(monitor: PersonaMonitor) -> dict[str, Any]:
    """The model and the vectors that rows rest on."""
    return {"model": monitor.lm.identity, "vectors": monitor.vectors.fingerprint, "blocks": list(monitor.blocks)}


def do_batch(monitor: PersonaMonitor, job: Job, items: Sequence[Any], name: str) -> tuple[list[Row], list[Failure]]:
    """One batch. Knows nothing of files, so that it can run anywhere."""
    parts, failed = in_halves(items, lambda part: job.rows(monitor, part), name)
    return [row for part in parts for row in part], [(item.id, why) for item, why in failed]


def seed_of(prompt_id: str, seed: int) -> int:
    """The seed of one reply: a function of the run's seed and of the prompt's id alone.

    >>> seed_of("pilot-01", 0) != seed_of("pilot-02", 0), seed_of("pilot-01", 0) == seed_of("pilot-01", 0)
    (True, True)
    """
    return zlib.crc32(f"{seed}/{prompt_id}".encode())


# ---- the work folder ----


class Part:
    """One batch of a job and its file."""

    def __init__(self, path: Path, items: Sequence[Any]) -> None:
        self.name, self.items = path.stem, tuple(items)
        self._path = path
        ids = set(self._read(read_ids))
        self.open = tuple(i for i in items if i.id not in ids)
        self.n_kept = len(items) - len(self.open)

    def rows(self) -> list[Row]:
        """What is kept, in the order of the items."""
        return self._read(read_results)

    def _read(self, read: Callable[[Path], list[T]]) -> list[T]:
        if not self._path.is_file():
            return []
        try:
            return read(self._path)
        except CorruptFile as error:
            raise CorruptFile(f"{error} Delete it; its batch is then done again.") from error

    def keep(self, rows: Sequence[Row], traits: Sequence[str]) -> None:
        """Add rows."""
        if not rows:
            return
        places = {item.id: place for place, item in enumerate(self.items)}
        write_results(sorted([*self.rows(), *rows], key=lambda row: places[row["id"]]), self._path, traits)


@contextmanager
def working(folder: str | Path, job: Job, rests_on: Mapping[str, Any]) -> Iterator[list[Part]]:
    """The job's batches, in a folder that no other process works in meanwhile."""
    ids = [item.id for item in job.items]
    if not ids:
        raise SettingError("Nothing to do: no prompt and no text was given.")
    check_integer("batch_size", job.batch_size)
    if len(set(ids)) < len(ids):
        raise SettingError(f"The id {next(i for i in ids if ids.count(i) > 1)!r} comes twice.")
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    held = lock(path)
    try:
        check_plan(path, {**rests_on, "batch_size": job.batch_size, **job.settings()})
        size = job.batch_size * BATCHES_PER_PART
        starts = range(0, len(ids), size)
        yield [
            Part(path / "batches" / f"{number:05d}.parquet", job.items[start : start + size])
            for number, start in enumerate(starts)
        ]
    finally:
        held.release()
