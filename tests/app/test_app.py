"""The app in a real browser: the real page, a real monitor on a tiny model, and nothing outside this machine."""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from persona_core.app.pooled_model import PooledModel
from persona_core.app.settings import AppSettings
from persona_core.errors import NotFound
from persona_core.report.home import save_home
from tests.support.app_page import ask, no_sideways_scroll, notice, tokens_of, wait_done
from tests.support.standins import HOSTILE, hostile_tokens, save_hostile_results, steady_monitor
from tests.support.view_page import scores

pytestmark = pytest.mark.browser

BACKGROUND = "getComputedStyle(document.querySelector('#view .tv')).backgroundColor"
WHITE = "rgb(255, 255, 255)"


def score_text(score: float) -> str:
    """A score as the page writes it."""
    digits = 0 if abs(score) >= 100 else 2
    return f"{round(float(score), 4):+.{digits}f}".replace("-", "−")


def test_the_first_view_shows_the_saved_trace_literally(visit: Callable[..., Any], address: str) -> None:
    page = visit(address, fresh=True)
    page.wait_for_selector("#view .tv-tok")
    assert tokens_of(page) == hostile_tokens() and page.evaluate(BACKGROUND) == WHITE
    assert HOSTILE[1] in page.locator("#masthead").inner_text()
    assert page.locator("#masthead img, #view img").count() == 0
    assert page.locator("#view .tv-warnings").is_hidden()
    assert page.locator(".tv-chip[aria-pressed=true]").inner_text() == "flattery"
    assert page.locator(".tv-at").get_attribute("data-i") == "12"
    page.wait_for_selector("[data-chart=ready]")
    asked = visit.pages.requests  # type: ignore[attr-defined]
    assert not any("queue/join" in url for url in asked), "who only looks takes no place in the queue"
    assert not any("plotly" in url for url in asked), "it is for the figures of the reports"


def test_a_drag_asks_the_server_for_nothing(visit: Callable[..., Any], address: str) -> None:
    page = visit(address)
    page.wait_for_selector("[data-chart=ready]")
    page.wait_for_timeout(500)
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.locator(".tv-track").scroll_into_view_if_needed()
    area = page.locator(".tv-track").bounding_box()
    page.mouse.move(area["x"] + 2, area["y"] + area["height"] / 2)
    page.mouse.down()
    for step in range(20):
        page.mouse.move(area["x"] + area["width"] * step / 19, area["y"] + area["height"] / 2)
    page.mouse.up()
    page.locator(".tv-chip").first.click()
    page.locator(".tv-text").press("ArrowLeft")
    page.wait_for_timeout(300)
    assert page.locator(".tv-at").get_attribute("data-i") == str(len(hostile_tokens()) - 2)
    assert requests == []


def test_a_reply_streams_in_and_ends_as_generate_would(visit: Callable[..., Any], address: str, slowly: Any) -> None:
    page = visit(address)
    prompt = "Should I\n\tmove? <b>" + HOSTILE[2]
    ask(page, prompt, "Be <i>brief</i>.")
    page.wait_for_selector("#view .tv[data-state=live]")
    early = page.locator("#view .tv-tok").count()
    assert page.locator("#stop").is_enabled() and page.locator("#generate").is_disabled()
    slowly.pause = 0.005
    wait_done(page)
    messages = [{"role": "system", "content": "Be <i>brief</i>."}, {"role": "user", "content": prompt}]
    expected = steady_monitor().generate(messages, max_new_tokens=160, temperature=0.7, seed=0)
    assert tokens_of(page) == list(expected.tokens)
    assert early < expected.n_tokens
    page.locator("#view [role=slider]").press("End")
    trait = page.locator("#view .tv-chip[aria-pressed=true]").inner_text()
    assert scores(page) == [score_text(expected.scores_without_sinks(trait)[-1])]
    assert page.locator("#notice .notice").is_hidden()
    assert page.input_value("#prompt textarea") == "", "the message has left its field"
    assert page.locator("#prompt label").inner_text() == "Next message (turn 2 of this chat)"


