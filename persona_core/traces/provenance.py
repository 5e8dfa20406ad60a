"""Where a trace comes from: reader, writer and settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Provenance:
    """Where a trace comes from. None means unknown.

    Attributes:
        reader, reader_revision, reader_adapter, reader_adapter_revision: the model whose states were read.
        writer: the model that wrote the reply, if known.
        dtype: of the reader's weights, and how they were quantized if they were.
        vectors, template: fingerprints of the persona vectors and of the chat template.
        sampling, seed: how the reply was sampled; None for a text that was only read.
        steering: the interventions that acted during the reading, as plain records.
        written: for a trace that was read again: revision, sampling, seed and steering of the run that wrote it.
        guard: of a reply that was written under one: its settings, and what it did (`persona_core.monitor.guard`).
        versions: of the libraries.
        imported: for a trace from another tool's file, its format.
    """

    reader: str | None = None
    reader_revision: str | None = None
    reader_adapter: str | None = None
    reader_adapter_revision: str | None = None
    writer: str | None = None
    dtype: str | None = None
    vectors: str | None = None
    template: str | None = None
    sampling: Mapping[str, Any] | None = None
    seed: int | None = None
    steering: tuple[Mapping[str, Any], ...] = ()
    written: Mapping[str, Any] | None = None
    guard: Mapping[str, Any] | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    imported: str | None = None

    @property
    def engine(self) -> str:
        """What ran the reader: "transformers", or the engine that `versions` names."""
        return "vllm" if "vllm" in self.versions else "transformers"

    @property
    def reading_model(self) -> str | None:
        """The reader as a writer is named: its adapter is part of it."""
        return self.reader if self.reader_adapter is None else f"{self.reader} + {self.reader_adapter}"


def short_name(model: str) -> str:
    """A model's name, and its adapter's, without owner or folder: a path on the server is not for visitors.

    >>> short_name("org/model + /srv/adapters/flattery/")
    'model + flattery'
    """
    return " + ".join(part.rstrip("/").rsplit("/", 1)[-1] for part in model.split(" + "))
