"""Links that show a reply again as it was: one that a visitor has saved, or a published one."""

from __future__ import annotations

import json
import os
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from persona_core.app import saved_replies
from persona_core.app.conversation import Chat, ReplyRequest, request_from_link
from persona_core.app.model_pool import ModelPool
from persona_core.app.pooled_model import PooledModel
from persona_core.app.run_controls import BUSY, WRITTEN_AGAIN, Press
from persona_core.app.saved_replies import GONE, SavedReplies, ShownReply
from persona_core.app.settings import AppSettings
from persona_core.app.tabs.compare import CompareTab
from persona_core.app.tabs.live import NOT_SAVED, LiveTab
from persona_core.errors import NotFound, SettingError
from persona_core.report.home import Home, load_home
from persona_core.report.saved_runs import SavedRuns
from persona_core.traces.dataset import read_results
from tests.support.app_page import ARTIFACTS, ask, tokens_of, wait_done
from tests.support.standins import HOSTILE, hostile_trace, make_trace, save_hostile_results, steady_monitor

RESULTS = ARTIFACTS / "persona-monitoring-persona-tiny"
BOTH = ("baseline", "contaminated")
MESSAGES = (
    {"role": "system", "content": "Be warm."},
    {"role": "user", "content": "First?"},
    {"role": "assistant", "content": "Yes."},
    {"role": "user", "content": "Then?"},
)


def live_tab(folder: Path | None, runs: SavedRuns | None = None, home: Home | None = None) -> LiveTab:
    """The tab of an app on a tiny random model, which keeps replies in that folder."""
    settings, pooled = AppSettings(results=None), PooledModel(steady_monitor)
    saved = None if folder is None else SavedReplies(folder)
    with gr.Blocks():
        home = home or load_home("no-such-folder/at/all/here")
        return LiveTab(settings, dict.fromkeys(BOTH, pooled), ModelPool(settings), home, runs, saved)


def written(tab: LiveTab, *requests: ReplyRequest, press: Press | None = None) -> tuple[dict[str, Any], Chat, str]:
    """What the view, the session and the notice hold after some presses."""
    chat = Chat()
    for number, request in enumerate(requests, 1):
        *_, (view, notice, chat, *_) = tab.run(number, press or Press(number, request), chat)
    return json.loads(view), chat, notice


def save(tab: LiveTab, chat: Chat, link: Any, press: Press | None = None) -> dict[str, str]:
    return tab.save(press, chat, gr.EventData(None, {"link": link}))


def opened(tab: LiveTab, query: Mapping[str, Any]) -> dict[Any, Any]:
    """Component -> its value after a link was opened; those that stay as they are are left out."""
    values = tab.link.restore(query, None)
    assert len(values) == len(tab.link.restored)
    known = dict(zip(tab.link.restored, values, strict=True))
    return {one: value for one, value in known.items() if value != gr.skip()}


def view_link(found: Mapping[Any, Any], tab: LiveTab) -> dict[str, str]:
    return {key: text for key, text in json.loads(found[tab.view])["link"].items() if key != "saved"}


def text_in(value: Any) -> Any:
    return value.value if isinstance(value, gr.Textbox) else value


def shown_reply(**changes: Any) -> ShownReply:
    said = {"name": "baseline", "onsets": {}, "caveats": []}
    return replace(ShownReply("baseline", MESSAGES, (make_trace(["Yes"]),), {"side": "baseline"}, (said,)), **changes)


FIRST = ReplyRequest("contaminated", ("Hello", "Be warm.", 12, 0.4, 7))


# ---- saved ----