def test_stop_keeps_what_was_written(visit: Callable[..., Any], address: str, slowly: Any) -> None:
    page = visit(address)
    ask(page, "Tell me everything.")
    page.wait_for_selector("#view .tv[data-state=live]")
    before = page.locator("#view .tv-tok").count()
    page.click("#stop")
    wait_done(page)
    assert page.locator("#view .tv-status").inner_text() == "stopped"
    assert page.locator("#view .tv-tok").count() >= before
    assert page.locator("#view .tv-section[data-role=assistant] .tv-tok").count() < 160, "not written to its end"
    deadline = time.monotonic() + 30
    while slowly.open_streams and time.monotonic() < deadline:
        time.sleep(0.02)
    assert slowly.open_streams == 0, "the model is free"
    assert page.locator("#stop").is_disabled()


def test_reloading_while_a_reply_is_written_brings_it_back(visit: Any, address: str, slowly: Any) -> None:
    page = visit(address)
    prompt = "Should I stay?"
    ask(page, prompt)
    page.wait_for_selector("#view .tv[data-state=live]")
    page.wait_for_function("location.hash.includes('said=')")
    visit.pages.expected += ["AbortError", "Connection errored out"]  # of Gradio's stream, which the reload ends
    page.reload()
    slowly.pause = 0.005
    page.wait_for_selector("#view .tv[data-state=live]")
    wait_done(page)
    expected = steady_monitor().generate(prompt, max_new_tokens=160, temperature=0.7, seed=0)
    assert tokens_of(page) == list(expected.tokens)


def test_half_a_character_is_refused_and_the_next_message_is_answered(visit: Callable[..., Any], address: str) -> None:
    page = visit(address)
    page.evaluate(
        "() => { const box = document.querySelector('#prompt textarea'); box.value = 'hello ' + '\\ud83d';"
        " box.dispatchEvent(new Event('input', {bubbles: true})); }"
    )
    page.wait_for_timeout(200)
    page.click("#generate")
    assert "surrogate" in notice(page)
    ask(page, "Should I go?")
    page.wait_for_function(
        "() => [...document.querySelectorAll('#view .tv-tok')].map(t => t.textContent).join('').includes('I go?')"
    )
    wait_done(page)


def test_two_visitors_do_not_see_each_other(visit: Callable[..., Any], address: str, slowly: Any) -> None:
    first, second = visit(address), visit(address)
    ask(first, "alpha alpha alpha")
    ask(second, "omega omega omega")
    first.wait_for_selector("#view .tv[data-state=live]")
    first.click("#stop")
    wait_done(first)
    second.wait_for_selector("#view .tv[data-state=live]")
    second.click("#stop")
    wait_done(second)
    assert "alpha" in "".join(tokens_of(first)) and "omega" not in "".join(tokens_of(first))
    assert "omega" in "".join(tokens_of(second)) and "alpha" not in "".join(tokens_of(second))


def test_a_run_stopped_in_the_queue_never_starts(visit: Callable[..., Any], address: str, slowly: Any) -> None:
    first, second = visit(address), visit(address)
    ask(first, "alpha")
    first.wait_for_selector("#view .tv[data-state=live]")
    ask(second, "omega")
    second.wait_for_selector("#stop:not([disabled])")
    second.click("#stop")
    first.click("#stop")
    wait_done(first)
    wait_done(second)
    assert tokens_of(second) == hostile_tokens()


def test_whoever_waits_is_told_so_and_can_stop_at_once(visit: Callable[..., Any], address: str, slowly: Any) -> None:
    first, second = visit(address), visit(address)
    ask(first, "alpha")
    first.wait_for_selector("#view .tv[data-state=live]")
    ask(second, "omega")
    second.wait_for_selector("text=Waiting for the model")
    second.click("#stop")
    wait_done(second)
    assert "Stopped" in notice(second)
    assert second.input_value("#prompt textarea") == "omega", "what was typed is not lost"
    assert first.locator("#view .tv[data-state=live]").count() == 1
    ask(second, "omega again")  # its place in the queue is a new one
    first.click("#stop")
    second.wait_for_selector("#view .tv[data-state=live]")
    second.click("#stop")
    wait_done(second)
    assert "again" in "".join(tokens_of(second))


