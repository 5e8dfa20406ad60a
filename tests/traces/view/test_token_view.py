"""The token view in a real browser."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from persona_core.traces.view.payload import pair_payload, trace_payload
from persona_core.traces.view.standalone import standalone_page
from tests.support.standins import FIRST, HOSTILE, TRAITS, Payload, cut, make_payload, make_trace, words
from tests.support.view_page import (
    bars,
    cursor,
    lines,
    position_of_strongest,
    scores,
    shown_tokens,
    strip,
    token,
    update,
)

pytestmark = pytest.mark.browser


# ---- one cursor -------------------------------------------------------------------------------------------------


def test_a_spike_lights_the_same_token_everywhere(show: Callable[..., Any]) -> None:
    spike = FIRST + 17
    payload = make_payload(words(30), scores={"flattery": {spike: 7.8}, "malice": {spike: -4.0}})
    page = show(payload)
    n = FIRST + 30
    assert page.locator(".tv-chip[aria-pressed=true]").inner_text() == "flattery"
    assert cursor(page) == spike
    strengths = page.locator(".tv-tok").evaluate_all("all => all.map(t => t.style.getPropertyValue('--a'))")
    assert strengths[spike] == "0.975" and {*strengths[:spike], *strengths[spike + 1 :]} == {"0.013"}
    assert bars(page) == ["+0.10", "+7.80", "−4.00"]
    assert scores(page) == ["+7.80"]
    fills = page.locator(".tv-fill").evaluate_all("all => all.map(f => f.style.transform)")
    assert fills == ["scaleX(0.0125)", "scaleX(0.975)", "scaleX(-0.5)"]
    for name in ("flattery", "malice"):
        assert position_of_strongest(strip(page, "0", name), n) == spike
    assert max(strip(page, "0", "deception")) < 10, "a trait without the spike stays pale there"
    assert lines(page) == {"flattery": [7.8 if i == spike else 0.1 for i in range(n)]}


def test_hover_click_keys_slider_and_chart_move_one_cursor(show: Callable[..., Any]) -> None:
    page = show(make_payload(words(30)))
    n = FIRST + 30
    token(page, 12).hover()
    assert cursor(page) == 12
    token(page, 15).click()
    token(page, 20).hover()
    assert cursor(page) == 20
    page.mouse.move(2, 2)
    assert cursor(page) == 15, "the cursor goes back to the pinned token"
    for key, expected in (("ArrowRight", 16), ("ArrowLeft", 15), ("End", n - 1), ("Home", 0)):
        page.locator(".tv-text").press(key)
        assert cursor(page) == expected
    for key, expected in (("ArrowUp", 1), ("PageUp", 11), ("PageDown", 1), ("End", n - 1)):
        page.locator("[role=slider]").press(key)
        assert cursor(page) == expected
    area = page.locator(".tv-area").bounding_box()
    page.mouse.click(area["x"] + area["width"] * 9.5 / n, area["y"] + 40)
    page.mouse.move(2, 2)
    assert cursor(page) == 9
    page.locator("[data-part=pin]").click()
    assert page.locator("[data-part=pin]").inner_text() == "Pin"


def test_a_drag_sends_nothing_and_screen_readers_hear_its_end(show: Callable[..., Any]) -> None:
    page = show(make_payload(words(200)))
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    area = page.locator(".tv-track").bounding_box()
    y = area["y"] + area["height"] / 2
    page.mouse.move(area["x"] + 5, y)
    page.mouse.down()
    seen = set()
    for step in range(40):
        page.mouse.move(area["x"] + area["width"] * step / 40, y)
        seen.add(cursor(page))
    page.mouse.move(area["x"] + area["width"] * 2, y)
    page.mouse.up()
    assert len(seen) == 40
    assert cursor(page) == FIRST + 199
    assert requests == []
    page.wait_for_function("document.querySelector('.tv-live').textContent.includes('Token 199:')")
    slider = page.locator("[role=slider]")
    assert [slider.get_attribute(f"aria-value{end}") for end in ("min", "now", "max")] == ["-8", "199", "199"]
    assert "deception: ␣word199 +0.10" in slider.get_attribute("aria-valuetext")


def test_a_step_of_the_slider_touches_no_more_in_a_long_trace(show: Callable[..., Any]) -> None:
    """Elements that change while the slider is dragged. (benchmarks/page.py measures the time.)"""
    traits = [f"trait {i}" for i in range(8)]
    page = show(make_payload(words(200 - FIRST), traits=traits))

    def changes() -> int:
        """Of 20 steps over as many tokens."""
        page.evaluate(
            """() => {
              window.changed = 0;
              window.watch = new MutationObserver((list) => (changed += list.length));
              watch.observe(document.body, { attributes: true, childList: true, characterData: true, subtree: true });
            }"""
        )
        slider = page.locator("[role=slider]")
        slider.press("Home")
        for _ in range(20):
            slider.press("ArrowRight")
        return int(page.evaluate("() => { watch.takeRecords(); watch.disconnect(); return changed; }"))

    short = changes()
    update(page, make_payload(words(2000 - FIRST), traits=traits))
    assert page.locator(".tv-tok").count() == 2000
    assert 0 < changes() <= 1.5 * short


# ---- text -------------------------------------------------------------------------------------------------------


def assert_literal(page: Any, payload: Payload) -> None:
    assert shown_tokens(page) == payload["sides"][0]["tokens"]
    assert page.locator(".tv script, .tv img").count() == 0


def test_hostile_text_shows_literally(show: Callable[..., Any]) -> None:
    names = [HOSTILE[1], HOSTILE[2], "__proto__"]
    onsets = {HOSTILE[1]: {"onset": 1, "low": 0, "high": 2, "says": HOSTILE[1]}}
    payload = make_payload(
        HOSTILE, traits=names, title=HOSTILE[1], name=HOSTILE[1], meta={HOSTILE[1]: HOSTILE[0]}, onsets=onsets
    )
    page = show(pair_payload(payload, payload))
    assert_literal(page, payload)
    assert page.locator(".tv-title").inner_text() == HOSTILE[1]
    assert page.locator(".tv-chip bdi").all_inner_texts() == names
    assert page.locator(".tv-name-line").all_inner_texts() == [HOSTILE[1]] * 2
    assert page.locator(".tv-says").first.inner_text() == f"{HOSTILE[1]}: {HOSTILE[1]}"
    token(page, FIRST).click()
    assert page.locator(".tv-token").first.inner_text() == HOSTILE[0]


def test_whitespace_is_exact_visible_and_clickable(show: Callable[..., Any]) -> None:
    reply = ["One", " two", ".\n\n", "\t", "tabbed", "\n", "   ", "spaced", "", "é", "un", "believ", "able", "\r"]
    payload = make_payload(reply)
    page = show(payload)
    first = FIRST
    assert_literal(page, payload)
    box = {i: token(page, first + i).bounding_box() for i in range(len(reply))}
    assert box[4]["y"] > box[0]["y"] + 40, "two line breaks"
    assert box[6]["y"] > box[4]["y"] + 10, "one more"
    assert box[4]["x"] > box[0]["x"] + 10, "behind a tab"
    for left, right in ((10, 11), (11, 12), (0, 1), (8, 9)):
        gap = box[right]["x"] - (box[left]["x"] + box[left]["width"])
        assert abs(gap) < 0.6, "word pieces touch"
    for i in (2, 3, 5, 6, 8, 13):
        assert box[i]["width"] > 3 and box[i]["height"] > 3
        at = token(page, first + i).evaluate("t => { const r = t.getClientRects()[0]; return [r.x + 2, r.y + 6]; }")
        page.mouse.click(*at)
        assert cursor(page) == first + i
    marks = page.locator(".tv-section[data-role=assistant] .tv-symbol").evaluate_all(
        "all => all.map(m => m.dataset.symbol)"
    )
    assert marks == ["↵", "↵", "⇥", "↵", "␍"]


def test_emoji_right_to_left_and_direction_marks(show: Callable[..., Any]) -> None:
    family = ["👩", "\u200d", "👧"]  # one glyph over three tokens
    reply = ["a", *family, " ", "\u202e", "ev", "il", " b", "\n", "שלום", " ", "עולם"]
    payload = make_payload(reply)
    page = show(payload)
    assert_literal(page, payload)
    first = FIRST
    x = {i: token(page, first + i).bounding_box()["x"] for i in range(len(reply))}
    assert x[0] < x[1] < x[5] < x[6] < x[8], "an override turns nothing around"
    assert x[10] > x[12], "Hebrew reads from the right"
    widths = [token(page, first + i).bounding_box()["width"] for i in (1, 2, 3)]
    unbroken = page.evaluate(
        """() => {
          const probe = document.createElement('span');
          probe.textContent = '👩\u200d👧';
          document.querySelector('[data-role=assistant] .tv-what').append('\\n', probe);
          return probe.getBoundingClientRect().width;
        }"""
    )
    assert abs(sum(widths) - unbroken) < 2, "joined as in unbroken text"


def test_special_tokens_roles_and_missing_scores(show: Callable[..., Any]) -> None:
    page = show(make_payload(["Yes", "."], alignment="before"))
    sections = page.locator(".tv-section").evaluate_all("all => all.map(s => s.dataset.role)")
    assert sections == ["template", "user", "template", "assistant"]
    assert page.locator(".tv-who").all_inner_texts() == ["", "USER", "", "ASSISTANT"]
    assert page.locator(".tv-special").all_inner_texts() == ["<|user|>", "<|end|>", "<|bot|>"]
    page.locator("[role=slider]").press("Home")
    assert bars(page) == ["–"] * 3 and scores(page) == ["–"]
    assert page.locator(".tv-run").all_inner_texts() == ["", "user", "", "assistant"]


def test_sign_and_strength_have_a_second_channel(show: Callable[..., Any]) -> None:
    strengths = dict(enumerate([8.0, 4.0, -8.0, 0.0], FIRST))
    page = show(make_payload(words(4), scores={"deception": strengths}))
    page.locator(".tv-chip").first.click()
    lines = [
        float(re.findall(r"(-?[\d.]+)px", token(page, FIRST + i).evaluate("t => getComputedStyle(t).boxShadow"))[1])
        for i in range(4)
    ]
    assert lines[0] < lines[1] < 0 < lines[2] and lines[3] == 0  # below, thinner, above, none


CONTRAST = """(index) => {
  const rgba = (text) => {
    const canvas = document.createElement('canvas');
    canvas.width = canvas.height = 1;
    const pen = canvas.getContext('2d');
    pen.fillStyle = getComputedStyle(document.querySelector('.tv')).backgroundColor;
    pen.fillRect(0, 0, 1, 1);
    pen.fillStyle = text;
    pen.fillRect(0, 0, 1, 1);
    return [...pen.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const light = (c) => c.map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const style = getComputedStyle(document.querySelector(`.tv-tok[data-i='${index}']`));
  const [a, b] = [light(rgba(style.color)), light(rgba(style.backgroundColor))];
  return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
}"""


def test_text_is_legible_at_every_strength(show: Callable[..., Any]) -> None:
    levels = [-8.0, 8.0, 8.0, 8.0, 8.0, -8.0, 8.0, -8.0, *range(-8, 9)]
    page = show(make_payload(words(17), scores={"deception": levels}))
    page.locator(".tv-chip").first.click()
    for theme in ("", "dark"):
        page.evaluate("theme => { document.body.className = theme; }", theme)
        contrasts = [page.evaluate(CONTRAST, i) for i in range(len(levels))]
        assert min(contrasts) >= 4.5, (theme, contrasts)  # WCAG AA


def test_nothing_overflows(show: Callable[..., Any]) -> None:
    traits = ["x" * 80, *TRAITS[1:]]
    long = make_payload(["Look", " at", " " + "w" * 10_000, " there"], traits=traits, title="t" * 400, name="n" * 90)
    page = show(long)
    for payload in (long, pair_payload(long, long)):
        update(page, payload)
        for width in (390, 768, 1440):
            page.set_viewport_size({"width": width, "height": 900})
            page.wait_for_function("width => document.documentElement.scrollWidth <= width", arg=width)  # once redrawn


def test_each_bar_shows_its_name_and_value_whole(show: Callable[..., Any]) -> None:
    traits = ["manipulativeness", *TRAITS[1:]]
    page = show(make_payload(words(3), traits=traits, scores={traits[0]: [-10.98] * 11}))
    for width in (390, 700, 1000):
        page.set_viewport_size({"width": width, "height": 900})
        parts = page.locator(".tv-name, .tv-value")
        cut_off = parts.evaluate_all("all => all.filter(e => e.scrollWidth > e.clientWidth)")
        assert cut_off == [] and bars(page)[0] == "−10.98"
    assert page.locator(".tv-row").first.get_attribute("title") == (
        "manipulativeness, read at block 4; standard deviations above neutral"
    )
    ends = page.locator(".tv-fill").evaluate_all("all => all.map(f => getComputedStyle(f).clipPath !== 'none')")
    assert ends == [True, False, False], "only the first is beyond the scale"


def test_text_fades_while_more_follows(show: Callable[..., Any]) -> None:
    page = show(make_payload(words(400), scores={"malice": {FIRST + 200: 4.0}}))
    page.wait_for_selector(".tv-text.tv-more")
    page.wait_for_function("document.querySelector('.tv-text').scrollTop > 0")
    gap = "document.querySelector('.tv-text').getBoundingClientRect().bottom - "
    gap += "document.querySelector('.tv-at').getBoundingClientRect().bottom"
    assert page.evaluate(gap) > 44, "the cursor is clear of the fade"
    page.locator("[role=slider]").press("End")
    page.wait_for_selector(".tv-text:not(.tv-more)")
    update(page, make_payload(words(2)))
    assert page.locator(".tv-more").count() == 0


def test_the_legend_and_the_facts_under_the_title(show: Callable[..., Any]) -> None:
    page = show(make_payload(words(3), meta={"reader": "tiny", "writer": "tiny", "seed": "0"}))
    assert page.locator(".tv-meta").inner_text() == "model tiny · seed 0"
    assert "standard deviations above neutral" in page.locator(".tv-legend").inner_text()
    assert "Grey band: ±2" in page.locator(".tv-legend").inner_text()
    update(page, make_payload(words(3), kind="cosine", meta={"reader": "tiny", "writer": "big"}))
    assert page.locator(".tv-meta").inner_text() == "reader tiny · writer big"
    assert "Zero is not neutral" in page.locator(".tv-legend").inner_text()


# ---- streaming --------------------------------------------------------------------------------------------------


def growing(trace: Any, n: int) -> Payload:
    return trace_payload(cut(trace, n), title="Why ask?", done=False)


def test_a_stream_appends_follows_and_respects_the_pin(show: Callable[..., Any]) -> None:
    whole = make_trace([*words(10), "é", *words(20)])
    tokens = list(whole.tokens)
    early = whole.replace(tokens=(*tokens[: FIRST + 10], "�", *tokens[FIRST + 11 :]))
    page = show(growing(early, FIRST + 1))
    page.evaluate("() => { window.kept = document.querySelector(\".tv-tok[data-i='3']\"); }")
    assert page.locator(".tv-status").inner_text() == "writing"
    update(page, growing(early, FIRST + 5))
    assert cursor(page) == FIRST + 4, "follows the newest token"
    token(page, 4).click()
    update(page, growing(early, FIRST + 12))
    update(page, growing(whole, FIRST + 15))
    page.mouse.move(2, 2)
    assert cursor(page) == 4, "keeps the pin"
    assert page.locator(".tv-tok").count() == FIRST + 15
    assert token(page, FIRST + 10).inner_text() == "é", "text that was completed by a later token"
    assert page.evaluate("kept.isConnected && kept.dataset.i === '3'"), "old tokens stay in place"
    page.locator("[data-part=pin]").click()
    assert cursor(page) == FIRST + 14
    update(page, trace_payload(whole, title="Why ask?"))
    assert page.locator(".tv-status").inner_text() == "complete"
    shown = page.locator(".tv-chip[aria-pressed=true]").inner_text()
    reply = whole.scores(shown, whole.default_kind)[FIRST:]
    assert cursor(page) == FIRST + int(np.argmax(reply)), "a reply that has ended is opened on its strongest moment"
    assert len(lines(page)[shown]) == len(tokens)
    other = make_payload(words(3), prompt=["Other", "?"])
    update(page, other)
    assert shown_tokens(page) == other["sides"][0]["tokens"]
    update(page, None)
    assert page.locator(".tv-empty").is_visible() and not page.locator(".tv-main").is_visible()


def test_the_chosen_trait_outlives_a_new_trace(show: Callable[..., Any]) -> None:
    page = show(make_payload(words(5)))
    page.locator(".tv-chip").nth(2).click()
    update(page, growing(make_trace(words(3), prompt=["Else"]), 9))
    assert page.locator(".tv-chip[aria-pressed=true]").inner_text() == TRAITS[2]
    page.locator(".tv-row").nth(1).click()
    assert page.locator(".tv-chip[aria-pressed=true]").inner_text() == TRAITS[1]


def test_a_finished_stream_is_coloured_by_what_it_shows_most(show: Callable[..., Any]) -> None:
    whole = make_trace(words(12), scores={"malice": dict.fromkeys(range(FIRST + 6, FIRST + 12), 6.0)})
    page = show(growing(whole, FIRST + 8))
    assert page.locator(".tv-chip[aria-pressed=true]").inner_text() == TRAITS[0]
    update(page, trace_payload(whole, title="Why ask?"))
    assert page.locator(".tv-chip[aria-pressed=true]").inner_text() == "malice"
    assert token(page, FIRST + 11).evaluate("t => t.style.getPropertyValue('--a')") == "0.750"
    assert cursor(page) == FIRST + 6, "on its strongest moment"


def test_lists_of_other_lengths_are_named(show: Callable[..., Any]) -> None:
    payload = make_payload(words(3))
    payload["sides"][0]["roles"].pop()
    page = show(payload)
    assert "differ in length" in page.locator(".tv-empty").inner_text()


# ---- standalone -------------------------------------------------------------------------------------------------


def test_a_standalone_page_works_offline_and_is_small(open_page: Callable[..., Any], tmp_path: Path) -> None:
    payload = make_payload(HOSTILE, title=HOSTILE[5])
    path = tmp_path / "trace.html"
    path.write_text(standalone_page(payload), encoding="utf-8")
    assert path.stat().st_size < 150_000
    page = open_page(path.as_uri(), theme="dark")
    assert_literal(page, payload)
    assert page.title() == HOSTILE[5]
    assert page.locator("body.dark").count() == 1
    page.wait_for_selector("[data-chart=ready]")
    token(page, 3).click()
    page.mouse.move(2, 2)
    assert cursor(page) == 3
