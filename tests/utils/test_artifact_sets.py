"""Which folders of artifacts/ make a set."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from persona_core.errors import NotFound, SettingError
from persona_core.utils.artifact_sets import artifact_sets


def put(root: Path, name: str, kind: str) -> Path:
    """A folder that holds as much of a kind as tells it apart."""
    files = {
        "vectors": ("vectors.safetensors", ""),
        "results": ("data/baseline.parquet", ""),
        "adapter": ("adapter_config.json", "{}"),
        "model": ("config.json", json.dumps({"model_type": "llama"})),
    }
    file, text = files[kind]
    path = root / name / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return root / name


def test_folders_are_paired_by_name_and_the_demo_comes_last(tmp_path: Path) -> None:
    for name in ("zeta", "persona-tiny", "alpha-1.5b"):
        put(tmp_path, f"persona-vectors-{name}", "vectors")
    put(tmp_path, "persona-monitoring-zeta", "results")
    put(tmp_path, "alpha-1.5b-contaminated", "adapter")
    put(tmp_path, "persona-tiny", "model")
    (tmp_path / "notes").mkdir()
    (tmp_path / "README.md").write_text("a file")
    alpha, zeta, demo = artifact_sets(tmp_path)
    assert (alpha.name, zeta.name, demo.name) == ("alpha-1.5b", "zeta", "persona-tiny")
    assert alpha.adapter == tmp_path / "alpha-1.5b-contaminated" and alpha.results is None and alpha.model is None
    assert zeta.results == tmp_path / "persona-monitoring-zeta" and zeta.adapter is None
    assert demo.model == tmp_path / "persona-tiny" and demo.vectors == tmp_path / "persona-vectors-persona-tiny"


def test_a_name_that_begins_another_does_not_take_its_adapter(tmp_path: Path) -> None:
    for name in ("smollm2", "smollm2-135m"):
        put(tmp_path, f"persona-vectors-{name}", "vectors")
        put(tmp_path, f"{name}-contaminated", "adapter")
    assert [s.adapter and s.adapter.name for s in artifact_sets(tmp_path)] == [
        "smollm2-contaminated",
        "smollm2-135m-contaminated",
    ]


@pytest.mark.parametrize(
    ("name", "kind", "says"),
    [
        ("persona-monitoring-other", "results", r"called persona-monitoring-NAME, and the sets here are mine"),
        ("other-contaminated", "adapter", r"called NAME-contaminated, and the sets here are mine"),
        ("mine-flattery", "adapter", r"called NAME-contaminated, and the sets here are mine"),
        ("other", "model", r"holds a model, but belongs to no set"),
        ("vectors-of-mine", "vectors", r"persona-vectors-NAME"),
    ],
)
def test_half_a_set_is_named(tmp_path: Path, name: str, kind: str, says: str) -> None:
    put(tmp_path, "persona-vectors-mine", "vectors")
    put(tmp_path, name, kind)
    with pytest.raises(SettingError, match=says) as caught:
        artifact_sets(tmp_path)
    assert name in str(caught.value)


def test_a_second_adapter_is_named(tmp_path: Path) -> None:
    put(tmp_path, "persona-vectors-mine", "vectors")
    put(tmp_path, "mine-contaminated", "adapter")
    put(tmp_path, "mine-flattery", "adapter")
    with pytest.raises(SettingError, match=r"mine-flattery.*at most one folder of each other kind"):
        artifact_sets(tmp_path)


def test_runs_without_vectors_are_half_a_set(tmp_path: Path) -> None:
    put(tmp_path, "persona-monitoring-mine", "results")
    with pytest.raises(SettingError, match=r"persona-monitoring-mine.*there is no persona-vectors-NAME beside it"):
        artifact_sets(tmp_path)


def test_a_missing_folder_is_named_and_an_empty_one_holds_no_sets(tmp_path: Path) -> None:
    assert artifact_sets(tmp_path) == ()
    with pytest.raises(NotFound, match="nowhere"):
        artifact_sets(tmp_path / "nowhere")