def test_a_second_press_during_a_run_leaves_the_run_and_its_stop_alone(visit: Any, address: str, slowly: Any) -> None:
    page = visit(address)
    ask(page, "First question")
    page.wait_for_selector("#view .tv[data-state=live]")
    page.fill("#prompt textarea", "Second question")
    page.wait_for_timeout(100)  # a change takes an old notice away; it must not come after the press
    page.press("#prompt textarea", "Enter")
    assert "Press Stop first" in notice(page)
    later = page.locator("#view .tv-tok").count() + 3
    page.wait_for_function("n => document.querySelectorAll('#view .tv-tok').length >= n", arg=later)
    assert "Press Stop first" in notice(page)
    page.click("#stop")
    wait_done(page)
    assert page.locator("#view .tv-status").inner_text() == "stopped"
    assert "First" in "".join(tokens_of(page)) and page.input_value("#prompt textarea") == "Second question"


def test_a_visitor_turned_away_by_a_full_queue_can_try_again(
    visit: Any, serve: Callable[..., str], slowly: Any, tmp_path: Path
) -> None:
    save_home(tmp_path, about="", examples=())
    results = save_hostile_results(tmp_path)
    address = serve(PooledModel(lambda: slowly), AppSettings(vectors=str(tmp_path), results=results, max_queue=1))
    first, second, third = (visit(address) for _ in range(3))
    ask(first, "alpha")
    first.wait_for_selector("#view .tv[data-state=live]")
    ask(second, "omega")
    visit.pages.expected.append("503")  # the browser notes the refusal in its console
    ask(third, "gamma")
    third.wait_for_function("document.querySelector('#notice .notice').textContent.startsWith('Too many people')")
    assert not third.locator("#generate").is_disabled() and third.locator("#stop").is_disabled()
    assert third.input_value("#prompt textarea") == "gamma", "the message is not lost"
    for page in (second, first):
        page.click("#stop")
    wait_done(first)
    ask(third, "gamma again")
    third.wait_for_selector("#view .tv[data-state=live]")
    third.click("#stop")
    wait_done(third)


def test_nothing_can_be_uploaded(address: str) -> None:
    boundary = "x" * 16
    body = f'--{boundary}\r\nContent-Disposition: form-data; name="files"; filename="a.txt"\r\n\r\n'.encode()
    body += b"a" * 5000 + f"\r\n--{boundary}--\r\n".encode()
    request = urllib.request.Request(
        f"{address}gradio_api/upload", body, {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    )
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=20)
    assert refused.value.code == 413


def test_bad_input_is_named_and_loses_nothing(visit: Callable[..., Any], address: str) -> None:
    page = visit(address)
    for prompt, message in (("  \n ", "The prompt is empty"), ("word " * 500, "context"), ("é" * 2999, "context")):
        ask(page, prompt, "Be kind.")
        assert message in notice(page)
        wait_done(page)
        assert page.input_value("#prompt textarea") == prompt
        assert page.input_value("#system textarea") == "Be kind."
        assert tokens_of(page) == hostile_tokens()
        page.locator("#prompt textarea").press_sequentially("H")
        page.wait_for_selector("#notice .notice", state="hidden")


def test_the_form_holds_what_made_the_reply_and_a_phone_shows_the_next_one(
    visit: Any, address: str, slowly: Any
) -> None:
    page = visit(address, width=390, height=844)
    assert page.input_value("#prompt textarea") == HOSTILE[0] and page.input_value("#system textarea") == ""
    page.click("#generate")
    page.wait_for_selector("#view .tv[data-state=live]")
    page.wait_for_function("document.querySelector('#view .tv').getBoundingClientRect().top < innerHeight / 4")
    chart = "document.querySelector('#view .tv-time').getBoundingClientRect().top + scrollY"
    early, top = page.locator("#view .tv-tok").count(), page.evaluate(chart)
    slowly.pause = 0.005
    wait_done(page)
    assert page.locator("#view .tv-tok").count() > early
    assert page.evaluate(chart) == pytest.approx(top, abs=30), "the chart stays where it was"


