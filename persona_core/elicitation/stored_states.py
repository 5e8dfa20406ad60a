"""Files of pooled states: one per batch of replies, holding a tensor `[rows, n_blocks, d_model]` per position."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from persona_core.errors import CorruptFile, SettingError
from persona_core.utils.files import replacing

TOKENS = "tokens"
"""The entry of sampled tokens, float16 `[rows, n_sampled, n_blocks, d_model]`; NaN where a reply has fewer, and at sink
tokens."""
OPEN_BATCHES = 4  # batches of states in memory at once


class StoredStates:
    """`States` on disk. A few batches are in memory at a time, however many replies there are.

    Args:
        folder: folder of the files.
        rows: for each reply its batch and its row there.
        position: which pooled states are read; see `persona_core.inference.pooling`.
    """

    def __init__(self, folder: Path, rows: Sequence[tuple[str, int]], position: str) -> None:
        self._folder, self._rows, self._position = folder, list(rows), position
        self._shape: tuple[int, int] | None = None

    @property
    def n_blocks(self) -> int:
        return self._sizes()[0]

    @property
    def d_model(self) -> int:
        return self._sizes()[1]

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[np.ndarray]:
        load = lru_cache(maxsize=OPEN_BATCHES)(self._load)
        for batch, row in self._rows:
            part = load(batch)
            self._check_rows(batch, part, [row])
            yield part[row]

    def block(self, block: int) -> np.ndarray:
        if not 0 <= block < self.n_blocks:
            raise SettingError(f"No block {block}: the states cover blocks 0 to {self.n_blocks - 1}.")
        found: np.ndarray | None = None
        by_batch: dict[str, list[int]] = {}
        for index, (batch, _) in enumerate(self._rows):
            by_batch.setdefault(batch, []).append(index)
        for batch, indices in by_batch.items():
            part = self._load(batch, block)  # [rows, d_model], or [rows, n_sampled, d_model]
            if found is None:
                found = np.empty((len(self), *part.shape[1:]), np.float32)
            rows = [self._rows[index][1] for index in indices]
            self._check_rows(batch, part, rows)
            found[indices] = part[rows]
        if found is None:
            raise SettingError("There are no replies, so there are no states.")
        return found

    def take(self, indices: Sequence[int] | np.ndarray) -> StoredStates:
        return StoredStates(self._folder, [self._rows[int(i)] for i in indices], self._position)

    def _sizes(self) -> tuple[int, int]:
        if self._shape is None:
            if not self._rows:
                raise SettingError("There are no replies, so there are no states.")
            with self._slice(self._rows[0][0]) as part:
                shape = part.get_shape()  # of the file's header: a batch of sampled tokens can be 100 MB
            self._shape = (int(shape[-2]), int(shape[-1]))  # before them rows, and of sampled tokens their number
        return self._shape

    def _check_rows(self, batch: str, part: np.ndarray, rows: Sequence[int]) -> None:
        if (last := max(rows)) >= len(part):
            raise CorruptFile(
                f"{self._folder / batch}.safetensors: {len(part)} rows, but a reply's states are listed as row {last}. "
                "Delete it to have its batch written again."
            )

    def _load(self, batch: str, block: int | None = None) -> np.ndarray:
        with self._slice(batch) as part:
            if block is None:
                return np.asarray(part[:], np.float32)
            return np.asarray(part[:, :, block] if self._position == TOKENS else part[:, block], np.float32)

    @contextmanager
    def _slice(self, batch: str) -> Iterator[Any]:
        """A batch's states, of which only what is indexed is read."""
        from safetensors import SafetensorError, safe_open

        path = self._folder / f"{batch}.safetensors"
        try:
            with safe_open(str(path), framework="np") as file:
                if self._position not in set(file.keys()):
                    stored = ", ".join(file.keys())
                    raise SettingError(
                        f"No states pooled at {self._position!r}; stored: {stored}. Name the position before eliciting."
                    )
                yield file.get_slice(self._position)
        except (SafetensorError, OSError) as error:
            raise CorruptFile(
                f"{path}: not a readable states file ({error}). Delete it to have its batch written again."
            ) from error


def write_states(path: Path, states: Mapping[str, np.ndarray]) -> None:
    """Write a batch's states, position -> `[rows, n_blocks, d_model]`, renamed into place when complete."""
    from safetensors.numpy import save_file

    with replacing(path) as beside:
        kinds = {TOKENS: np.float16}
        save_file({k: np.ascontiguousarray(v, kinds.get(k, np.float32)) for k, v in states.items()}, str(beside))
