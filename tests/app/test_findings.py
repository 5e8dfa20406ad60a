"""The first screen: a published pair, what is seen there, and where one can go from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gradio as gr
import pytest

from persona_core.app.pooled_model import PooledModel
from persona_core.app.settings import AppSettings
from persona_core.app.tabs.findings import FindingsTab
from persona_core.app.token_alternatives import NO_TOKEN, alternatives_at
from persona_core.monitor.alternatives import alternatives
from persona_core.report.gallery import Finding, gallery
from persona_core.report.pairs import CONTAMINATED_REPLY
from persona_core.report.saved_runs import SavedRuns
from persona_core.traces.trace import Trace
from persona_core.vectors.card_steering import cap_threshold
from persona_core.vectors.vectors import PersonaVectors
from tests.support.app_page import ARTIFACTS, tokens_of, wait_done
from tests.support.standins import HOSTILE, steady_monitor

pytestmark = pytest.mark.browser
RESULTS = ARTIFACTS / "persona-monitoring-persona-tiny"
VIEW = "#findings-view"
REPLY = f"{VIEW} .tv-section[data-role=assistant] .tv-tok"


@pytest.fixture(scope="module")
def writers() -> dict[str, PooledModel]:
    """The demo's models, loaded when they are asked."""
    baseline = PooledModel.from_settings(AppSettings())
    return {"baseline": baseline, "contaminated": PooledModel.contaminated(baseline, AppSettings())}


@pytest.fixture(scope="module")
def url(serve: Callable[..., str], writers: dict[str, PooledModel]) -> str:
    """The demo's set."""
    return serve(writers["baseline"], AppSettings(), writers["contaminated"]) + "#tab=findings"


@pytest.fixture(scope="module")
def findings() -> tuple[Finding, ...]:
    return gallery(SavedRuns(RESULTS))


def says(page: Any) -> str:
    return str(page.locator("#findings .finding-says").inner_text())


def bottom(page: Any, selector: str) -> float:
    return float(
        page.locator(selector).first.bounding_box()["y"] + page.locator(selector).first.bounding_box()["height"]
    )


def test_the_page_opens_on_a_finding_and_shows_it_above_the_fold(
    visit: Callable[..., Any], url: str, findings: tuple[Finding, ...]
) -> None:
    page = visit(url.split("#")[0] + "#")
    page.wait_for_selector(REPLY)
    first = findings[0]
    assert says(page) == first.says
    assert page.locator("#masthead").bounding_box()["height"] < 40, "one line"
    for side in (0, 1):
        shared = page.locator(f"{VIEW} .tv-pane").nth(side).locator(".tv-shared").all_inner_texts()
        texts = [
            one["response"]
            for c in ("baseline", "contaminated")
            for one in SavedRuns(RESULTS).rows(c)
            if one["id"] == first.id
        ]
        assert all(text.startswith("".join(shared)) for text in texts) and len(shared) > 10
    for mark in (".tv-parts", ".tv-onset"):
        assert bottom(page, f"{VIEW} {mark}") < 900, mark
    assert page.locator(f"{VIEW} .tv-pane").nth(1).locator(".tv-onset").get_attribute("data-i") is not None
    assert bottom(page, f"{VIEW} .tv-thumb") < 900


@pytest.mark.parametrize("size", [(720, 900), (390, 844)], ids=str)
def test_the_first_tokens_are_in_sight_on_small_screens(
    visit: Callable[..., Any], url: str, size: tuple[int, int]
) -> None:
    page = visit(url, width=size[0], height=size[1])
    page.wait_for_selector(REPLY)
    assert bottom(page, REPLY) < size[1]
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_each_finding_is_a_link_and_back_returns_to_the_one_before(
    visit: Callable[..., Any], url: str, findings: tuple[Finding, ...]
) -> None:
    page = visit(url)
    page.wait_for_selector(REPLY)
    first, second = findings[:2]
    page.get_by_role("button", name="Next finding").click()
    title = SavedRuns(RESULTS).titles
    heading = f"() => document.querySelector('{VIEW} .tv-title').innerText === "
    page.wait_for_function(heading + repr(title[second.id]))
    page.wait_for_function(f"() => location.hash.includes('finding={second.name}')")
    assert says(page) == second.says
    page.get_by_role("tab", name="Runs").click()
    page.wait_for_function("() => location.hash.startsWith('#tab=runs')")
    page.go_back()
    page.wait_for_function(f"() => location.hash.includes('finding={second.name}')")
    page.wait_for_selector("#tab-findings-button[aria-selected=true]")
    page.go_back()
    page.wait_for_function(heading + repr(title[first.id]))
    assert says(page) == first.says
    other = visit(f"{url.split('#')[0]}#tab=findings&finding={second.name}&at=12")
    other.wait_for_function(heading + repr(title[second.id]))
    assert says(other) == second.says
    other.wait_for_function(f"() => document.querySelector('{VIEW} .tv-thumb').ariaValueNow === '12'")
    other.wait_for_function("() => location.hash.endsWith('&at=12')")