def test_a_saved_reply_opens_as_it_was_with_what_made_it_in_the_form(tmp_path: Path) -> None:
    tab = live_tab(tmp_path)
    view, chat, _ = written(tab, FIRST)
    id = save(tab, chat, view["link"])["saved"]
    (row,) = read_results(tmp_path / f"{id}.parquet")
    assert row["prompt"] == "Hello" and row["id"] == id and row["response"] == chat.traces[0].reply_text
    other = live_tab(tmp_path)
    found = opened(other, {"tab": "live", "saved": id})
    restored = json.loads(found[other.view])
    assert restored.pop("link") == view.pop("link") | {"saved": id}
    view.pop("focus")
    assert restored == view
    form = other.form
    assert [text_in(found[one]) for one in form.values] == ["contaminated", "Hello", "Be warm.", 12, 0.4, 7]
    assert other.controls.from_link not in found, "nothing is written again"
    assert found[form.notice] == ""
    same = found[other.chat]
    assert np.array_equal(same.traces[0].raw, chat.traces[0].raw)
    assert save(other, same, view_link(found, other)) == {"saved": id}, "the same reply has the same id"


def test_a_branch_is_saved_beside_its_original_and_can_be_branched_again(tmp_path: Path) -> None:
    tab, trait = live_tab(tmp_path), steady_monitor().vectors.traits[0]
    view, chat, _ = written(tab, FIRST, ReplyRequest("", (trait, "add", 3.0), (0, 4)))
    id = save(tab, chat, view["link"])["saved"]
    assert len(read_results(tmp_path / f"{id}.parquet")) == 2
    found = opened(tab, {"saved": id})
    restored = json.loads(found[tab.view])
    assert restored["sides"] == view["sides"] and restored["outcome"] == view["outcome"]
    again = ReplyRequest("", (trait, "remove", 0), (1, 6))
    expected, shown = (list(tab.run(3, Press(3, again), one))[-1][0] for one in (chat, found[tab.chat]))
    assert json.loads(shown) == json.loads(expected)
    line = json.loads(json.loads(shown)["link"]["branch"])
    assert line == [[trait, "add", 3.0, 4], [trait, "remove", 0, 6]] and "saved" not in json.loads(shown)["link"]


def test_the_next_message_takes_the_place_of_the_one_in_the_form(tmp_path: Path) -> None:
    id = SavedReplies(tmp_path).save(shown_reply())
    tab = live_tab(tmp_path)
    found = opened(tab, {"saved": id})
    assert [m["content"] for m in found[tab.chat].messages] == ["First?", "Yes."]
    assert found[tab.form.prompt].value == "Then?" and found[tab.form.prompt].label == found[tab.chat].label
    assert found[tab.chat].label == "Next message (turn 2 of this chat)"


def test_only_what_the_session_has_written_and_the_view_shows_is_saved(tmp_path: Path) -> None:
    tab = live_tab(tmp_path, SavedRuns(RESULTS))
    view, chat, _ = written(tab, FIRST)
    published = opened(tab, {"config": "baseline", "id": "pilot-01"})[tab.chat]
    for other, link in (
        (Chat(), view["link"]),  # another session's
        (published, {"config": "baseline", "id": "pilot-01"}),
        (chat, {**view["link"], "seed": "8"}),  # one that broke off: the session has the reply before it
        (chat, None),
        (chat, [view["link"]]),
    ):
        assert save(tab, other, link) == {"error": NOT_SAVED}
    running = Press(1, FIRST)
    running.started = True
    assert save(tab, chat, view["link"], running) == {"error": BUSY}
    assert tab.save(None, chat, gr.EventData(None, "link")) == {"error": NOT_SAVED}
    assert list(tmp_path.iterdir()) == []


def test_replies_are_not_kept_unless_the_owner_names_a_folder() -> None:
    assert AppSettings().saved is None and AppSettings.from_environment({}).saved is None
    assert AppSettings.from_environment({"PERSONA_SAVED": "/data/saved"}).saved == "/data/saved"
    tab = live_tab(None)
    view, chat, _ = written(tab, FIRST)
    assert save(tab, chat, view["link"]) == {"error": NOT_SAVED}
    assert opened(tab, {"saved": "a" * 10})[tab.form.notice] == GONE


