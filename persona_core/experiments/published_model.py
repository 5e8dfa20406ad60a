"""The model repository of a set whose vectors were made on a GGUF file: its weights, and what a reader must know."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from persona_core.errors import CorruptFile
from persona_core.experiments.weights_difference import measured_difference
from persona_core.models.bfloat16_copy import write_bfloat16
from persona_core.models.origin import ORIGINALS, Original
from persona_core.utils.artifact_sets import ArtifactSet
from persona_core.utils.cards import make_card, usage
from persona_core.utils.files import write_atomically
from persona_core.utils.markdown import escape, table
from persona_core.utils.repositories import Repository
from persona_core.utils.staging import base_model_of

SCORES = {"z": "z", "specific": "specific score"}
Figures = Mapping[str, Any]


def needs_weights(one: ArtifactSet) -> bool:
    """Whether a set's model is in no folder here and not on the Hub either: it was read from a GGUF file."""
    return one.model is None and isinstance(base_model_of(one.vectors).get("gguf"), dict)


def write_published_model(one: ArtifactSet, folder: Path) -> Path:
    """Write the model of such a set as a folder to publish, without its card.

    Raises:
        NotFound: the weights are not on this machine.
        CorruptFile: the vectors' config does not name the file.
    """
    gguf = base_model_of(one.vectors)["gguf"]
    file, sha256 = (str(gguf.get(name)) for name in ("file", "sha256"))
    if not re.fullmatch("[0-9a-f]{64}", sha256):  # it names a folder of the cache
        raise CorruptFile(
            f"{one.vectors / 'config.json'}: the GGUF file's sha256 is {sha256!r}; expected 64 hex digits."
        )
    return write_bfloat16({"file": file, "sha256": sha256}, folder)


def write_model_card(repos: Sequence[Repository], measure: bool = True) -> Path:
    """Measure how the published weights read the stored runs, and write the model's card.

    Args:
        repos: the repositories of one set.
        measure: otherwise the card lacks what takes minutes, and is kept beside the runs: how closely they read.
    """
    model = next(r for r in repos if r.kind == "model")
    vectors = next(r for r in repos if r.kind == "vectors")
    gguf = base_model_of(vectors.folder)["gguf"]
    text = published_model_card(model.set, gguf, vectors.repo_id, measured_difference(repos) if measure else None)
    write_atomically(model.folder / "README.md", text)
    return model.folder / "README.md"


def published_model_card(name: str, gguf: Figures, vectors: str, difference: Figures | None) -> str:
    """The card of the published weights.

    Args:
        name: of the set.
        gguf: "file" and "sha256" of the file that was read.
        vectors: what a reader loads the vectors from.
        difference: as `measured_difference` returns it; None leaves that section out.
    """
    from huggingface_hub import ModelCardData

    original = ORIGINALS.get(gguf["sha256"])
    known: dict[str, Any] = (
        {"base_model": original.repo_id, "base_model_relation": "quantized", "license": original.license}
        if original
        else {}
    )
    header = ModelCardData(
        language=["en"],
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["interpretability", "persona-vectors"],
        **known,
    )
    quantized_from, licence = "", "That of the model that the file was made from."
    if original:
        link = f"[{original.repo_id}](https://huggingface.co/{original.repo_id})"
        quantized_from = f"\nThe file was quantized from {link}; these are not that model's own weights.\n"
        licence = f"{original.license}, as that of {link}."
    return make_card(
        header,
        f"""# {escape(name)}

The model on which persona vectors and runs were made: the file `{escape(gguf["file"])}` (SHA-256
`{escape(gguf["sha256"][:16])}`), dequantized and rounded to bfloat16. `config.json` names the file, so the vectors know
this model as theirs.
{quantized_from}""",
        usage("weights", name, vectors=vectors),
        "" if difference is None else _difference_section(gguf["file"], original, difference),
        """## Intended use and limits

For reading, steering and comparing traits with the vectors, adapter and runs that belong to it. As an assistant it is
no better than the quantized model: small, often wrong.
""",
        f"""## Licence and citation

{licence}
Cite the original, this repository and its revision.
""",
    )


def _difference_section(file: str, original: Original | None, difference: Figures) -> str:
    rows = []
    for dtype, found in difference.items():
        alarms, agree = found["alarms"], "not measured"
        if alarms is not None:
            agree = f"{alarms['agree']} of {alarms['n']} ({alarms['raised']} with one)"
        rows += [
            (dtype, SCORES[kind], *(f"{spread[k]:g}" for k in ("largest", "p99", "median")), agree)
            for kind, spread in found["scores"].items()
        ]
    first = next(iter(difference.values()))
    heads = ["loaded as", "score", "largest difference", "99th percentile", "median", "alarms agree"]
    sinks = ", ".join(f"{found['sinks']} as {dtype}" for dtype, found in difference.items())
    where = f"; it is in {original.file_in}" if original else ""
    return f"""## How closely it reads what was read

The runs were read in float32 with the file's own weights. {first["n_replies"]} of the replies, with
{first["n_tokens"]:,} tokens, were read again with these weights. Differences over tokens and traits, in standard
deviations of neutral tokens, without sink tokens. Tokens that are sinks in only one of the two readings: {sinks}.
Alarms agree for a reply and trait if both readings raise one or neither does; in brackets, how many either raises.

{table(heads, rows)}

`load_model` takes float32, which the config asks for. To read exactly what was read, load the file itself:
`load_model("{escape(file)}")`{where}.
"""