def test_ask_it_yourself_opens_the_reply_with_what_made_it_in_the_form(
    visit: Callable[..., Any], url: str, findings: tuple[Finding, ...]
) -> None:
    page = visit(url)
    page.wait_for_selector(REPLY)
    page.get_by_role("button", name="Ask it yourself").click()
    row = SavedRuns(RESULTS).row("contaminated", findings[0].id)
    page.wait_for_function(f"() => document.querySelector('#prompt textarea')?.value === {row['prompt']!r}")
    page.wait_for_selector("#view .tv-tok")
    assert "".join(tokens_of(page)).endswith(row["response"] + "<|end|>") or row["response"] in "".join(tokens_of(page))
    assert page.locator("#side input[value=contaminated]").is_checked()
    assert page.locator("#tab-live-button").get_attribute("aria-selected") == "true"


def test_a_button_beside_the_text_continues_the_published_reply_beside_it(
    visit: Callable[..., Any], url: str, findings: tuple[Finding, ...]
) -> None:
    page = visit(url)
    page.wait_for_selector(REPLY)
    page.locator(f"{VIEW} .tv-pane").nth(1).locator(".tv-section[data-role=assistant] .tv-tok").nth(12).click()
    page.locator(f"{VIEW} [data-action=cap]").click()
    page.wait_for_selector("#view .tv[data-sides='2']")
    wait_done(page)
    original, branch = (tokens_of(page, side=side) for side in (0, 1))
    at = (
        len(original)
        - len(page.locator("#view .tv-pane").first.locator(".tv-section[data-role=assistant] .tv-tok").all())
        + 12
    )
    assert original[:at] == branch[:at] and "original" in page.locator("#view .tv-pane").first.inner_text()
    vectors = PersonaVectors.from_pretrained(AppSettings().vectors)
    cap = cap_threshold(vectors, findings[0].trait)
    assert page.locator("#view .tv-name-line").nth(1).inner_text() == f"{findings[0].trait} capped at {cap:+.2f} SD"


def test_a_branch_is_a_finding_with_its_outcome_and_goes_on_from_there(
    visit: Callable[..., Any], url: str, findings: tuple[Finding, ...]
) -> None:
    one = next(f for f in findings if f.name == "branch-worked")
    page = visit(f"{url}&finding={one.name}")
    page.wait_for_function(f"() => document.querySelector('{VIEW} .tv-name-line')?.innerText === 'original'")
    runs = SavedRuns(RESULTS)
    branch = runs.branches[one.text]
    assert page.locator(f"{VIEW} .tv-name-line").nth(1).inner_text() == branch.change
    assert page.locator(f"{VIEW} .tv-outcome-says").inner_text() == branch.outcome.says
    page.get_by_role("button", name="Ask it yourself").click()
    page.wait_for_selector("#view .tv-tok")
    assert runs.row("branches", branch.name)["response"] in "".join(tokens_of(page)), "the branch, to go on from"
    assert page.locator("#side input[value=contaminated]").is_checked()