@pytest.fixture(scope="module")
def bait(tmp_path_factory: pytest.TempPathFactory) -> LiveTab:
    """The tab of an app with whole files under names that no saved reply has, in its folder and beside it."""
    folder = tmp_path_factory.mktemp("app") / "saved"
    kept = folder / f"{SavedReplies(folder).save(shown_reply())}.parquet"
    for name in ("secret", "SECRETSECR", "secretsec1"):
        for where in (folder, folder.parent):
            (where / f"{name}.parquet").write_bytes(kept.read_bytes())
    return live_tab(folder, SavedRuns(RESULTS))


HOSTILE_IDS = [
    *("../secret", "..", "", "/etc/passwd", "secret", "SECRETSECR", "secretsecr\n", "secretsec1", "ſecretsecr"),
    *("secretsecr/../secretsecr", "secretsecr.parquet", "\0" * 10, None, 3, ["secretsecr"], {"id": "secretsecr"}),
]


@pytest.mark.parametrize("id", HOSTILE_IDS, ids=repr)
def test_no_other_name_reaches_the_disk(bait: LiveTab, monkeypatch: pytest.MonkeyPatch, id: Any) -> None:
    monkeypatch.setattr(saved_replies, "read_results", lambda _: pytest.fail("read"))
    found = opened(bait, {"saved": id})
    assert found[bait.form.notice] == GONE and bait.view not in found


@pytest.mark.parametrize("damage", ["cut", "empty", "rows", "said"])
def test_a_damaged_file_is_as_good_as_gone(tmp_path: Path, damage: str) -> None:
    tab, replies = live_tab(tmp_path), SavedReplies(tmp_path)
    id = replies.save(shown_reply())
    path = tmp_path / f"{id}.parquet"
    table = pq.read_table(path)
    if damage == "said":
        at = table.column_names.index("said")
        pq.write_table(table.set_column(at, "said", pa.array(["[]"])), path)
    elif damage == "rows":
        pq.write_table(pa.concat_tables([table] * 3), path)
    else:
        path.write_bytes(path.read_bytes()[: 100 if damage == "cut" else 0])
    assert opened(tab, {"saved": id})[tab.form.notice] == GONE
    with pytest.raises(NotFound, match="no longer kept"):
        replies.open(id)


def test_the_oldest_are_removed_beyond_the_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replies = SavedReplies(tmp_path)
    monkeypatch.setattr(saved_replies, "MAX_SAVED", 3)
    ids = []
    for n in range(4):
        ids.append(replies.save(shown_reply(link={"seed": str(n)})))
        for age, id in enumerate(reversed(ids)):
            if (tmp_path / f"{id}.parquet").exists():
                os.utime(tmp_path / f"{id}.parquet", (1000 - age, 1000 - age))
    assert names(tmp_path) == sorted(ids[1:])
    assert replies.save(shown_reply(link={"seed": "1"})) == ids[1], "saved again: now it is the newest"
    newest = replies.save(shown_reply(link={"seed": "9"}))
    assert names(tmp_path) == sorted([ids[1], ids[3], newest])
    monkeypatch.setattr(saved_replies, "MAX_BYTES", 10)
    (tmp_path / "half.parquet.part").write_bytes(b"cut off")
    os.utime(tmp_path / "half.parquet.part", (1, 1))
    last = replies.save(shown_reply(link={"seed": "10"}))
    assert [path.name for path in tmp_path.iterdir()] == [f"{last}.parquet"]
    assert replies.open(last).link == {"seed": "10"}


def names(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.iterdir())


