"""The project's layout: what may import what, what may lie in the repository, what the environment holds."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAX_FILE_BYTES = 10_000_000

ROOMS = ROOT / "persona_core"


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    """The contracts of pyproject.toml, held against the code in a folder."""
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the project's code, to be broken."""
    for name in ("persona_core", "demo_world", "real_model", "scripts", "benchmarks"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "results"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def lint_with(copy: Path, file: str, addition: str) -> subprocess.CompletedProcess[str]:
    """The contracts, held against a copy of the code in which one file ends with `addition`."""
    with (copy / file).open("a", encoding="utf-8") as module:
        module.write(addition)
    return lint_imports(copy)


def test_rooms_import_downwards_and_without_circles() -> None:
    done = lint_imports(ROOT)
    assert done.returncode == 0, done.stdout


def test_an_import_that_points_upwards_is_found(copy: Path) -> None:
    done = lint_with(
        copy, "persona_core/inference/hooks.py", "\nfrom persona_core.vectors.vectors import PersonaVectors\n"
    )
    assert done.returncode != 0
    assert "persona_core.inference.hooks -> persona_core.vectors.vectors" in done.stdout


def test_a_circle_inside_a_room_is_found(copy: Path) -> None:
    done = lint_with(copy, "persona_core/traces/trace.py", "\nfrom persona_core.traces.figure import trace_figure\n")
    assert done.returncode != 0
    assert "No circles, between rooms or inside one BROKEN" in done.stdout


def test_a_library_that_knows_the_demo_world_is_found(copy: Path) -> None:
    done = lint_with(copy, "persona_core/monitor/monitor.py", "\n\ndef f():\n    import demo_world.truth\n")
    assert done.returncode != 0
    assert "The library knows nothing of what stands on it BROKEN" in done.stdout


def test_the_library_has_few_rooms() -> None:
    entries = {path.name for path in ROOMS.iterdir()} - {"__pycache__"}
    assert len(entries) <= 17, sorted(entries)


def run_python(code: str) -> str:
    """Output of the code in a fresh interpreter in the project's root, as with `python -m ...`."""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_data_folder_does_not_shadow_the_datasets_library() -> None:
    assert not list((ROOT / "datasets").rglob("*.py")), "datasets/ holds data only"
    found = Path(run_python("import datasets; print(datasets.__file__)")).resolve()
    homes = [Path(sysconfig.get_path(kind)).resolve() for kind in ("purelib", "platlib")]
    assert any(home in found.parents for home in homes), found


@pytest.mark.parametrize("module", ["persona_core", "persona_core.analysis"])
def test_a_light_import_stays_light(module: str) -> None:
    if not (ROOT / module.replace(".", "/") / "__init__.py").exists():
        pytest.skip(f"{module} does not exist yet")
    heavy = run_python(
        f"import sys, {module}; print(*sorted({{'torch', 'transformers', 'gradio'}} & set(sys.modules)))"
    )
    assert heavy == "", f"import {module} brings {heavy}"


def repository_files() -> list[Path]:
    """Files that git tracks or would add: a large one is found before it is committed."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    names = listed.stdout.decode().split("\0")
    return [ROOT / name for name in names if name and (ROOT / name).is_file()]


def test_no_file_is_over_10_mb() -> None:
    large = {str(path.relative_to(ROOT)): path.stat().st_size for path in repository_files()}
    assert {name: size for name, size in large.items() if size > MAX_FILE_BYTES} == {}


def pins(*files: str) -> dict[str, str]:
    """Distribution to version, from pinned requirement files; a line without an exact pin fails."""
    found = {}
    for file in files:
        for line in (ROOT / file).read_text(encoding="utf-8").splitlines():
            requirement = line.split("#")[0].strip()
            if not requirement or requirement.startswith("-r "):
                continue
            match = re.fullmatch(r"([A-Za-z0-9._-]+)(?:\[[a-z,]+\])?==([0-9][0-9A-Za-z.]*)", requirement)
            assert match, f"{file}: {requirement!r} is not pinned with =="
            found[canonical(match[1])] = match[2]
    return found


def canonical(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


@pytest.mark.parametrize(
    "arguments",
    [("persona_core",), ("benchmarks", "demo_world", "real_model", "scripts", "tests", "--config", ".ci/deptry.toml")],
    ids=["package", "repository"],
)
def test_every_import_is_a_declared_requirement(arguments: tuple[str, ...]) -> None:
    command = [sys.executable, "-m", "deptry", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr


def test_the_library_accepts_the_pinned_versions() -> None:
    pinned = pins("requirements.txt", "requirements-dev.txt")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    ranges = [*project["dependencies"]]
    for extra in project["optional-dependencies"].values():
        ranges += extra
    for requirement in ranges:
        name, lowest = re.match(r"([A-Za-z0-9._-]+)(?:\[[a-z,]+\])?[>=]=([0-9.]+)", requirement).groups()  # type: ignore[union-attr]
        if canonical(name) in pinned:
            assert version(pinned[canonical(name)]) >= version(lowest), requirement
        below = re.search(r"<([0-9.]+)", requirement)
        if below and canonical(name) in pinned:
            assert version(pinned[canonical(name)]) < version(below[1]), requirement


def version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))


def test_the_space_runs_the_pinned_gradio() -> None:
    readme = ROOT / "README.md"
    if not readme.exists():
        pytest.skip("README.md does not exist yet")
    match = re.search(r"^sdk_version:\s*[\"']?([0-9.]+)", readme.read_text(encoding="utf-8"), re.MULTILINE)
    assert match, "README.md has no sdk_version in its front matter"
    assert match[1] == pins("requirements.txt")["gradio"]
