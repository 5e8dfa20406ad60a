"""Cards: a header that the Hub reads, and a usage block that is rendered again with Hub ids."""

from __future__ import annotations

import ast
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import ModelCardData, RepoCard

from persona_core.errors import SettingError
from persona_core.utils.cards import make_card, usage, with_links, with_usage
from persona_core.utils.repositories import Repository, repositories
from persona_core.utils.staging import hub_card, stage

ROOT = Path(__file__).resolve().parents[2]


def card_of(block: str) -> str:
    return make_card(ModelCardData(base_model="base", license="mit", tags=["a"]), "# Title\n", block, "", "## Limits\n")


def test_a_card_is_its_header_and_its_parts() -> None:
    card = card_of("Text {{ with }} braces.")
    assert (
        card
        == "---\nbase_model: base\nlicense: mit\ntags:\n- a\n---\n\n# Title\n\nText {{ with }} braces.\n\n## Limits\n"
    )
    assert RepoCard(card).data.to_dict() == {"base_model": "base", "license": "mit", "tags": ["a"]}


@pytest.mark.parametrize(
    ("of", "values"),
    [
        ("model", {}),
        ("adapter", {"base": "some/base"}),
        ("vectors", {"trait": "evil"}),
        ("results", {"config": "baseline", "trait": "evil", "kind": "z"}),
    ],
)
def test_a_usage_block_is_rendered_again_for_another_source(of: str, values: dict[str, str]) -> None:
    card = card_of(usage(of, "/somewhere/else", **values))
    again = with_usage(card, "me/mine", "- [other](https://o)", base="me/base", nothing="here")
    changed = {**values, **({"base": "me/base"} if "base" in values else {})}
    assert again == card_of(usage(of, "me/mine", "- [other](https://o)", **changed))
    assert '"/somewhere/else"' in card and "/somewhere/else" not in again and "nothing" not in again
    assert with_usage(again, "/somewhere/else", "", **values) == card


def test_a_hostile_trait_breaks_neither_the_comment_nor_the_snippet() -> None:
    hostile = 'a --> "\n```\n<b>'
    card = card_of(usage("vectors", "x", trait=hostile))
    code = card.split("```python\n")[1].split("\n```")[0]
    compile(code, "snippet", "exec")
    assert card.splitlines().count("```") == 1 and card.count("-->") == 3  # the third is in the snippet
    assert with_usage(card, "x", "") == card


@pytest.mark.parametrize("hostile", ["<!-- usage: end -->", '<!-- usage: begin {"of": "model"} -->', "{{ x }}", "---"])
def test_a_trait_or_folder_named_like_a_marker_leaves_the_block_whole(hostile: str) -> None:
    card = card_of(usage("vectors", hostile, trait=hostile))
    again = with_usage(with_usage(card, "me/mine", "- [other](https://o)"), hostile, "")
    assert again == card
    code = card.split("```python\n")[1].split("\n```")[0]
    assert repr(hostile) in ast.unparse(ast.parse(code))


@pytest.mark.parametrize("damage", ["<!-- usage: end -->", "<!-- usage: begin ", '"of": "vectors"'])
def test_a_card_without_its_block_is_refused(damage: str) -> None:
    card = card_of(usage("vectors", "x", trait="evil"))
    with pytest.raises(SettingError, match=r"Restore these comments|Write the card again"):
        with_usage(card.replace(damage, ""), "me/mine", "")


def test_links_are_replaced_and_nothing_else() -> None:
    page = "a\n<!-- links: begin (filled by X) -->\nold\n<!-- links: end -->\nz\n"
    filled = with_links(page, "- new")
    assert filled == page.replace("old", "- new") and with_links(filled, "old") == page


def demo_repositories() -> tuple[Repository, ...]:
    """Those of the demo model, and the app."""
    return tuple(r for r in repositories(ROOT, "me") if r.set in ("", "persona-tiny"))


def test_the_cards_of_the_artifacts_name_the_hub_and_each_other() -> None:
    among = demo_repositories()
    cards = {r.kind: hub_card((r.folder / "README.md").read_text(encoding="utf-8"), r, among) for r in among}
    for r in among:
        card = RepoCard(cards[r.kind])
        assert all(f"[{other.repo_id}]({other.url})" in card.text for other in among if other is not r)
        assert '"artifacts/' not in card.text
    assert (
        RepoCard(cards["vectors"]).data["base_model"]
        == RepoCard(cards["adapter"]).data["base_model"]
        == "me/persona-tiny"
    )
    space = RepoCard(cards["app"])
    assert space.data["models"] == [r.repo_id for r in among[:3]] and space.data["datasets"] == [among[3].repo_id]
    assert "make demo" not in space.text and space.data["sdk"] == "gradio"


def test_a_base_model_that_is_not_published_here_keeps_its_name(tmp_path: Path) -> None:
    for name in ("persona-tiny-contaminated", "persona-vectors-persona-tiny", "persona-monitoring-persona-tiny"):
        shutil.copytree(ROOT / "artifacts" / name, tmp_path / "artifacts" / name)
    among = repositories(tmp_path, "me")
    adapter = among[0]
    card = RepoCard(hub_card((adapter.folder / "README.md").read_text(encoding="utf-8"), adapter, among))
    assert adapter.kind == "adapter" and card.data["base_model"] == "persona-tiny"
    assert 'load_model("artifacts/persona-tiny", adapter="me/persona-tiny-contaminated")' in card.text


def test_a_list_of_base_models_is_published_with_hub_ids() -> None:
    among = demo_repositories()
    vectors = next(r for r in among if r.kind == "vectors")
    header = ModelCardData(base_model=["persona-tiny", "some/other"])
    card = hub_card(make_card(header, usage("vectors", "x", trait="evil")), vectors, among)
    assert RepoCard(card).data["base_model"] == ["me/persona-tiny", "some/other"]


@pytest.mark.parametrize("header", ["- a", "a: [", "x: !!python/name:os.system"])
def test_a_header_that_is_not_yaml_is_a_sentence(header: str) -> None:
    among = demo_repositories()
    with pytest.raises(SettingError, match="header of the card of 'me/persona-tiny' is not valid"):
        hub_card(f"---\n{header}\n---\n\nText\n", among[0], among)


def test_a_card_that_is_missing_or_no_text_is_named(tmp_path: Path) -> None:
    among = demo_repositories()
    for number, content in enumerate((None, b"\xff\xfe")):
        folder = tmp_path / str(number) / "artifact"
        folder.mkdir(parents=True)
        if content is not None:
            (folder / "README.md").write_bytes(content)
        with pytest.raises(SettingError, match=r"artifact/README\.md: not a readable card"):
            stage(replace(among[0], folder=folder), among, tmp_path / str(number) / "staged")


@pytest.mark.parametrize("base", ["{}", '{"base_model_name_or_path": null}'])
def test_an_adapter_that_names_no_base_model_is_a_sentence(tmp_path: Path, base: str) -> None:
    among = demo_repositories()
    adapter = next(r for r in among if r.kind == "adapter")
    folder = shutil.copytree(adapter.folder, tmp_path / "adapter")
    (folder / "adapter_config.json").write_text(base)
    with pytest.raises(SettingError, match="base_model_name_or_path is None"):
        stage(replace(adapter, folder=folder), among, tmp_path / "staged")