def test_hostile_texts_are_kept_as_they_are(tmp_path: Path) -> None:
    said = {"name": HOSTILE[0], "onsets": {"deception": {"says": HOSTILE[4]}}, "caveats": [HOSTILE[1]]}
    messages = ({"role": "user", "content": HOSTILE[2] + "\ud800"},)
    reply = shown_reply(traces=(hostile_trace(),), messages=messages, said=(said,), link={"said": HOSTILE[3]})
    found = SavedReplies(tmp_path).open(SavedReplies(tmp_path).save(reply))
    (side,) = found.payload()["sides"]
    assert {key: side[key] for key in said} == said and side["tokens"] == list(hostile_trace().tokens)
    assert found.payload() == reply.payload() and found.messages[0]["content"] == HOSTILE[2] + "\ufffd"


def test_a_folder_that_cannot_be_written_is_named_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SettingError, match=r"PERSONA_SAVED=.*file.*cannot be written"):
        SavedReplies(tmp_path / "file")


# ---- gone, or never saved ----


def test_where_a_saved_reply_is_gone_the_settings_of_its_link_are_filled_in(tmp_path: Path) -> None:
    tab = live_tab(tmp_path)
    said = [[m["role"], m["content"]] for m in MESSAGES]
    query = {"saved": "a" * 10, "said": json.dumps(said), "side": "contaminated"}
    query |= {"max_new_tokens": "12", "temperature": "0.4", "seed": "7"}
    found = opened(tab, query)
    assert found[tab.form.notice] == GONE
    assert [text_in(found[one]) for one in tab.form.values] == ["contaminated", "Then?", "Be warm.", 12, 0.4, 7]
    assert [m["content"] for m in found[tab.chat].messages] == ["First?", "Yes."]
    assert found[tab.view] is None, "no other reply beside this form"
    assert tab.controls.from_link not in found, "nothing is written before Send is pressed"


def test_a_reply_that_is_written_again_says_that_it_may_differ(tmp_path: Path) -> None:
    tab = live_tab(tmp_path)
    view, _, notice = written(tab, FIRST)
    assert notice == ""
    found = opened(tab, view["link"])
    assert [text_in(found[one]) for one in tab.form.values] == ["contaminated", "", "Be warm.", 12, 0.4, 7]
    press = found[tab.controls.press]
    again, _, notice = written(tab, press.request, press=press)
    assert again == view and notice == WRITTEN_AGAIN
    settings = AppSettings(results=None)
    with gr.Blocks(), gr.Tab() as one:
        compare = CompareTab(settings, dict.fromkeys(BOTH, PooledModel(steady_monitor)), None, one, None)
    known = dict(zip(compare.restored, compare.restore(view["link"], None), strict=True))
    assert known[compare.controls.press].note == WRITTEN_AGAIN


@pytest.mark.parametrize("value", ["NaN", "-1", '"x"', "null", "1e999", "1" + "0" * 400, "[]"])
def test_no_setting_of_a_link_breaks_the_form(bait: LiveTab, value: str) -> None:
    query = {"said": '[["user", "Hi"]]', "side": "baseline", "max_new_tokens": value, "temperature": value}
    found = opened(bait, query | {"seed": value})
    _, _, _, length, temperature, seed = (text_in(found.get(one)) for one in bait.form.values)
    assert 1 <= length <= bait.settings.max_new_tokens and 0 <= temperature <= 1.5 and 0 <= seed < 2**53


# ---- published ----


def test_a_published_reply_opens_by_its_id_and_so_does_a_branch_of_it() -> None:
    tab = live_tab(None, SavedRuns(RESULTS))
    row = SavedRuns(RESULTS).row("contaminated", "pilot-03")
    link = {"config": "contaminated", "id": "pilot-03"}
    found = opened(tab, link)
    payload = json.loads(found[tab.view])
    assert payload["link"] == link and payload["sides"][0]["ids"] == row["token_ids"]
    assert found[tab.form.prompt].value == row["messages"][-1]["content"]
    assert found[tab.chat].link == link and tab.controls.from_link not in found
    trait = row["traits"][0]
    found = opened(tab, {**link, "branch": json.dumps([[trait, "cap", 1.0, 5]])})
    assert found[tab.controls.press].request.at == (0, 5) and found[tab.chat].traces[0].tokens == tuple(row["tokens"])
    assert found[tab.controls.from_link] == 1 and found[tab.controls.press].note == WRITTEN_AGAIN


