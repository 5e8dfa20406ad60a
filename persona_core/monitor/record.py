"""What a monitor writes into every trace: the reader's provenance and the null of the scores."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import transformers

from persona_core.inference.steering import Intervention
from persona_core.models.language_model import LanguageModel
from persona_core.traces.provenance import Provenance
from persona_core.utils.version import __version__
from persona_core.vectors.vectors import PersonaVectors


def reader_provenance(lm: LanguageModel, vectors: PersonaVectors, interventions: Sequence[Intervention]) -> Provenance:
    """The reader's part of a trace's provenance; the caller adds the writer's."""
    known = lm.record
    return Provenance(
        reader=known["name"],
        reader_revision=known["revision"],
        reader_adapter=known["adapter"],
        reader_adapter_revision=known["adapter_revision"],
        dtype=", ".join(known[k] for k in ("dtype", "quantization") if k in known),
        vectors=vectors.fingerprint,
        template=known["template_fingerprint"],
        steering=tuple(i.steer.to_dict() for i in interventions),
        versions={"persona_core": __version__, **lm.versions},
    )


def versions() -> dict[str, str]:
    """Versions of the libraries that the numbers depend on."""
    return {"persona_core": __version__, "torch": str(torch.__version__), "transformers": transformers.__version__}


def null_array(vectors: PersonaVectors, blocks: Sequence[int]) -> np.ndarray:
    """Null mean and sd, float32 `[n_traits, n_blocks, 2]`; NaN without a null."""
    nothing = (np.nan, np.nan)
    rows = [[vectors.null[t].at(b) if t in vectors.null else nothing for b in blocks] for t in vectors.traits]
    return np.array(rows, np.float32)
