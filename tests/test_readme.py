"""The documentation says what is so: stored figures, code that runs as shown, commands and options that exist."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import doctest
import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import metadata_load

from persona_core.app.settings import AppSettings
from persona_core.cli.main import COMMANDS, module_of
from persona_core.vectors.vectors import PersonaVectors
from scripts.docs.architecture import reduced, rooms
from scripts.docs.fill import fill, pages
from scripts.docs.stored import stored

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
TEXT = README.read_text(encoding="utf-8")
PAGES = [*pages(), ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
ELSEWHERE = ("from gradio_client import", "from openai import", 'engine="vllm"')
"""Such blocks need the app, `persona serve` or vLLM; tests/app/test_api.py and tests/app/server/ run the first two."""
OPTIONS_SHOWN = {"scripts.docs", "benchmarks.run"}
"""Modules, apart from `persona`, whose options pages may show."""
FOREIGN = {"--flavor", "--secrets", "--timeout", "--head", "--address"}  # options of the commands hf and ray


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(text: str, language: str) -> Iterator[str]:
    """Code of a page in a language."""
    return (found[1] for found in re.finditer(rf"```(?:{language})\n(.*?)```", text, re.S))


every_page = pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)


@pytest.mark.parametrize("page", pages(), ids=lambda p: p.stem)
def test_the_figures_are_the_stored_ones(page: Path) -> None:
    text = text_of(page)
    assert fill(text) == text, "run python -m scripts.docs"


@pytest.mark.parametrize("name", ["onset", "early_warning"])
def test_the_figures_of_the_demo_are_of_the_shipped_vectors(name: str) -> None:
    shipped = PersonaVectors.from_pretrained(ROOT / "artifacts" / "persona-vectors-persona-tiny")
    assert stored(name)["vectors"] == shipped.fingerprint, f"run python -m benchmarks.{name}"


@pytest.mark.parametrize(
    "page",
    [
        "<!-- table: rooms -->\nprose\n",
        "<!-- table: rooms -->\nprose\n<!-- table: rooms -->\n\n<!-- end -->",
        "on <!-- = onset n_nulls -->400 replies",
        "<!-- = onset n_nulls -->400<!-- / --> replies",
    ],
)
def test_a_marked_place_that_would_swallow_prose_is_refused(page: str) -> None:
    with pytest.raises(ValueError, match="marked"):
        fill(page)


@pytest.mark.parametrize("module", ["architecture", "fill", "stored"])
def test_the_examples_in_the_code_that_fills_pages_hold(module: str) -> None:
    failed, tried = doctest.testmod(importlib.import_module(f"scripts.docs.{module}"))
    assert tried and not failed


def test_the_drawing_shows_every_import_between_rooms() -> None:
    def reached(room: str) -> set[str]:
        return set(drawn[room]).union(*map(reached, drawn[room]))

    drawn = reduced(rooms())
    assert len(drawn) > 10
    for room, imported in rooms().items():
        assert imported <= reached(room), room


@every_page
def test_the_code_of_a_page_runs_as_shown(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "artifacts").symlink_to(ROOT / "artifacts")
    monkeypatch.chdir(tmp_path)  # some of it writes files
    names: dict[str, object] = {}
    for block in blocks(text_of(page), "python"):
        if not any(line in block for line in ELSEWHERE):
            exec(block, names)


def test_the_readme_prints_scores(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    (block,) = blocks(TEXT, "python")
    assert len([line for line in block.splitlines() if line]) <= 6
    exec(block, {})
    assert len(re.findall(r"-?\d+\.\d+", capsys.readouterr().out)) > 20


@pytest.mark.parametrize("page", PAGES[:-1], ids=lambda p: p.stem)  # the changelog names what is gone
def test_every_command_and_option_of_a_page_exists(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = text_of(page)
    shell = "\n".join(blocks(text, "text|bash"))
    named = set(re.findall(r"(?:`|^|&& )persona ([a-z][a-z-]*)", text, re.M))
    assert named <= set(COMMANDS), named - set(COMMANDS)
    modules = set(re.findall(r"python -m ((?:scripts|benchmarks)\.\w+)", text)) - {"scripts.NAME"}
    for module in modules:
        path = ROOT / module.replace(".", "/")
        assert path.is_dir() or path.with_suffix(".py").is_file(), module
    entries = [module_of(name) for name in named]
    entries += ["scripts.docs.fill" if m == "scripts.docs" else m for m in modules if m in OPTIONS_SHOWN]
    known = set()
    for entry in entries:
        with pytest.raises(SystemExit), contextlib.redirect_stderr(None):
            importlib.import_module(entry).main(["--help"])
        known |= set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
    assert set(re.findall(r"(?<=\s)--[a-z-]+", shell)) - known - FOREIGN == set()


def commands(text: str) -> Iterator[list[str]]:
    """The words of each `persona` command in a page's blocks of bash."""
    for block in blocks(text, "bash"):
        for line in re.sub(r"\\\n\s*", "", block).splitlines():
            if line.startswith("persona "):
                yield shlex.split(line, comments=True)


