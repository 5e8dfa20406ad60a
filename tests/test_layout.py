"""The project's layout: what may import what, what may lie in the repository, what the environment holds."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAX_FILE_BYTES = 10_000_000

# Imports point downwards only. What runs while a module is imported may come from its own height and below;
# an import inside a function (`Trace.figure`) may point up.
HEIGHTS = (
    (
        "errors",
        "numbering",
        "hub",
        "pooling",
        "pasted",
        "hooks",
        "steering",
        "blocks",
        "detokenize",
        "chat",
        "states",
        "statistics",
        "json_text",
        "files",
        "folders",
        "prompts",
        "publishing",
        "server",
    ),
    (
        "models",
        "vectors",
        "traits",
        "trace",
        "kv_cache",
        "sampling",
        "fixed_memory",
        "growing_memory",
        "step",
        "decode",
        "reply_batch",
        "readings",
        "branching",
        "generation",
        "replay",
        "transcripts",
        "replies",
        "batching",
        "results",
    ),
    (
        "alarms",
        "marks",
        "monitor",
        "elicitation",
        "judging",
        "extraction",
        "calibration",
        "runs",
        "contamination",
        "importing",
        "repositories",
        "analysis",
    ),
    (
        "judges",
        "served",
        "sharding",
        "drafting",
        "steering_effect",
        "controls",
        "confounds",
        "verdict",
        "validation",
        "saved_runs",
        "explorer",
        "welcome",
        "cards",
        "results_card",
        "adapter_card",
        "sentence_judge",
        "warning_baselines",
        "steering_edges",
        "intervention_window",
        "figures",
        "validation_figures",
        "token_view",
    ),
    ("pipeline", "report"),
    ("pages", "demo"),
)
HEIGHT = {f"persona_core.{name}": height for height, names in enumerate(HEIGHTS) for name in names}


@dataclass(frozen=True)
class Import:
    """One imported module as a file names it."""

    path: Path
    line: int
    name: str  # dotted; "from a import b" counts as a.b
    top_level: bool  # runs when the module is imported
    optional: bool  # under try/except ImportError


def imports_of(path: Path, root: Path) -> Iterator[Import]:
    """All imports of a file, those for type checking only left out."""
    package = list(path.relative_to(root).with_suffix("").parts)
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))

    def walk(node: ast.AST, top_level: bool, optional: bool) -> Iterator[Import]:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for other in node.orelse:
                yield from walk(other, top_level, optional)
            return
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(path, node.lineno, alias.name, top_level, optional)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                yield Import(path, node.lineno, f"{module}.{alias.name}", top_level, optional)
        top_level = top_level and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        if isinstance(node, ast.Try):
            caught = " ".join(ast.unparse(handler.type) for handler in node.handlers if handler.type)
            guarded = "ImportError" in caught or "ModuleNotFoundError" in caught
            for guarded_node in node.body:
                yield from walk(guarded_node, top_level, optional or guarded)
            rest: list[ast.AST] = [*node.handlers, *node.orelse, *node.finalbody]
        else:
            rest = list(ast.iter_child_nodes(node))
        for child in rest:
            yield from walk(child, top_level, optional)

    yield from walk(tree, True, False)


def source_files(root: Path, *places: str) -> list[Path]:
    """Python files under the named folders, or the named files, as far as they exist."""
    found: list[Path] = []
    for place in places:
        path = root / place
        found += sorted(path.rglob("*.py")) if path.is_dir() else [path] if path.exists() else []
    return found


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def wrong_imports(root: Path) -> list[str]:
    """Every import that breaks a rule of the layout, as `file:line: reason`."""
    wrong = []
    for path in source_files(root, "app.py", "persona_core", "scripts", "benchmarks"):
        place = path.relative_to(root).as_posix()
        own = ".".join(path.relative_to(root).with_suffix("").parts)
        own_height = next((h for name, h in HEIGHT.items() if within(own, name)), None)
        for found in imports_of(path, root):
            name, reason = found.name, None
            if place.startswith("persona_core/analysis/") and name.split(".")[0] in ("torch", "transformers"):
                reason = f"imports {name}: analysis sees arrays and traces, never a model"
            elif within(name, "gradio") and place != "app.py" and not place.startswith("persona_core/app/"):
                reason = f"imports {name}: only app.py and persona_core/pages may"
            elif within(name, "persona_core.demo") and not re.match(
                r"app\.py$|scripts/|benchmarks/|persona_core/(demo|pages)/", place
            ):
                reason = f"imports {name}: the library knows nothing of the demo world"
            elif place.startswith("persona_core/") and name.split(".")[0] in ("app", "scripts", "tests"):
                reason = f"imports {name}: imports point downwards only"
            elif found.top_level and own_height is not None:
                height = next((h for known, h in HEIGHT.items() if within(name, known)), None)
                if height is not None and height > own_height:
                    reason = f"imports {name}: imports point downwards only"
            if reason:
                wrong.append(f"{place}:{found.line}: {reason}")
    return wrong


def test_imports_point_the_way_of_the_design() -> None:
    assert wrong_imports(ROOT) == []


def test_every_module_has_its_height() -> None:
    modules = {path.stem for path in (ROOT / "persona_core").glob("*.py")} - {"__init__"}
    packages = {path.parent.name for path in (ROOT / "persona_core").glob("*/__init__.py")}
    assert modules | packages == {name for names in HEIGHTS for name in names}


@pytest.mark.parametrize(
    ("place", "source"),
    [
        ("persona_core/analysis/onset.py", "import torch"),
        ("persona_core/analysis/onset.py", "def f():\n    from transformers import AutoModel"),
        ("persona_core/traces/figure.py", "import gradio as gr"),
        ("scripts/extract.py", "from gradio import Blocks"),
        ("persona_core/monitor/monitor.py", "from persona_core import demo"),
        ("persona_core/monitor/monitor.py", "def f():\n    import demo_world.truth"),
        ("persona_core/monitor/monitor.py", "from .demo import truth"),
        ("persona_core/monitor/monitor.py", "from scripts import extract"),
        ("persona_core/inference/hooks.py", "from persona_core.vectors.vectors import PersonaVectors"),
        (
            "persona_core/traces/trace.py",
            "try:\n    from persona_core import figures\nexcept ImportError:\n    pass",
        ),
    ],
)
def test_a_wrong_import_is_found(tmp_path: Path, place: str, source: str) -> None:
    (tmp_path / place).parent.mkdir(parents=True)
    (tmp_path / place).write_text(source + "\n", encoding="utf-8")
    assert len(wrong_imports(tmp_path)) == 1


@pytest.mark.parametrize(
    ("place", "source"),
    [
        ("persona_core/analysis/onset.py", "import numpy\nfrom persona_core.traces.trace import Trace"),
        ("persona_core/app/tabs/live.py", "import gradio\nfrom demo_world import truth"),
        ("persona_core/traces/trace.py", "def f():\n    from persona_core.traces.figure import trend"),
        (
            "persona_core/traces/trace.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import persona_core.traces.figure",
        ),
        ("persona_core/monitor/monitor.py", "import persona_core.demographics"),
    ],
)
def test_a_right_import_is_left_alone(tmp_path: Path, place: str, source: str) -> None:
    (tmp_path / place).parent.mkdir(parents=True)
    (tmp_path / place).write_text(source + "\n", encoding="utf-8")
    assert wrong_imports(tmp_path) == []


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
    ("places", "files"),
    [
        (("app.py", "persona_core"), ("requirements.txt",)),
        (("scripts", "tests"), ("requirements.txt", "requirements-dev.txt")),
    ],
)
def test_every_import_is_a_pinned_requirement(places: tuple[str, ...], files: tuple[str, ...]) -> None:
    declared = set(pins(*files))
    distributions = importlib.metadata.packages_distributions()
    missing = {}
    for path in source_files(ROOT, *places):
        for found in imports_of(path, ROOT):
            package = found.name.split(".")[0]
            if package in sys.stdlib_module_names or found.optional:
                continue
            if package in ("app", "persona_core", "scripts", "tests", "benchmarks"):
                continue
            if declared.isdisjoint(map(canonical, distributions.get(package, [package]))):
                missing[package] = f"{path.relative_to(ROOT)}:{found.line}"
    # The judge's client is an extra of the library, asked for by name when it is missing.
    if places[0] == "app.py":
        missing.pop("openai", None)
        missing.pop("spaces", None)  # a Space on ZeroGPU brings it, and nothing else asks for it
    assert missing == {}


def test_the_library_accepts_the_pinned_versions() -> None:
    pinned = pins("requirements.txt", "requirements-dev.txt")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    ranges = [*project["dependencies"]]
    for extra in project["optional-dependencies"].values():
        ranges += extra
    for requirement in ranges:
        name, lowest = re.match(r"([A-Za-z0-9._-]+)(?:\[[a-z,]+\])?>=([0-9.]+)", requirement).groups()  # type: ignore[union-attr]
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
