"""Sources: a mistyped path, a folder with a revision, or another kind of folder is refused without asking the Hub."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from persona_core.analysis.detectors import Detectors
from persona_core.errors import NotFound, SettingError
from persona_core.models.loading import load_model
from persona_core.report.results_folder import ResultsFolder
from persona_core.report.saved_runs import SavedRuns
from persona_core.traces.dataset import load_results, load_row
from persona_core.utils.hub import check_kind, commit_of, fetch, kinds_of, resolve_source, split_revision
from persona_core.vectors.vectors import PersonaVectors

ARTIFACTS = Path(__file__).resolve().parents[2] / "artifacts"
FOLDERS = {
    "model": ARTIFACTS / "persona-tiny",
    "adapter": ARTIFACTS / "persona-tiny-contaminated",
    "vectors": ARTIFACTS / "persona-vectors-persona-tiny",
    "results": ARTIFACTS / "persona-monitoring-persona-tiny",
}
Load = Callable[[Any, str | None], Any]
LOADERS: dict[str, Load] = {
    "model": lambda source, revision: load_model(source, revision=revision),
    "adapter": lambda source, revision: load_model(FOLDERS["model"], adapter=source, adapter_revision=revision),
    "vectors": PersonaVectors.from_pretrained,
    "detectors": Detectors.from_pretrained,
    "results": lambda source, revision: load_results(source, "baseline", revision),
    "row": lambda source, revision: load_row(source, "baseline", None, revision),
    "file": lambda source, revision: fetch(source, "config.json", revision),
    "commit": lambda source, revision: commit_of(source, "config.json", revision),
}
BY_NAME: dict[str, Callable[[str], Any]] = {  # a revision goes into the name
    "split": split_revision,
    "findings": lambda source: ResultsFolder(source).findings(),
    "runs": lambda source: SavedRuns(source).configs,
}


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any connection fails the test."""
    import socket

    def refuse(*_: object, **__: object) -> None:
        pytest.fail("the network was used")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize(
    "source",
    [
        "./typo",
        "artifacts/typo",
        "/nowhere/at/all",
        "~/nowhere",
        "../typo",
        "a/b/c",
        "typo/",
        "org/..",
        Path("org/x"),
        "",
    ],
    ids=str,
)
def test_a_mistyped_path_is_no_such_folder(loader: str, source: str | Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ARTIFACTS.parent)
    with pytest.raises(NotFound, match="No such folder"):
        LOADERS[loader](source, None)


@pytest.mark.parametrize("source", ["./typo@v1", "artifacts/typo@v1", "/nowhere@main"])
@pytest.mark.parametrize("loader", ["findings", "runs"])
def test_a_mistyped_path_with_a_revision_is_no_such_folder(
    loader: str, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ARTIFACTS.parent)
    with pytest.raises(NotFound, match="No such folder"):
        BY_NAME[loader](source)


@pytest.mark.parametrize("loader", LOADERS)
def test_a_revision_of_a_local_folder_is_refused(loader: str) -> None:
    kind = {"detectors": "vectors", "row": "results", "file": "model", "commit": "model"}.get(loader, loader)
    with pytest.raises(SettingError, match=r"is a local folder; it has no revision 'v1'"):
        LOADERS[loader](FOLDERS[kind], "v1")


@pytest.mark.parametrize("loader", BY_NAME)
def test_a_folder_at_a_revision_is_refused(loader: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ARTIFACTS.parent)
    with pytest.raises(SettingError, match=r"is a local folder; it has no revision 'v1'"):
        BY_NAME[loader]("artifacts/persona-monitoring-persona-tiny@v1")


def test_a_folder_whose_name_holds_an_at_sign_is_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "vectors@home"
    folder.mkdir()
    assert split_revision(str(folder)) == (str(folder), None)


def test_a_file_is_told_from_a_folder() -> None:
    with pytest.raises(NotFound, match="is a file"):
        PersonaVectors.from_pretrained(FOLDERS["vectors"] / "config.json")


@pytest.mark.parametrize(
    ("loader", "given", "says"),
    [
        ("vectors", "model", "holds a model, not persona vectors"),
        ("vectors", "adapter", "holds an adapter, not persona vectors"),
        ("vectors", "results", "holds monitoring results, not persona vectors"),
        ("model", "vectors", "holds persona vectors, not a model"),
        ("model", "adapter", "holds an adapter, not a model"),
        ("model", "results", "holds monitoring results, not a model"),
        ("adapter", "model", "holds a model, not an adapter"),
        ("adapter", "vectors", "holds persona vectors, not an adapter"),
        ("results", "model", "which holds a model"),
        ("results", "vectors", "which holds persona vectors"),
        ("detectors", "model", "which holds a model"),
    ],
)
def test_another_kind_of_folder_is_named(loader: str, given: str, says: str) -> None:
    with pytest.raises(NotFound, match=says):
        LOADERS[loader](FOLDERS[given], None)


def test_the_shipped_folders_are_what_they_are() -> None:
    assert {kind: kinds_of(folder) for kind, folder in FOLDERS.items()} == {kind: (kind,) for kind in FOLDERS}


@pytest.mark.parametrize(
    ("config", "expected", "says"),
    [
        ({"model_type": "llama"}, "vectors", "'org/name' holds a model, not persona vectors"),
        ({"format_version": 1, "best_block": {}}, "model", "'org/name' holds persona vectors, not a model"),
    ],
)
def test_another_kind_of_repository_is_named(
    config: dict[str, Any], expected: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_, **__: str(path))
    with pytest.raises(NotFound, match=says):
        check_kind("org/name", expected)


def test_a_folder_with_a_revision_in_its_name_has_none(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="is a local folder; it has no revision 'main'"):
        resolve_source(f"{tmp_path}@main")
