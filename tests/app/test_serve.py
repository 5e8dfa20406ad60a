"""What stops the app at its start, in one sentence."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from persona_core.app.settings import ARTIFACTS


@pytest.fixture(autouse=True)
def _no_env_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def refusal(monkeypatch: pytest.MonkeyPatch, **environment: str) -> str:
    from persona_core.app import serve

    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as stopped:
        serve.main()
    return str(stopped.value)


def test_missing_vectors_stop_the_app(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    said = refusal(monkeypatch, PERSONA_VECTORS=str(tmp_path / "nothing"))
    assert "PERSONA_VECTORS" in said and "nothing" in said and "\n" not in said


@pytest.mark.parametrize("name", ["PERSONA_MODEL", "PERSONA_ADAPTER", "PERSONA_RESULTS"])
def test_a_mistyped_folder_stops_the_app(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    vectors = str(ARTIFACTS / "persona-vectors-persona-tiny")
    said = refusal(monkeypatch, **{"PERSONA_VECTORS": vectors, name: str(tmp_path / "nothing")})
    assert said.startswith(f"{name}: No such folder") and "nothing" in said


def test_a_gguf_file_is_a_model_and_two_must_be_told_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    settings = {"PERSONA_VECTORS": str(tmp_path / "nothing"), "PERSONA_RESULTS": "none", "PERSONA_ADAPTER": "none"}
    said = refusal(monkeypatch, **settings, PERSONA_MODEL=str(tmp_path / "a.gguf"))
    assert "PERSONA_MODEL" not in said and said.startswith("No vectors to show (PERSONA_VECTORS)")
    said = refusal(monkeypatch, **settings, PERSONA_MODEL=str(tmp_path))
    assert said.startswith("PERSONA_MODEL: ") and "2 GGUF files: a.gguf, b.gguf" in said


def test_a_model_without_vectors_of_it_stops_the_app(monkeypatch: pytest.MonkeyPatch) -> None:
    said = refusal(monkeypatch, PERSONA_MODEL="org/model")
    assert "'org/model' needs vectors of that model" in said and "PERSONA_VECTORS" in said


def test_a_model_in_place_of_vectors_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    said = refusal(monkeypatch, PERSONA_VECTORS=str(ARTIFACTS / "persona-tiny"))
    assert "PERSONA_VECTORS" in said and "model" in said


def test_a_setting_that_is_not_a_number_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "PERSONA_PORT='many'" in refusal(monkeypatch, PERSONA_PORT="many")


def test_a_taken_port_names_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = refusal(monkeypatch, PERSONA_HOST="127.0.0.1", PERSONA_PORT=str(port))
    assert said.startswith(f"Port {port} is in use. Set PERSONA_PORT") and "GRADIO" not in said


def test_an_address_of_another_machine_names_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    said = refusal(monkeypatch, PERSONA_HOST="192.0.2.1")
    assert "PERSONA_HOST" in said and "192.0.2.1" in said
