"""The README says what is so: figures from the files, code that runs as shown, the front matter of a Space."""

from __future__ import annotations

import dataclasses
import importlib
import re
from pathlib import Path

import pytest
from huggingface_hub import metadata_load

from persona_core.app.settings import AppSettings
from scripts.update_readme import README, with_figures

ROOT = Path(__file__).parent.parent
TEXT = README.read_text(encoding="utf-8")
SERVED = "from gradio_client import"  # such a block needs the app: tests/app/test_api.py runs it
BLOCKS = [block for block in re.findall(r"```python\n(.*?)```", TEXT, re.S) if SERVED not in block]


def test_the_figures_are_those_of_the_artifacts_and_benchmarks() -> None:
    assert with_figures(TEXT) == TEXT, "run python -m scripts.update_readme"


def test_the_performance_page_is_the_one_made_of_the_measurements() -> None:
    from benchmarks import performance_page

    page = performance_page.PAGE.read_text(encoding="utf-8")
    assert performance_page.with_figures(page) == page, "run python -m benchmarks.run --write"


def test_the_experiments_page_is_the_one_made_of_the_runs() -> None:
    from scripts import experiments

    assert experiments.page(experiments.RESULTS) == experiments.PAGE.read_text(encoding="utf-8"), (
        "run python -m scripts.experiments"
    )


def test_the_code_runs_as_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "artifacts").symlink_to(ROOT / "artifacts")
    monkeypatch.chdir(tmp_path)  # the code writes a file
    names: dict[str, object] = {}
    for block in BLOCKS:
        exec(block, names)
    assert (tmp_path / "outputs" / "trace.html").stat().st_size > 10_000
    assert len(capsys.readouterr().out) > 100


def test_every_picture_and_every_page_that_is_linked_exists() -> None:
    for path in re.findall(r"!?\[[^\]]*\]\((?!https?:)([^)#]+)\)", TEXT):
        assert (ROOT / path).is_file(), path


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda p: p.stem)
def test_the_code_of_a_page_runs_as_shown(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "artifacts").symlink_to(ROOT / "artifacts")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    text = page.read_text(encoding="utf-8")
    for block in re.findall(r"```python\n(.*?)```", text, re.S):
        exec(block, names)
    commands = re.findall(r"python -m ((?:scripts|benchmarks)\.\w+)", text)
    assert commands and all((ROOT / c.replace(".", "/")).with_suffix(".py").is_file() for c in commands)
    flags = set(re.findall(r"(?<=\s)--[a-z-]+", " ".join(re.findall(r"```(?:text|bash)\n(.*?)```", text, re.S))))
    known = set()
    for name in {c for c in commands if c.startswith("scripts.") or c == "benchmarks.run"}:
        with pytest.raises(SystemExit):
            importlib.import_module(name).main(["--help"])
        known |= set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
    foreign = {"--flavor", "--secrets", "--timeout", "--head", "--address"}  # of the commands hf and ray
    assert flags - known - foreign == set()


def test_the_front_matter_is_that_of_a_space() -> None:
    front = metadata_load(README) or {}
    assert front["sdk"] == "gradio" and (ROOT / front["app_file"]).is_file()
    assert len(front["short_description"]) <= 60 and front["license"] == "mit"
    assert tuple(map(int, front["python_version"].split("."))) >= (3, 11)


def test_every_setting_of_the_app_is_in_the_table() -> None:
    table = {
        name: default
        for names, default in re.findall(r"^\| (`PERSONA.*?) \| (.*?) \|", TEXT, re.M)
        for name in re.findall(r"`(\w+)`", names)
    }
    fields = {f"PERSONA_{field.name.upper()}": field.default for field in dataclasses.fields(AppSettings)}
    assert list(table) == list(fields)
    for name, default in fields.items():
        if isinstance(default, int):  # a switch too
            assert table[name] == str(int(default)), name


def test_the_two_commands_come_first() -> None:
    first = re.search(r"```bash\n(.*?)```", TEXT, re.S)
    assert first and [line.split("#")[0].strip() for line in first[1].splitlines()] == ["make demo", "make test"]
    assert TEXT.index(first[0]) < TEXT.index("```python")