def test_another_token_of_a_published_reply_is_chosen_and_its_writer_goes_on_from_it(
    visit: Callable[..., Any], url: str, findings: tuple[Finding, ...], writers: dict[str, PooledModel]
) -> None:
    page = visit(url)
    page.wait_for_selector(REPLY)
    trace = Trace.from_row(SavedRuns(RESULTS).row("contaminated", findings[0].id))
    at = 12
    page.locator(f"{VIEW} .tv-pane").nth(1).locator(".tv-section[data-role=assistant] .tv-tok").nth(at).click()
    page.locator(VIEW).get_by_role("button", name="What else could it have said?").click()
    buttons = page.locator(f"{VIEW} [data-part=else-list] button")
    buttons.first.wait_for()
    lm = writers["contaminated"].monitor().lm
    listed = alternatives(lm, trace, at)
    shown = [text.replace("␣", " ") for text in page.locator(f"{VIEW} .tv-else-token").all_text_contents()]
    assert shown == [one.text for one in listed]
    other = next(i for i, one in enumerate(listed) if one.id != trace.token_ids[trace.n_prompt + at] and not one.ends)
    buttons.nth(other).click()
    page.wait_for_selector("#view .tv[data-sides='2']")
    wait_done(page)
    original, branch = (tokens_of(page, side=side) for side in (0, 1))
    chosen = trace.n_prompt + at
    assert original == list(trace.tokens) and branch[:chosen] == original[:chosen]
    assert branch[chosen] == listed[other].text != original[chosen]


def test_what_else_could_be_said_is_told_by_the_model_that_wrote_the_side(
    findings: tuple[Finding, ...], writers: dict[str, PooledModel]
) -> None:
    own, read_by_both = findings[0], replace(findings[0], name="both", text=CONTAMINATED_REPLY)
    with gr.Blocks():
        tab = FindingsTab(SavedRuns(RESULTS), (own, read_by_both))
    traces = SavedRuns(RESULTS).traces(own.id)
    for name, expected in ((own.name, ("baseline", "contaminated")), ("both", ("contaminated", "contaminated"))):
        for side, config in enumerate(expected):
            pooled, trace = tab.reply_at(writers, name, side) or (None, None)
            assert pooled is writers[config] and trace is not None
            assert trace.token_ids == traces[config].token_ids
    assert tab.reply_at(writers, own.name, 2) is None and tab.reply_at(writers, "gone", 0) is None
    lacking = {"baseline": writers["baseline"]}
    *_, (found, says) = alternatives_at({"side": 1, "at": 3}, lambda side: tab.reply_at(lacking, own.name, side))
    assert found is None and says == "The contaminated model wrote this reply, and this app does not have it."
    strangers: Any = {side: PooledModel(steady_monitor) for side in ("baseline", "contaminated")}
    *_, (found, says) = alternatives_at({"side": 1, "at": 3}, lambda side: tab.reply_at(strangers, own.name, side))
    assert found is None and "which this app does not have" in says


@pytest.mark.parametrize("where", [None, [], {}, {"side": 0}, {"side": -1, "at": 0}, {"side": "0", "at": 1}], ids=repr)
def test_no_token_is_asked_for_where_there_is_none(where: Any) -> None:
    assert list(alternatives_at(where, lambda _: pytest.fail("asked"))) == [(None, NO_TOKEN)]


def test_the_text_is_within_ten_tab_stops(visit: Callable[..., Any], url: str) -> None:
    page = visit(url)
    page.wait_for_selector(REPLY)
    for _ in range(10):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.textContent") == "Skip to the text":
            break
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement === document.querySelector('#findings-view .tv-text')")
    page.keyboard.press("End")
    assert page.locator(f"{VIEW} .tv-at").count() >= 1


@pytest.mark.parametrize("name", ["gone", None, 3, ["weights"], {"name": "weights"}], ids=repr)
def test_a_finding_that_is_not_there_is_a_sentence(findings: tuple[Finding, ...], name: Any) -> None:
    with gr.Blocks():
        tab = FindingsTab(SavedRuns(RESULTS), findings)
    assert tab.show(name)[1] == "Unknown finding. Choose one from the list."
    assert findings[0].says and tab.show(findings[0].name)[1] == ""


def test_hostile_names_and_texts_stay_text(
    visit: Callable[..., Any], serve: Callable[..., str], slow: Any, monkeypatch: Any, findings: tuple[Finding, ...]
) -> None:
    hostile = replace(findings[0], label=HOSTILE[0], says=HOSTILE[1])
    monkeypatch.setattr("persona_core.app.layout.gallery", lambda _: (hostile, *findings[1:]))
    page = visit(serve(PooledModel(lambda: slow), AppSettings()) + "#tab=findings")
    page.wait_for_selector(REPLY)
    assert says(page) == " ".join(HOSTILE[1].split())
    assert page.locator("#findings a").first.text_content() == HOSTILE[0]
    assert page.locator("#findings :is(img, script)").count() == 0