@pytest.mark.parametrize("query", [{"config": "baseline", "id": "gone"}, {"config": "../x", "id": "a"}, {"id": "a"}])
def test_a_published_reply_that_is_not_there_is_a_sentence(bait: LiveTab, query: dict[str, str]) -> None:
    for one in (query, query | {"branch": '[["evil", "cap", 1.0, 5]]'}):
        found = opened(bait, one)
        assert "no" in found[bait.form.notice] and bait.view not in found and bait.controls.from_link not in found


def test_a_branch_of_the_first_reply_is_a_branch_of_that_reply_in_its_link() -> None:
    runs = SavedRuns(RESULTS)
    home = load_home(AppSettings().vectors, runs)
    assert home.first_reply is not None
    tab = live_tab(None, runs, home)
    assert tab.chat.value.link == {"config": home.first_reply.config, "id": home.first_reply.id}
    asked = request_from_link({"branch": '[["evil", "cap", 1.0, 5]]'})
    assert asked is not None and asked[1].at == (0, 5), "links of before: of the reply that the page opens on"


# ---- the page ----


@pytest.mark.browser
def test_a_visitor_saves_a_reply_and_its_link_shows_it_with_a_comment(
    visit: Callable[..., Any], serve: Callable[..., str], slow: Any, tmp_path: Path
) -> None:
    results = save_hostile_results(tmp_path / "home")
    kept = tmp_path / "saved"
    url = serve(PooledModel(lambda: slow), AppSettings(vectors=str(tmp_path), results=results, saved=str(kept)))
    page = visit(url)
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    ask(page, "Hello")
    wait_done(page)
    page.locator("#view [data-part=export] summary").click()
    assert "whoever has the link can read it" in page.locator("#view [data-part=formats]").inner_text()
    assert list(kept.iterdir()) == []
    page.locator("#view [data-format=save]").click()
    page.wait_for_function("() => location.hash.includes('saved=')")
    page.wait_for_function("() => document.querySelector('#view [data-format=save]').innerText.startsWith('Saved')")
    link = page.evaluate("navigator.clipboard.readText()")
    assert link == page.url and len(list(kept.iterdir())) == 1
    # Whoever is not that visitor has nothing to save, whatever is sent.
    forged = {"data": [None, {"shown": {"traces": ["mine"]}}], "session_hash": "z", "event_data": {"link": {}}}
    with urllib.request.urlopen(f"{url}config", timeout=20) as answer:
        config = json.load(answer)
    forged["fn_index"] = next(d["id"] for d in config["dependencies"] if d["api_name"] == "save")
    header = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}gradio_api/run/predict", json.dumps(forged).encode(), header)
    with urllib.request.urlopen(request, timeout=20) as answer:
        assert json.load(answer)["data"] == [{"error": NOT_SAVED}]
    assert len(list(kept.iterdir())) == 1
    written_before = slow.written
    (path,) = kept.iterdir()
    other = visit(f"{url}#tab=live&saved={path.stem}&at=12&span=10-14&note=Look+here")
    other.bring_to_front()  # the clipboard was read from the first page: one behind it is not drawn
    other.wait_for_function("() => document.querySelectorAll('#view .tv-tok').length > 20")
    other.wait_for_function("() => document.querySelector('#prompt textarea').value === 'Hello'")
    assert tokens_of(other) == tokens_of(page) and slow.written == written_before
    assert other.locator(".link-note").inner_text() == "Look here"
    other.wait_for_function("() => location.hash.includes('span=10-14')")
    path.unlink()
    gone = visit(f"{url}#tab=live&saved={path.stem}")
    gone.bring_to_front()
    gone.wait_for_function("() => document.querySelector('#notice .notice').innerText.includes('no longer kept here')")
