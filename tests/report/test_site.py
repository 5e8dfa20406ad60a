"""The static site as files: what is in them, what they are made from, and what is never overwritten."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import RepoCard

from persona_core.cli.main import main
from persona_core.errors import NotFound, SettingError
from persona_core.report.gallery import gallery
from persona_core.report.pairs import TEXTS, published_payload
from persona_core.report.saved_runs import SavedRuns
from persona_core.report.site import Site, export_site
from persona_core.report.site_card import licence_of, site_card
from persona_core.report.vectors_content import markdown_html, vectors_content
from persona_core.vectors.vectors import PersonaVectors
from tests.support.standins import HOSTILE, hostile_tokens, save_hostile_results
from tests.traces.test_dataset import SHIPPED

VECTORS = SHIPPED.parent / "persona-vectors-persona-tiny"
needs_shipped = pytest.mark.skipif(not SHIPPED.is_dir(), reason="the results have not been built")


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """The site of the shipped runs."""
    return export_site(SHIPPED, tmp_path_factory.mktemp("site") / "site", vectors=VECTORS)


@pytest.fixture
def small(tmp_path: Path) -> Site:
    """The site of one hostile reply, which was not analysed."""
    return export_site(save_hostile_results(tmp_path / "runs"), tmp_path / "site")


@needs_shipped
def test_each_run_is_a_file_that_holds_what_the_app_shows_bit_for_bit(shipped: Site) -> None:
    runs = SavedRuns(SHIPPED)
    site = read(shipped.folder / "site.json")
    assert site["ids"] == runs.ids and len(set(site["files"])) == 78
    for id in ("pilot-03", "harmful-10", "expanded-50"):
        run = read(shipped.folder / site["files"][site["ids"].index(id)])
        assert run["id"] == id and list(run["texts"]) == ["0", "1", "2"]
        assert len(run["sides"]) == 4  # each reading once, though two texts show it
        for number, text in enumerate(TEXTS):
            own = run["texts"][str(number)]
            shown = own["payload"] | {"sides": [run["sides"][index] for index in own["sides"]]}
            expected, notice = published_payload(runs, id, text)
            del expected["link"]  # the app's address
            assert (shown, own["notice"]) == (json.loads(json.dumps(expected)), notice)
    assert read(shipped.folder / "data" / "runs.json") == json.loads(json.dumps(runs.table()))


@needs_shipped
def test_the_site_is_small_whole_and_names_only_files_that_it_has(shipped: Site) -> None:
    paths = [path for path in shipped.folder.rglob("*") if path.is_file()]
    found = {path.relative_to(shipped.folder).as_posix(): path.stat().st_size for path in paths}
    assert dict(shipped.sizes) == found and shipped.left_out == ()
    assert sum(found.values()) < 40e6 and max(found.values()) < 10e6
    page = (shipped.folder / "index.html").read_text(encoding="utf-8")
    assert set(re.findall(r'(?:src|href)="([^"#]+)', page)) == {"assets/site.css", "assets/site.js", "data:,"}
    site = read(shipped.folder / "site.json")
    assert set(site["files"]) | {f"data/{page}.json" for page in site["pages"]} <= set(found)


@needs_shipped
def test_the_site_opens_on_the_first_finding_and_lists_the_others(shipped: Site) -> None:
    site, found = read(shipped.folder / "site.json"), gallery(SavedRuns(SHIPPED))
    assert (site["opening"]["id"], site["opening"]["trait"]) == (found[0].id, found[0].trait)
    assert [one["says"] for one in site["findings"]] == [one.says for one in found]
    files = dict(zip(site["ids"], site["files"], strict=True))
    for one, finding in zip(site["findings"], found, strict=True):
        assert one["text"] in read(shipped.folder / files[one["id"]])["texts"]
        assert one["text"] == finding.text if finding.text not in TEXTS else TEXTS[int(one["text"])] == finding.text


@needs_shipped
def test_vectors_that_did_not_read_the_runs_are_refused(tmp_path: Path) -> None:
    shutil.copytree(VECTORS, tmp_path / "other")
    vectors = PersonaVectors.from_pretrained(VECTORS)
    traits = {t: vectors.tensor(t) * 2 for t in vectors.traits}
    PersonaVectors.from_tensors(traits, best_block=dict(vectors.best_block)).save_pretrained(tmp_path / "other")
    with pytest.raises(SettingError, match=vectors.fingerprint):
        export_site(SHIPPED, tmp_path / "site", vectors=tmp_path / "other")
    assert not (tmp_path / "site").exists()


def test_a_reply_alone_is_a_site_too_and_what_it_lacks_is_said(small: Site) -> None:
    site = read(small.folder / "site.json")
    assert (site["pages"], site["opening"]["id"], site["opening"]["trait"]) == (["runs"], "x", None)
    run = read(small.folder / site["files"][0])
    assert list(run["texts"]) == ["0"] and run["says"] == ""
    assert [side["tokens"] for side in run["sides"]] == [hostile_tokens()]
    assert len(small.left_out) == 1 and "persona analyse" in small.left_out[0]


def test_hostile_text_is_never_markup_in_any_file(tmp_path: Path) -> None:
    results = save_hostile_results(tmp_path / "runs")
    site = export_site(results, tmp_path / "site", title=HOSTILE[5] + HOSTILE[1])
    for name in site.sizes:
        if name.endswith(".json"):
            text = (site.folder / name).read_bytes()
            assert not set(b"<>&") & set(text) and text.isascii(), name
    page = (site.folder / "index.html").read_text(encoding="utf-8")
    assert page.count("<script") == 1 and "<img" not in page
    assert "script-src 'self';" in page and "default-src 'none'" in page


def test_an_id_is_no_path(tmp_path: Path) -> None:
    from persona_core.traces.dataset import write_results
    from tests.support.standins import TRAITS, hostile_trace

    messages = [{"role": "user", "content": "?"}]
    ids = ["../../out", "/etc/x", "<b>", "a" * 300]
    rows = [hostile_trace().to_row(id=id, messages=messages) for id in ids]
    write_results(rows, tmp_path / "runs" / "data" / "baseline.parquet", TRAITS)
    site = export_site(tmp_path / "runs", tmp_path / "site")
    assert read(site.folder / "site.json")["ids"] == ids
    assert [n for n in site.sizes if n.startswith("data/runs/")] == [f"data/runs/00{i}.json" for i in (1, 2, 3, 4)]


# ---- the folder ----


def test_a_second_run_replaces_the_site_and_leaves_what_else_lies_there(small: Site, tmp_path: Path) -> None:
    (small.folder / ".git").mkdir()
    (small.folder / ".git" / "HEAD").write_text("ref")
    (small.folder / "data" / "runs" / "999.json").write_text("{}")  # of a run that is gone
    again = export_site(tmp_path / "runs", small.folder, title="Another")
    assert again.sizes.keys() == small.sizes.keys() and not (small.folder / "data" / "runs" / "999.json").exists()
    assert "<title>Another</title>" in (small.folder / "index.html").read_text(encoding="utf-8")
    assert (small.folder / ".git" / "HEAD").read_text() == "ref"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs", "site"]  # nothing is left beside it


@pytest.mark.parametrize("marker", [None, "{}", "[1]", "no JSON", '{"made_by": "another"}'])
def test_a_folder_of_something_else_is_refused_and_untouched(tmp_path: Path, marker: str | None) -> None:
    results = save_hostile_results(tmp_path / "runs")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "index.html").write_text("mine")
    if marker is not None:
        (tmp_path / "mine" / "site.json").write_text(marker)
    before = {p: p.read_bytes() for p in (tmp_path / "mine").iterdir()}
    with pytest.raises(SettingError, match="not empty"):
        export_site(results, tmp_path / "mine")
    assert {p: p.read_bytes() for p in (tmp_path / "mine").iterdir()} == before


def test_an_empty_folder_is_taken_and_a_failure_leaves_the_old_site(small: Site, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert export_site(tmp_path / "runs", tmp_path / "empty").sizes
    before = (small.folder / "site.json").read_bytes()
    with pytest.raises(NotFound):
        export_site(tmp_path / "nowhere", small.folder)
    assert (small.folder / "site.json").read_bytes() == before


def test_a_folder_on_a_disk_of_its_own_is_filled_and_replaced(
    small: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other_disk(move: Any) -> Any:
        def moved(source: Any, target: Any) -> Any:
            if Path(target).parent == small.folder:
                raise OSError(errno.EXDEV, "Invalid cross-device link")
            return move(source, target)

        return moved

    for name in ("rename", "replace"):
        monkeypatch.setattr(os, name, other_disk(getattr(os, name)))
    (small.folder / "data" / "old.json").touch()
    again = export_site(tmp_path / "runs", small.folder, title="Anew")
    assert dict(again.sizes) == {
        p.relative_to(small.folder).as_posix(): p.stat().st_size for p in small.folder.rglob("*") if p.is_file()
    }
    assert read(small.folder / "site.json")["title"] == "Anew" and not (small.folder / "data" / "old.json").exists()


# ---- the card, the cards of the vectors, the command ----


def test_the_card_is_that_of_a_static_space_and_names_what_is_on_the_hub(tmp_path: Path) -> None:
    folder = save_hostile_results(tmp_path)
    (tmp_path / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n")
    card = RepoCard(site_card("Mine: <b>", folder, models=["me/a"], datasets=["me/b"], licence=licence_of(folder)))
    data = card.data.to_dict()
    expected = {"title": "Mine: <b>", "sdk": "static", "app_file": "index.html", "license": "cc-by-4.0"}
    assert {key: data[key] for key in expected} == expected
    assert (data["models"], data["datasets"]) == (["me/a"], ["me/b"])
    assert "# Mine: &lt;b&gt;" in card.text


def test_the_card_links_the_repositories_that_the_site_was_made_from_but_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = RepoCard(site_card("A", "me/rows@v1", "me/vectors", models=["me/vectors"])).data.to_dict()
    assert (data["models"], data["datasets"]) == (["me/vectors"], ["me/rows"])
    assert data.get("license") is None
    (tmp_path / "artifacts" / "rows").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    data = RepoCard(site_card("A", "artifacts/rows", "artifacts/rows")).data.to_dict()
    assert data.get("models") is None and data.get("datasets") is None


@needs_shipped
def test_the_cards_of_the_vectors_have_every_trait_and_only_escaped_names() -> None:
    vectors = PersonaVectors.from_pretrained(VECTORS)
    content = vectors_content(vectors, str(VECTORS))
    assert content["traits"] == list(vectors.traits)
    assert content["html"].count("data-trait=") == len(vectors.traits) == content["html"].count("data-pick=")
    assert set(re.findall(r'data-figure="([^"]+)"', content["html"])) == set(content["figures"])
    auroc = vectors.config["validation"]["refusal"]["auroc"]["value"]
    assert f"{auroc:.4f}" in content["html"].rpartition('data-trait="refusal"')[2]


def test_a_link_in_a_card_runs_nothing_and_a_table_scrolls_in_its_box() -> None:
    assert "href" not in markdown_html("[x](javascript:alert(1))")
    page = markdown_html("| a | b |\n|---|---|\n| 1 | 2 |")
    assert page.startswith('<div class="scroll"') and page.endswith("</table></div>")


def test_the_command_says_what_it_wrote_and_what_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = save_hostile_results(tmp_path / "runs")
    assert main(["export-site", results, "--out", str(tmp_path / "site"), "--title", "Mine"]) == 0
    said = capsys.readouterr().out
    assert "left out: the analysis" in said and "MB; the largest is assets/plotly.min.js" in said
    assert "<h1>Mine</h1>" in (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    (tmp_path / "site" / "site.json").unlink()
    assert main(["export-site", results, "--out", str(tmp_path / "site")]) == 1
    assert "not empty" in capsys.readouterr().err
