"""After `pip install` of the wheel there is a product: in an empty folder, far from the checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path
from zipfile import ZipFile

import pytest

from persona_core.utils.version import __version__

ROOT = Path(__file__).resolve().parents[2]
ARTIFACTS = ROOT / "artifacts"
NAME = "persona_trace"

pytestmark = pytest.mark.slow


def run(command: Sequence[str | Path], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {name: value for name, value in os.environ.items() if not name.startswith("PERSONA_")} | environment
    return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=280)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    done = run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder], ROOT)
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("*.whl")
    assert built.name == f"{NAME}-{__version__}-py3-none-any.whl"
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel in it, the libraries being those of the running environment."""
    site = tmp_path_factory.mktemp("site")
    install: list[str | Path] = ["install", "--quiet", "--no-deps", "--no-index", "--target", site, wheel]
    done = run([sys.executable, "-m", "pip", *install], site)
    assert done.returncode == 0, done.stderr
    return site


def persona(installed: Path, folder: Path, *options: str | Path) -> subprocess.CompletedProcess[str]:
    return run([sys.executable, installed / "bin" / "persona", *options], folder, PYTHONPATH=str(installed))


def test_the_command_lists_its_commands(installed: Path, tmp_path: Path) -> None:
    done = persona(installed, tmp_path, "--help")
    assert done.returncode == 0 and "  monitor " in done.stdout, done.stderr
    assert persona(installed, tmp_path, "--version").stdout == f"persona {__version__}\n"


def test_shipped_traits_and_prompts_are_found(installed: Path, tmp_path: Path) -> None:
    code = """
import json, persona_core
from persona_core import load_traits
from persona_core.elicitation.prompts import load_prompts
(trait,) = load_traits("deception")
print(json.dumps([persona_core.__file__, trait.name, len(load_prompts(["all"]))]))
"""
    done = run([sys.executable, "-c", code], tmp_path, PYTHONPATH=str(installed))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [str(installed / "persona_core" / "__init__.py"), "deception", 78]


def test_monitor_reads_the_demo_model(installed: Path, tmp_path: Path) -> None:
    from datasets import load_dataset

    vectors = ARTIFACTS / "persona-vectors-persona-tiny"
    options: list[str | Path] = ["--model", ARTIFACTS / "persona-tiny", "--vectors", vectors, "--device", "cpu"]
    short: list[str | Path] = ["--prompts", "pilot", "--max-new-tokens", "8", "--out", tmp_path / "out"]
    done = persona(installed, tmp_path, "monitor", *options, *short)
    assert done.returncode == 0, done.stderr
    assert load_dataset(str(tmp_path / "out"), split="train").num_rows == 18


def test_the_app_without_a_model_says_what_to_set(installed: Path, tmp_path: Path) -> None:
    done = persona(installed, tmp_path, "app")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "PERSONA_MODEL" in done.stderr and "PERSONA_VECTORS" in done.stderr


def test_the_source_distribution_builds_a_wheel_of_the_same_files(wheel: Path, tmp_path: Path) -> None:
    done = run([sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", tmp_path], ROOT)
    assert done.returncode == 0, done.stderr
    with tarfile.open(tmp_path / f"{NAME}-{__version__}.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    source = tmp_path / f"{NAME}-{__version__}"
    done = run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path], source)
    assert done.returncode == 0, done.stderr
    assert ZipFile(tmp_path / wheel.name).namelist() == ZipFile(wheel).namelist()