def test_the_path_from_texts_to_a_card_is_on_its_page() -> None:
    section = (
        text_of(ROOT / "docs/creating_new_traits.md").partition("\n## A trait of your own")[2].partition("\n## ")[0]
    )
    assert [command[1] for command in commands(section)] == ["extract", "monitor"]
    heredocs = re.findall(r"^python <<'(\w+)'\n(.*?)^\1$", section, re.M | re.S)
    assert heredocs
    for _, code in heredocs:
        ast.parse(code)


@every_page
def test_every_command_of_a_page_can_be_typed_in_a_checkout(page: Path) -> None:
    for _, name, *words in commands(text_of(page)):
        importlib.import_module(module_of(name)).arguments().parse_args(words)
        for word in words:
            if word.startswith(("artifacts/", "datasets/")):
                assert (ROOT / word).exists(), word


@every_page
def test_every_picture_and_every_page_that_is_linked_exists(page: Path) -> None:
    for target, anchor in re.findall(r"!?\[[^\]]*\]\((?!https?:)([^)#]*)(#[^)]*)?\)", text_of(page)):
        linked = page.parent / target if target else page
        assert linked.is_file(), target
        if anchor:
            assert anchor[1:] in anchors(text_of(linked)), anchor


def anchors(text: str) -> set[str]:
    """Anchors of the headings, as GitHub makes them."""
    heads = re.findall(r"^#+ (.*)", text, re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def test_every_page_is_linked_from_the_readme() -> None:
    for page in PAGES[1:]:
        assert f"]({page.relative_to(ROOT).as_posix()})" in TEXT, page


# ---- README ----


def test_the_front_matter_is_that_of_a_space() -> None:
    front = metadata_load(README) or {}
    assert front["sdk"] == "gradio" and (ROOT / front["app_file"]).is_file()
    assert len(front["short_description"]) <= 60 and front["license"] == "mit"
    assert tuple(map(int, front["python_version"].split("."))) >= (3, 11)


def test_the_two_commands_come_first() -> None:
    first = re.search(r"```bash\n(.*?)```", TEXT, re.S)
    assert first and [line.split("#")[0].strip() for line in first[1].splitlines()] == ["make demo", "make test"]
    assert TEXT.index(first[0]) < TEXT.index("```python")


def test_links_to_the_hub_stand_in_one_marked_place() -> None:
    begin, end = "<!-- links: begin (filled by `persona publish --namespace NAME`) -->", "<!-- links: end -->"
    assert TEXT.count(begin) == TEXT.count(end) == 1
    before, _, rest = TEXT.partition(begin)
    _, _, after = rest.partition(end)
    assert "huggingface.co" not in before + after
    assert "```" not in before, "a Space shows what stands before the first block of code"
    assert "](docs/" not in before, "which has no docs/"


def test_the_readme_is_short() -> None:
    body = TEXT.partition("\n---\n")[2]
    assert len(body.splitlines()) < 90


# ---- settings ----


def test_every_setting_of_the_app_is_in_the_table() -> None:
    app = text_of(ROOT / "docs/settings.md").partition("## The commands")[0]
    table = {
        name: default
        for names, default in re.findall(r"^\| (`PERSONA.*?) \| (.*?) \|", app, re.M)
        for name in re.findall(r"`(\w+)`", names)
    }
    fields = {f"PERSONA_{field.name.upper()}": field.default for field in dataclasses.fields(AppSettings)}
    assert list(table) == list(fields)
    for name, default in fields.items():
        if isinstance(default, int):  # a switch too
            assert table[name] == str(int(default)), name