def test_an_example_fills_both_fields(visit: Callable[..., Any], address: str) -> None:
    page = visit(address)
    page.get_by_role("button", name="Move", exact=True).click()
    page.wait_for_function("document.querySelector('#prompt textarea').value === 'Should I move?'")
    page.wait_for_function("document.querySelector('#system textarea').value === 'Be warm.'")
    page.get_by_role("button", name=HOSTILE[2], exact=True).click()
    page.wait_for_function("text => document.querySelector('#prompt textarea').value === text", arg=HOSTILE[0])


def test_a_phone_in_the_dark_needs_no_sideways_scroll(visit: Callable[..., Any], address: str) -> None:
    page = visit(address, width=390, height=844, theme="dark")
    page.wait_for_selector("[data-chart=ready]")
    assert no_sideways_scroll(page)
    assert page.evaluate(BACKGROUND) != WHITE


def test_an_app_without_a_home_file_and_with_a_model_that_fails(
    visit: Callable[..., Any], serve: Callable[..., str], tmp_path: Path
) -> None:
    def fail() -> Any:
        raise NotFound("No folder 'nowhere'. ${alert(1)} <b>")

    page = visit(serve(PooledModel(fail), AppSettings(vectors=str(tmp_path), results=None)))
    assert "No reply yet" in page.locator(".tv-empty").inner_text()
    ask(page, "Hello")
    page.wait_for_function("document.querySelector('#notice .notice').textContent.startsWith('No folder')")
    assert notice(page) == "No folder 'nowhere'. ${alert(1)} <b>"
    page.wait_for_selector("#generate:not([disabled])")
    assert page.input_value("#prompt textarea") == "Hello"


def test_each_side_is_written_by_its_own_model(visit: Any, serve: Callable[..., str], slow: Any) -> None:
    asked: list[str] = []

    def handing_out(side: str) -> Callable[[], Any]:
        def load() -> Any:
            asked.append(side)
            return slow

        return load

    settings = AppSettings(results=None)
    page = visit(serve(PooledModel(handing_out("baseline")), settings, PooledModel(handing_out("contaminated"))))
    assert asked == []  # nothing is loaded until somebody generates
    page.get_by_label("contaminated", exact=True).check()
    ask(page, "Hello")
    wait_done(page)
    assert asked == ["contaminated"]
    page.get_by_label("baseline", exact=True).check()
    ask(page, "Hello again")
    page.wait_for_function("document.querySelector('.tv-title').textContent === 'Hello again'")
    wait_done(page)
    assert asked == ["contaminated", "baseline"]


def test_an_imported_trace_is_shown_with_its_warnings(visit: Any, serve: Callable[..., str], tmp_path: Path) -> None:
    from persona_core.traces.dataset import write_results
    from persona_core.traces.importing import import_results
    from tests.traces.test_importing import ENTRY, saved

    rows = import_results(saved(tmp_path, [ENTRY]))
    write_results(rows, tmp_path / "data" / "imported.parquet", rows[0]["traits"])
    save_home(tmp_path, about="", examples=())

    def fail() -> Any:
        raise NotFound("no model")

    page = visit(serve(PooledModel(fail), AppSettings(vectors=str(tmp_path), results=str(tmp_path))))
    page.wait_for_selector("#view .tv-tok")
    said = page.locator("#view .tv-warnings").inner_text()
    assert "⚠" in said and "state before each token" in said and "block is unknown" in said
    assert tokens_of(page) == ENTRY["tokens"]


