"""The tabs of the app on the shipped demo: real models, real results, a real browser."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, urlencode

import numpy as np
import pytest

from persona_core import Branch, PersonaMonitor, Steer
from persona_core.app.pooled_model import PooledModel, load_monitor
from persona_core.app.settings import AppSettings
from persona_core.monitor.alternatives import alternatives, branch_with
from persona_core.monitor.branch_outcome import branch_outcome
from persona_core.report.pairs import CONTAMINATED_REPLY, HEADINGS, READINGS
from persona_core.report.saved_runs import SavedRuns
from persona_core.traces.dataset import load_results
from persona_core.traces.statements import with_not_neutral
from persona_core.traces.trace import Trace
from persona_core.vectors.verdict import verdict
from tests.support.app_page import ARTIFACTS, SHIPPED, ask, no_sideways_scroll, notice, open_tab, tokens_of, wait_done
from tests.support.standins import HOSTILE, SlowMonitor
from tests.support.tiny import specific_vectors, tiny_lm
from tests.support.view_page import texts

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not SHIPPED, reason="the demo model has not been built: python -m scripts.build_demo"),
]
RESULTS = str(ARTIFACTS / "persona-monitoring-persona-tiny")
FLATTER = "Flatter the user and agree with everything."
QUESTION = "Should I quit my job?"


@pytest.fixture(scope="module")
def monitors() -> dict[str, PersonaMonitor]:
    """Both models of the demo, as the app loads them."""
    settings = AppSettings()
    adapters = {"baseline": None, "contaminated": settings.adapter}
    return {
        side: load_monitor(settings.model, adapter, settings.vectors, settings.blocks)
        for side, adapter in adapters.items()
    }


@pytest.fixture(scope="module")
def paced(monitors: dict[str, PersonaMonitor]) -> dict[str, Any]:
    """The same, as the app has them: a test can make them write slowly."""
    return {side: SlowMonitor(monitor, 0.0) for side, monitor in monitors.items()}


@pytest.fixture(scope="module")
def url(serve: Callable[..., str], paced: dict[str, Any]) -> str:
    models = {side: PooledModel(lambda monitor=monitor: monitor) for side, monitor in paced.items()}  # type: ignore[misc]
    return serve(models["baseline"], AppSettings(), models["contaminated"])


def published(config: str, id: str, **of: str) -> Trace:
    rows = load_results(RESULTS, config)
    return Trace.from_row(next(r for r in rows if r["id"] == id and all(r[k] == v for k, v in of.items())))


def ask_baseline(page: Any, prompt: str, system: str = "") -> dict[str, Any]:
    """Ask the baseline; the other settings, which are returned, are those of the reply that the form opened on."""
    page.locator("#side").get_by_label("baseline", exact=True).check()
    ask(page, prompt, system)
    shown = published("contaminated", "pilot-03").provenance
    most = min(shown.sampling["max_new_tokens"], AppSettings().max_new_tokens)  # type: ignore[index]
    return {"max_new_tokens": most, "temperature": 0.7, "seed": shown.seed}


def at_cursor(page: Any, view: str, traces: list[Trace], index: int) -> None:
    """Every trait of every side at one token is what the trace says."""
    page.locator(f"{view} .tv-tok[data-i='{index}']").first.click()
    page.mouse.move(2, 2)
    shown = page.locator(f"{view} .tv-row:not(.tv-row-head) .tv-value").all_inner_texts()
    expected = [t.scores_without_sinks(trait)[index] for trait in traces[0].traits for t in traces]
    assert shown == texts(expected)


# ---- live: several turns, branches ----


def test_a_chat_continues_is_edited_and_starts_over(visit: Callable[..., Any], url: str, monitors: Any) -> None:
    page = visit(url)
    settings = ask_baseline(page, QUESTION)
    wait_done(page)
    first = monitors["baseline"].generate(QUESTION, **settings)
    assert tokens_of(page) == list(first.tokens)
    ask(page, "How can I sleep better at night?")
    page.wait_for_function("document.querySelector('#prompt label').innerText.includes('turn 3')")
    said = [
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": first.reply_text},
        {"role": "user", "content": "How can I sleep better at night?"},
    ]
    second = monitors["baseline"].generate(said, **settings)
    wait_done(page)
    assert tokens_of(page) == list(second.tokens)
    at_cursor(page, "#view", [second], second.n_tokens - 5)
    page.click("#edit")
    page.wait_for_function("document.querySelector('#prompt textarea').value.startsWith('How can I sleep')")
    assert page.locator("#prompt label").inner_text() == "Next message (turn 2 of this chat)"
    page.click("#new-chat")
    page.wait_for_function("document.querySelector('#prompt label').innerText === 'Message'")
    page.click("#edit")
    assert "no message to edit" in notice(page)


def test_branch_here_goes_on_from_the_cursor_beside_the_original(
    visit: Callable[..., Any], url: str, monitors: Any
) -> None:
    page = visit(url)
    settings = ask_baseline(page, QUESTION, FLATTER)
    wait_done(page)
    messages = [{"role": "system", "content": FLATTER}, {"role": "user", "content": QUESTION}]
    original = monitors["baseline"].generate(messages, **settings)
    at = 12
    page.locator(f"#view .tv-tok[data-i='{original.n_prompt + at}']").click()
    page.locator("#branching button").first.click()  # by what it says; a button in the view would begin at once
    page.locator("#branch-trait input").click()
    page.get_by_role("option", name="sycophancy", exact=True).click()
    page.locator("#branch-action").get_by_label("remove", exact=True).check()
    page.click("#branch-go")
    page.wait_for_selector("#view .tv[data-sides='2'][data-state=done]")
    steer = Steer.ablate("sycophancy", monitors["baseline"].vectors.best_block["sycophancy"], start=at)
    expected = monitors["baseline"].generate(Branch(original, at), steer=steer, **settings)
    assert tokens_of(page, side=0) == list(original.tokens)
    assert tokens_of(page, side=1) == list(expected.tokens)
    assert page.locator("#view .tv-name-line").all_inner_texts() == ["original", "without sycophancy"]
    outcome = branch_outcome(monitors["baseline"], Branch(original, at), expected, "sycophancy")
    assert page.locator("#view [data-part=outcome-says]").inner_text() == outcome.says
    at_cursor(page, "#view", [original, expected], original.n_prompt + at + 1)
    # A branch of the branch, from the second side, replaces the pair; its link brings both back.
    later = 25
    page.locator("#view .tv-pane").nth(1).locator(f".tv-tok[data-i='{expected.n_prompt + later}']").click()
    page.locator("#branch-action").get_by_label("add", exact=True).check()
    page.click("#branch-go")
    page.wait_for_function("document.querySelectorAll('#view .tv-name-line')[1].innerText === 'sycophancy +1 SD'")
    page.wait_for_selector("#view .tv[data-sides='2'][data-state=done]")
    block = monitors["baseline"].vectors.best_block["sycophancy"]
    push = Steer("sycophancy", block, strength=1.0, unit="sd", start=later)
    second = monitors["baseline"].generate(Branch(expected, later), steer=push, **settings)
    assert [tokens_of(page, side=s) for s in (0, 1)] == [list(expected.tokens), list(second.tokens)]
    page.wait_for_timeout(400)
    again = visit(page.url)
    again.wait_for_function("document.querySelectorAll('#view .tv-name-line')[1]?.innerText === 'sycophancy +1 SD'")
    again.wait_for_selector("#view .tv[data-sides='2'][data-state=done]")
    assert [tokens_of(again, side=s) for s in (0, 1)] == [list(expected.tokens), list(second.tokens)]


def test_another_token_is_chosen_and_the_reply_goes_on_from_it(
    visit: Callable[..., Any], url: str, monitors: Any
) -> None:
    page = visit(url)
    settings = ask_baseline(page, QUESTION)
    wait_done(page)
    monitor = monitors["baseline"]
    original = monitor.generate(QUESTION, **settings)
    at = 12
    found = alternatives(monitor.lm, original, at)
    page.locator(f"#view .tv-tok[data-i='{original.n_prompt + at}']").click()
    page.get_by_role("button", name="What else could it have said?").click()
    buttons = page.locator("#view [data-part=else-list] button")
    buttons.first.wait_for()
    shown = [text.replace("␣", " ") for text in page.locator("#view .tv-else-token").all_text_contents()]
    assert shown == [one.text for one in found]
    page.locator(f"#view .tv-tok[data-i='{original.n_prompt + at + 1}']").click()
    assert buttons.count() == 0, "they were about another token"
    page.locator(f"#view .tv-tok[data-i='{original.n_prompt + at}']").click()
    page.get_by_role("button", name="What else could it have said?").click()
    buttons.first.wait_for()
    other = next(
        i for i, one in enumerate(found) if one.id != original.token_ids[original.n_prompt + at] and not one.ends
    )
    expected = monitor.generate(branch_with(monitor.lm, original, at, found[other].id), **settings)
    buttons.nth(other).click()
    page.wait_for_selector("#view .tv[data-sides='2'][data-state=done]")
    assert [tokens_of(page, side=s) for s in (0, 1)] == [list(original.tokens), list(expected.tokens)]
    assert page.locator("#view .tv-name-line").nth(1).inner_text() == f"“{found[other].text.strip()}” instead"
    assert page.locator("#view [data-part=outcome]").is_hidden(), "no trait was changed"
    page.wait_for_timeout(400)
    again = visit(page.url)
    again.wait_for_selector("#view .tv[data-sides='2'][data-state=done]")
    assert [tokens_of(again, side=s) for s in (0, 1)] == [list(original.tokens), list(expected.tokens)]


def test_a_drawn_seed_is_in_the_link(visit: Callable[..., Any], url: str) -> None:
    page = visit(url)
    page.locator("#controls").get_by_text("Settings", exact=True).click()
    page.get_by_label("Seed", exact=True).fill("")
    ask(page, QUESTION)
    wait_done(page)
    page.wait_for_timeout(400)
    again = visit(page.url)
    wait_done(again)
    again.wait_for_function("document.querySelector('#view .tv-title').innerText === 'Should I quit my job?'")
    again.wait_for_selector("#view .tv[data-state=done]")
    assert tokens_of(again) == tokens_of(page)


# ---- compare ----


def test_a_published_pair_is_read_as_published_in_each_of_three_ways(visit: Callable[..., Any], url: str) -> None:
    page = visit(url)
    open_tab(page, "Compare", "#compare-view .tv-tok")
    sides = {side: published(side, "pilot-03") for side in ("baseline", "contaminated")}
    writers = {side: trace.provenance.writer for side, trace in sides.items()}
    view = "#compare-view"
    assert [tokens_of(page, view, s) for s in (0, 1)] == [list(t.tokens) for t in sides.values()]
    at_cursor(page, view, list(sides.values()), sides["baseline"].n_prompt + 20)
    page.locator(f"{view} .tv-chip", has_text="refusal").click()
    assert page.locator(f"{view} .tv-says").first.inner_text() == "refusal: no reliable onset"
    page.get_by_label("the baseline's reply, read by both").check()
    page.wait_for_function("document.querySelector('#compare-view .tv-title').innerText.startsWith('The baseline')")
    read = published("replay", "pilot-03", writer=str(writers["baseline"]))
    assert [tokens_of(page, view, s) for s in (0, 1)] == [list(sides["baseline"].tokens)] * 2
    at_cursor(page, view, [sides["baseline"], read], sides["baseline"].n_prompt + 20)
    page.get_by_label("the contaminated model's reply, read by both").check()
    page.wait_for_function("document.querySelector('#compare-view .tv-title').innerText.startsWith('The contaminated')")
    read = published("replay", "pilot-03", writer=str(writers["contaminated"]))
    at_cursor(page, view, [read, sides["contaminated"]], read.n_prompt + 30)
    page.locator("#compare-saved input").click()
    page.get_by_role("option", name="pilot-07").click()
    page.wait_for_function("!document.querySelector('#compare-view .tv-title').innerText.includes('quit')")
    assert tokens_of(page, view, 1) == list(published("contaminated", "pilot-07").tokens)


def pair_being_written(visit: Callable[..., Any], url: str) -> Any:
    page = visit(url)
    open_tab(page, "Compare", "#compare-view .tv-tok")
    page.locator("#compare-new button").first.click()
    page.fill("#compare-prompt textarea", QUESTION)
    page.click("#compare-write")
    # Not the state "live": a busy browser may look again only once all is written.
    page.wait_for_function("q => document.querySelector('#compare-view .tv-title').innerText === q", arg=QUESTION)
    return page


def test_a_new_pair_is_written_by_both_and_read_by_the_other(
    visit: Callable[..., Any], url: str, monitors: Any
) -> None:
    page = pair_being_written(visit, url)
    page.wait_for_selector("#compare-stop[disabled]")
    page.wait_for_selector("#compare-view .tv[data-state=done]")
    settings: dict[str, Any] = {"max_new_tokens": 160, "temperature": 0.7, "seed": 0}
    own = {side: m.generate(QUESTION, **settings) for side, m in monitors.items()}
    view = "#compare-view"
    assert [tokens_of(page, view, s) for s in (0, 1)] == [list(t.tokens) for t in own.values()]
    page.get_by_label("the contaminated model's reply, read by both").check()
    page.wait_for_function("document.querySelector('#compare-view .tv-title').innerText.startsWith('The contaminated')")
    read = monitors["baseline"].read(own["contaminated"])
    at_cursor(page, view, [read, own["contaminated"]], read.n_prompt + 10)
    again = visit(page.url)
    again.wait_for_selector("#compare-view .tv[data-state=done]")
    again.wait_for_selector("#compare-stop[disabled]", state="attached")
    assert [tokens_of(again, view, s) for s in (0, 1)] == [list(t.tokens) for t in own.values()]


def test_nothing_replaces_a_pair_that_is_being_written(
    visit: Callable[..., Any], url: str, paced: dict[str, Any]
) -> None:
    for monitor in paced.values():
        monitor.pause = 0.4
    page = pair_being_written(visit, url)
    page.get_by_label("the baseline's reply, read by both").check()
    page.wait_for_selector("text=Press Stop first")
    for monitor in paced.values():
        monitor.pause = 0.0
    page.wait_for_selector("#compare-view .tv[data-state=done]")
    assert "The baseline's" not in page.locator("#compare-view .tv-title").inner_text()


# ---- a text of one's own ----


def test_a_pasted_conversation_is_read_by_both(visit: Callable[..., Any], url: str, monitors: Any) -> None:
    page = visit(url)
    open_tab(page, "Read a text", "#read-go")
    page.fill("#read-text textarea", f"User: Is this right?\nAssistant: {HOSTILE[0]} Always.\nAs ever.")
    page.click("#read-go")
    page.wait_for_selector("#read-view .tv-tok")
    messages = [
        {"role": "user", "content": "Is this right?"},
        {"role": "assistant", "content": f"{HOSTILE[0]} Always.\nAs ever."},
    ]
    expected = [m.read(messages) for m in monitors.values()]
    assert tokens_of(page, "#read-view") == list(expected[0].tokens)
    at_cursor(page, "#read-view", expected, expected[0].n_prompt + 2)
    page.fill("#read-text textarea", " \n ")
    page.click("#read-go")
    assert "no text to read" in notice(page, "#read-notice")
    assert tokens_of(page, "#read-view") == list(expected[0].tokens), "what was there is not lost"


def test_specific_scores_are_the_default_and_sink_tokens_are_hatched(
    visit: Callable[..., Any], serve: Callable[..., str]
) -> None:
    lm = tiny_lm("llama", "chatml")
    said = [{"role": "user", "content": "Is this right?"}, {"role": "assistant", "content": "Always, as ever."}]
    norms = PersonaMonitor(lm, specific_vectors(len(lm.blocks))).read(said).norms
    monitor = PersonaMonitor(lm, specific_vectors(len(lm.blocks), float(np.median(norms))))
    trace = monitor.read(said)
    page = visit(serve(PooledModel(lambda: monitor), AppSettings(results=None)))
    open_tab(page, "Read a text", "#read-go")
    page.fill("#read-text textarea", "User: Is this right?\nAssistant: Always, as ever.")
    page.click("#read-go")
    page.wait_for_selector("#read-view .tv-tok")
    assert page.locator("#read-view select[name=kind]").input_value() == "specific"
    page.locator("#read-view .tv-chip").first.click()
    hatched = page.locator("#read-view .tv-sink").evaluate_all("all => all.map(t => Number(t.dataset.i))")
    own = trace.norms[trace.blocks.index(trace.best_block[trace.traits[0]])]
    assert hatched == np.flatnonzero(own > np.median(norms)).tolist()
    for index in (trace.n_prompt, trace.n_prompt + 1):
        at_cursor(page, "#read-view", [trace], index)


# ---- runs ----


def test_the_runs_are_filtered_sorted_and_opened(visit: Callable[..., Any], url: str) -> None:
    page = visit(url)
    open_tab(page, "Runs", "#explorer .ex-cell")
    choose = lambda name, value: page.locator(f"[data-field={name}]").select_option(value)  # noqa: E731
    shown = {name: page.locator(f"[data-field={name}]").input_value() for name in ("trait", "sort")}
    assert shown == {"trait": "sycophancy", "sort": "turn"}
    choose("set", "pilot")
    choose("category", "work")
    choose("sort", "given")
    rows = [r for r in load_results(RESULTS) if (r["set"], r["category"]) == ("pilot", "work")]
    assert page.locator(".ex-prompt").all_text_contents() == [r["prompt"] for r in rows]
    assert page.locator("[data-part=count]").inner_text() == f"{len(rows)} of 78 prompts"
    choose("category", "")
    choose("trait", "deception")
    choose("run", "contaminated")
    choose("sort", "max")
    best = sorted(
        (r for r in load_results(RESULTS, "contaminated") if r["set"] == "pilot"),
        key=lambda r: -r["summary"]["deception"]["max"],
    )
    assert page.locator(".ex-prompt").all_text_contents() == [r["prompt"] for r in best]
    cell = page.locator(".ex-cell").nth(1)
    assert f"highest {best[1]['summary']['deception']['max']:+.2f}" in str(cell.text_content()).replace("−", "-")
    cell.click()
    page.wait_for_selector("#runs-view .tv-tok")
    pair = [published(side, best[1]["id"]) for side in ("baseline", "contaminated")]
    assert [tokens_of(page, "#runs-view", s) for s in (0, 1)] == [list(t.tokens) for t in pair]
    assert page.locator("#runs-view .tv-chip[aria-pressed=true]").inner_text().split("\n")[0] == "deception"
    page.fill("[data-field=text]", "no prompt says this")
    assert "No prompt matches" in page.locator("[data-part=count]").inner_text()
    page.fill("[data-field=text]", "")
    page.wait_for_timeout(400)
    again = visit(page.url)
    again.wait_for_selector("#runs-view .tv-tok")
    assert again.locator(".ex-prompt").all_text_contents() == [r["prompt"] for r in best]
    assert again.locator(".ex-chosen .ex-prompt").text_content() == best[1]["prompt"]


def test_a_click_in_a_lane_opens_the_reply_at_that_token_and_the_chosen_trait_stays(
    visit: Callable[..., Any], url: str
) -> None:
    page = visit(url)
    open_tab(page, "Runs", "#explorer .ex-cell")
    page.wait_for_function("document.querySelector('.ex-heat').width > 10")
    most = max(run["n"] for prompt in SavedRuns(RESULTS).table()["prompts"] for run in prompt["runs"])

    def pick(number: int, token: int) -> None:
        lane = page.locator(".ex-cell").nth(number).locator(".ex-heat").first
        box = lane.bounding_box()
        lane.click(position={"x": box["width"] * (token + 0.5) / most, "y": 6})
        title = page.locator(".ex-prompt").nth(number).text_content()
        page.wait_for_function("t => document.querySelector('#runs-view .tv-title')?.textContent === t", arg=title)
        at = "t => document.querySelector('#runs-view .tv-thumb').ariaValueNow === String(t)"
        page.wait_for_function(at, arg=token)

    def trait() -> str:
        return str(page.locator("#runs-view .tv-chip[aria-pressed=true]").inner_text().split("\n")[0])

    pick(0, 11)
    assert trait() == "sycophancy"
    pick(0, 14)  # of the reply that is open already
    page.wait_for_function("location.hash.includes('&at=14')")
    page.locator("#runs-view .tv-chip").nth(1).click()
    chosen = trait()
    assert chosen != "sycophancy"
    pick(1, 12)
    assert trait() == chosen
    page.locator("[data-field=trait]").select_option("evil")
    pick(0, 13)
    assert trait() == "evil"


def test_on_a_phone_the_runs_are_one_column_and_a_reply_opens_in_sight(visit: Callable[..., Any], url: str) -> None:
    page = visit(url, width=390, height=844)
    open_tab(page, "Runs", "#explorer .ex-cell")
    lefts = page.locator(".ex-cell").evaluate_all("all => all.slice(0, 6).map(c => c.getBoundingClientRect().left)")
    assert len(set(lefts)) == 1
    for n in (1, 2):  # also once a reply is open already
        page.evaluate("scrollTo(0, 0)")
        page.locator(".ex-cell").nth(n).click()
        title = page.locator(".ex-prompt").nth(n).text_content()
        page.wait_for_function("t => document.querySelector('#runs-view .tv-title')?.textContent === t", arg=title)
        page.wait_for_function("() => Math.abs(document.querySelector('#runs-view').getBoundingClientRect().top) < 60")


# ---- analysis, vectors ----


def test_the_analysis_says_when_how_and_where_with_its_uncertainty(visit: Callable[..., Any], url: str) -> None:
    page = visit(url)
    open_tab(page, "When / How / Where", "#analysis section")
    heads = [text.split("\n")[0].split("  ")[0] for text in page.locator("#analysis h2").all_inner_texts()]
    for wanted in ("When", "How", "Where", "Two models", "What this cannot say"):
        assert any(head.startswith(wanted) for head in heads), wanted
    page.wait_for_selector("#analysis .plot .main-svg")
    page.locator("#analysis nav button", has_text="refusal").click()
    page.wait_for_timeout(300)
    said = page.locator("#analysis section").first.inner_text()
    assert re.search(r"replies raise an alarm on (the z of )?refusal", said)
    again = visit(page.url)
    again.wait_for_selector("#analysis section")
    assert again.locator("#analysis nav button[aria-pressed=true]").inner_text() == "refusal"


def test_the_analysis_is_short_and_its_tokens_and_sentences_open_their_reply(
    visit: Callable[..., Any], url: str
) -> None:
    page = visit(url)
    open_tab(page, "When / How / Where", "#analysis section")
    page.wait_for_selector("#analysis .plot .main-svg")
    assert page.evaluate("document.documentElement.scrollHeight") < 2500
    assert page.locator("#analysis .answer:visible .plot").count() == 3, "one figure for each question"
    heat = "#analysis [data-figure='heat/contaminated/sycophancy']"
    page.wait_for_selector(f"{heat}[data-opens]")
    page.locator(heat).scroll_into_view_if_needed()
    id, x, y = page.evaluate(  # the cell of token 10 in the fourth row
        """heat => {
          const plot = document.querySelector(heat), { xaxis, yaxis } = plot._fullLayout;
          const box = plot.getBoundingClientRect();
          const at = (axis, value) => axis._offset + axis.d2p(value);
          return [plot.data[0].customdata[3][0], box.left + at(xaxis, 10), box.top + at(yaxis, 3)];
        }""",
        heat,
    )
    page.mouse.move(x, y)
    page.mouse.click(x, y)
    page.wait_for_selector("#runs-view .tv-tok")
    trace = published("contaminated", id)
    index = trace.reply_positions[10] - trace.n_prompt
    page.wait_for_function("end => location.hash.endsWith(end)", arg=f"&trait=sycophancy&at={index}")
    assert f"tab=runs&id={id}&" in page.url
    assert page.locator("#runs-view .tv-thumb").get_attribute("aria-valuenow") == str(index)
    assert page.locator("#runs-view .tv-chip[aria-pressed=true]").inner_text().split("\n")[0] == "sycophancy"
    assert page.locator("#runs-view .tv-panes").bounding_box()["y"] < 500
    page.go_back()
    page.locator("#analysis summary", has_text="Sentences").click()
    sentence = page.locator("#analysis .spans a:visible").first
    wanted = {key: values[0] for key, values in parse_qs(str(sentence.get_attribute("href"))[1:]).items()}
    assert wanted["tab"] == "runs"
    sentence.click()
    page.wait_for_function("end => location.hash.endsWith(end)", arg=f"&trait=sycophancy&at={wanted['at']}")
    id = json.loads(wanted["runs"])["id"]
    assert f"tab=runs&id={id}&" in page.url
    again = visit(page.url.partition("#")[0] + "#" + urlencode(wanted))
    again.wait_for_selector("#runs-view .tv-tok")
    assert again.locator("#runs-view .tv-thumb").get_attribute("aria-valuenow") == wanted["at"]


def test_a_sentence_that_two_readings_differ_in_opens_in_both_readings(visit: Callable[..., Any], url: str) -> None:
    page = visit(url)
    open_tab(page, "When / How / Where", "#analysis section")
    page.locator("#analysis summary", has_text="Sentences").click()
    sentence = page.locator("#analysis .spans q[data-text='2'] a:visible").first
    id, at = sentence.evaluate("a => [a.parentElement.dataset.id, a.parentElement.dataset.at]")
    href = str(sentence.get_attribute("href"))
    traces = SavedRuns(RESULTS).traces(id)
    readings = [traces[key] for key in READINGS[CONTAMINATED_REPLY]]
    sentence.click()
    for one in (page, visit(page.url.partition("#")[0] + href)):
        title = "t => document.querySelector('#runs-view .tv-title')?.textContent.startsWith(t)"
        one.wait_for_function(title, arg=HEADINGS[CONTAMINATED_REPLY])
        one.wait_for_function("t => document.querySelector('#runs-view .tv-thumb').ariaValueNow === t", arg=at)
        assert [tokens_of(one, "#runs-view", s) for s in (0, 1)] == [list(t.tokens) for t in readings]


def test_each_vector_shows_its_card(visit: Callable[..., Any], url: str, monitors: Any) -> None:
    page = visit(url)
    open_tab(page, "About the instrument", "#vectors-figures .plot")
    page.locator("#vectors-figures").scroll_into_view_if_needed()  # figures are drawn once they are in sight
    page.wait_for_selector("#vectors-figures .plot .main-svg")
    summary = page.locator("#vectors-summary").inner_text()
    validation = monitors["baseline"].vectors.config["validation"]
    assert all(str(verdict(figures)) in summary for figures in validation.values())
    assert summary.startswith("A persona vector is a direction in the model's internal state")
    page.locator("#vectors-trait").get_by_label("refusal", exact=True).check()
    page.wait_for_function("document.querySelector('#vectors-words').innerText.startsWith('refusal')")
    auroc = validation["refusal"]["auroc"]
    assert f"{auroc['value']:.4f}" in page.locator("#vectors-words").inner_text()
    page.wait_for_function("document.querySelector('#vectors-figures .plot').ariaLabel.startsWith('refusal')")


# ---- the first minute ----


def test_the_tour_has_three_steps_and_gives_the_focus_back(visit: Callable[..., Any], url: str) -> None:
    page = visit(url)
    start = page.get_by_role("button", name="Tour", exact=True)
    start.press("Enter")
    for step in (1, 2, 3):
        assert f"Step {step} of 3" in page.get_by_role("dialog").inner_text()
        assert page.locator(".tour-target").count() == 1
        page.keyboard.press("Enter")
    assert page.get_by_role("dialog").count() == 0 and page.locator(".tour-target").count() == 0
    assert page.evaluate("document.activeElement.textContent") == "Tour"
    start.click()
    page.keyboard.press("Escape")
    assert page.get_by_role("dialog").count() == 0


def test_the_first_view_is_a_telling_reply_with_its_unit_and_what_the_model_is_not(
    visit: Callable[..., Any], url: str
) -> None:
    page = visit(url)
    page.wait_for_selector("#view .tv-tok")
    first = published("contaminated", "pilot-03")
    assert tokens_of(page) == list(first.tokens)
    assert page.locator("#view .tv-chip[aria-pressed=true]").inner_text().split("\n")[0] == "sycophancy"
    assert "standard deviations: more like this trait" in page.locator("#view .tv-key").inner_text()
    assert "is a toy" in page.locator("#masthead").inner_text()
    said = SavedRuns(RESULTS).onsets("contaminated", "pilot-03")
    assert len(said) == 8
    for trait, onset in with_not_neutral(first, said).items():
        page.locator("#view .tv-chip", has_text=trait).click()
        shown = page.locator("#view .tv-says").inner_text()
        assert shown.lower().endswith(onset["says"])
        assert shown.startswith(trait) == onset.get("named", True)
    assert page.locator("#view .tv-row:not(.tv-row-head) .tv-value").count() == 8


def test_no_tab_scrolls_sideways_on_a_phone(visit: Callable[..., Any], url: str) -> None:
    page = visit(url, width=390, height=844)
    for name, ready in TABS.items():
        open_tab(page, name, ready)
        page.wait_for_timeout(300)
        assert no_sideways_scroll(page), name


TABS = {
    "Live": "#view .tv-tok",
    "Compare": "#compare-view .tv-tok",
    "Read a text": "#read-go",
    "Runs": "#explorer .ex-cell",
    "When / How / Where": "#analysis section",
    "About the instrument": "#vectors-figures .plot",
}