def test_without_an_adapter_there_is_no_choice_of_a_model(visit: Callable[..., Any], address: str) -> None:
    assert visit(address).locator("#side").count() == 0


def test_nothing_takes_the_conversation_away_while_a_reply_is_written(visit: Any, address: str, slowly: Any) -> None:
    page = visit(address)
    ask(page, "First question")
    page.wait_for_selector("#view .tv[data-state=live]")
    for button in ("#new-chat", "#edit"):
        page.click(button)
        assert "Press Stop first" in notice(page)
    assert page.locator("#prompt label").inner_text() == "Message"
    page.click("#stop")
    wait_done(page)
    assert page.locator("#prompt label").inner_text() == "Next message (turn 2 of this chat)"
    page.click("#new-chat")
    page.wait_for_selector("#view .tv[data-state=empty]", state="attached")
    assert page.locator("#prompt label").inner_text() == "Message"


@pytest.mark.parametrize(
    "fragment",
    [
        "hidden=%25&tab=nope&trait=x&at=99999999999",
        "%",
        'tab=live&side=baseline&said=[["user","\\ud800 hi"]]&max_new_tokens=9&temperature=0.7&seed=0',
    ],
)
def test_a_strange_link_shows_the_page_as_it_is(visit: Callable[..., Any], address: str, fragment: str) -> None:
    page = visit(f"{address}#{fragment}")
    page.wait_for_selector("#view .tv-tok")
    assert tokens_of(page) == hostile_tokens()
    page.get_by_role("tab", name="Read a text", exact=True).click()
    page.wait_for_function("location.hash.startsWith('#tab=read')")


def test_a_message_that_is_too_long_is_refused_before_it_is_kept(address: str) -> None:
    """As a program would send it, past the page's own limit."""
    body = json.dumps(
        {
            "data": [None, "baseline", "", "", "", "x" * 10_000, "", 10, 0.7, 0],
            "fn_index": fn_index(address, "_request_reply"),
            "session_hash": "z",
        }
    )
    request = urllib.request.Request(
        f"{address}gradio_api/run/predict", body.encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=20) as answer:
        assert "at most 3000 are allowed here" in answer.read().decode()


def fn_index(address: str, name: str) -> int:
    with urllib.request.urlopen(f"{address}config", timeout=20) as answer:
        config = json.load(answer)
    return next(d["id"] for d in config["dependencies"] if d["api_name"] == name)


def test_a_visitor_names_a_model_only_where_the_owner_allows_it(
    visit: Callable[..., Any], serve: Callable[..., str], address: str, slow: Any, tmp_path: Path
) -> None:
    page = visit(address)
    assert page.locator("#another").count() == 0 and page.get_by_label("another", exact=True).count() == 0
    save_home(tmp_path, about="", examples=())
    settings = AppSettings(vectors=str(tmp_path), results=save_hostile_results(tmp_path), open_models=True)
    page = visit(serve(PooledModel(lambda: slow), settings))
    page.get_by_label("another", exact=True).check()
    page.locator("#another button").first.click()
    page.get_by_label("Model", exact=True).last.fill("/etc")
    ask(page, "Hello")
    assert "is not a Hub id" in notice(page)
    wait_done(page)
    assert page.input_value("#prompt textarea") == "Hello"


def test_what_was_sent_shows_as_text_until_the_model_answers(
    visit: Callable[..., Any], serve: Callable[..., str], slow: Any
) -> None:
    loaded = threading.Event()

    def load() -> Any:
        loaded.wait(120)
        return slow

    message = f"Should I?\n{HOSTILE[1]}"
    page = visit(serve(PooledModel(load), AppSettings(results=None)))
    ask(page, message)
    page.wait_for_selector("#sent .sent:not([hidden])")
    assert page.locator("#sent .sent-text").inner_text() == message
    assert page.locator("#sent :is(img, script)").count() == 0 and page.locator("#prompt textarea").input_value() == ""
    loaded.set()
    wait_done(page)
    assert not page.locator("#sent .sent").is_visible() and tokens_of(page)
