"""The token view in a real browser: two sides, the choices of what is shown, spans, play, export and state."""

from __future__ import annotations

import base64
import csv
import io
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from persona_core.traces.trace import Kind, Trace
from persona_core.traces.view.payload import pair_payload, trace_payload
from persona_core.traces.view.standalone import shell_page, standalone_page
from tests.support.standins import FIRST, HOSTILE, TRAITS, cut, make_payload, make_trace, odds, words
from tests.support.view_page import (
    bare_page,
    bars,
    choose,
    cursor,
    position_of_strongest,
    scores,
    shown_tokens,
    strip,
    texts,
    token,
    update,
)

pytestmark = pytest.mark.browser

SINK = 15
"""Position of the sink token of `rich_trace`."""


def test_the_cursor_follows_a_branch_that_is_still_shorter_than_its_original(show: Callable[..., Any]) -> None:
    original, branch = make_trace(words(40)), make_trace([*words(10), *words(40)])
    first = trace_payload(original, name="original", title="Why ask?")

    def so_far(n: int) -> dict[str, Any]:
        return pair_payload(first, trace_payload(cut(branch, n), name="branch", done=False))

    page = show(so_far(FIRST + 12))
    assert cursor(page) == FIRST + 11, "not the end of the original"
    update(page, so_far(FIRST + 20))
    assert cursor(page) == FIRST + 19
    token(page, FIRST + 2).click()
    page.mouse.move(2, 2)
    update(page, so_far(FIRST + 25))
    assert cursor(page) == FIRST + 2, "keeps the pin"
    page.locator("[data-part=pin]").click()
    assert cursor(page) == FIRST + 24
    update(page, so_far(FIRST + 45))
    assert cursor(page) == FIRST + 44


def rich_trace(n_reply: int = 30, seed: int = 0) -> Trace:
    """Three blocks, a null and log odds of its own for each trait and block, norms that differ, one score that does not
    exist, and a sink token at blocks 1 and 4."""
    rng = np.random.default_rng(seed)
    n = FIRST + n_reply
    raw = rng.normal(3, 2, (3, 3, n)).astype(np.float32)
    raw[1, 1, 20] = np.nan
    norms = rng.uniform(5, 9, (3, n)).astype(np.float32)
    norms[:, SINK] = 100.0
    return make_trace(
        words(n_reply),
        blocks=(1, 4, 7),
        raw=raw,
        norms=norms,
        null_mean=rng.normal(0, 1, (3, 3)).astype(np.float32),
        null_std=rng.uniform(0.5, 2, (3, 3)).astype(np.float32),
        best_block={TRAITS[0]: 1, TRAITS[1]: 4, TRAITS[2]: 7},
        max_norm=np.array([10.0, 10.0, np.inf], np.float32),
        log_odds=odds(3, 3, seed),
    )


def scored(trace: Trace, trait: str, kind: Kind | None = None, block: int | None = None, alignment: str = "at") -> Any:
    """What the view shows: Python's scores, and none at the sink token."""
    found = trace.scores(trait, kind, block, alignment).copy()  # type: ignore[arg-type]
    if (trace.best_block[trait] if block is None else block) != 7:
        found[SINK + (alignment == "before")] = np.nan
    return found


# ---- two sides ----


def test_both_sides_are_on_one_cursor_from_the_start_of_the_reply(show: Callable[..., Any]) -> None:
    """The second side has a longer prompt: positions count from the first token of the replies."""
    first = make_payload(words(20), name="baseline", scores={"flattery": {FIRST + 5: 6.0}})
    longer = ["Why", " ever", " did", " you", " ask", "?"]
    second = make_payload(words(25), longer, name="contaminated", scores={"flattery": {FIRST + 3 + 5: -7.0}})
    page = show(pair_payload(first, second))
    page.locator(".tv-chip").nth(1).click()
    token(page, FIRST + 5, side=0).click()
    page.mouse.move(2, 2)
    assert cursor(page, shift=3) == FIRST + 3 + 5
    marked = page.locator(".tv-at").evaluate_all("all => all.map(t => t.textContent)")
    assert marked == [" word5", " word5"]
    assert scores(page) == ["+6.00", "−7.00"]
    assert bars(page) == ["+0.10", "+0.10", "+6.00", "−7.00", "+0.10", "+0.10"]
    n = FIRST + 3 + 25
    for key in ("0", "1", "difference"):
        assert position_of_strongest(strip(page, key, "flattery"), n) == FIRST + 3 + 5
    assert page.evaluate("view.chart().sides.map((side) => side.lines.map((line) => line.from))") == [[3], [0]]
    page.locator("[role=slider]").press("End")
    assert scores(page) == ["–", "+0.10"], "the first side has ended"
    assert page.locator(".tv-token").first.inner_text() == "(no token here)"


def test_a_replay_is_aligned_by_token_and_its_difference_is_of_tokens(show: Callable[..., Any]) -> None:
    own, other = rich_trace(seed=0), rich_trace(seed=1)
    page = show(pair_payload(trace_payload(own, name="a"), trace_payload(other, name="b")))
    assert "differ" not in page.locator(".tv-lane-title").last.inner_text()
    assert page.locator(".tv-lane-title").all_inner_texts() == ["a", "b", "b minus a"]
    token(page, 16, side=1).click()
    page.mouse.move(2, 2)
    for trait in own.traits:
        page.get_by_role("button", name=trait, exact=True).click()
        assert scores(page) == texts([own.scores(trait)[16], other.scores(trait)[16]])
    elsewhere = make_trace(["Other", " words"], traits=TRAITS)
    update(page, pair_payload(trace_payload(own, name="a"), trace_payload(elsewhere, name="b")))
    assert "pale where the texts differ" in page.locator(".tv-lane-title").last.inner_text()


def test_the_sides_scroll_together(show: Callable[..., Any]) -> None:
    payload = make_payload(words(1200), name="a")
    other = make_payload(words(1200), ["Why", " ", "not", "?"], name="b")
    page = show(pair_payload(payload, other))
    page.locator("[role=slider]").press("Home")
    page.wait_for_timeout(100)
    page.locator(".tv-text").first.hover()
    page.mouse.wheel(0, 900)
    page.wait_for_function("document.querySelectorAll('.tv-text')[1].scrollTop > 300")
    tops = page.evaluate(
        """() => [...document.querySelectorAll('.tv-text')].map((text) => {
          const top = text.getBoundingClientRect().top + 12;
          return [...text.querySelectorAll('.tv-tok')].find((t) => t.getBoundingClientRect().bottom >= top).textContent;
        })"""
    )
    numbers = [int(word.removeprefix(" word")) for word in tops]
    assert abs(numbers[0] - numbers[1]) <= 12, "the same token within a line"


def test_two_sides_stand_beside_each_other_only_where_there_is_room(show: Callable[..., Any]) -> None:
    pair = pair_payload(make_payload(words(50), name="a"), make_payload(words(50), name="b"))
    page = show(pair)
    for width, beside in ((1440, True), (700, False), (390, False)):
        page.set_viewport_size({"width": width, "height": 900})
        first, second = (page.locator(".tv-pane").nth(k).bounding_box() for k in (0, 1))
        assert (second["x"] > first["x"] + first["width"] - 1) == beside
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        tops = [page.locator(".tv-text").nth(k).bounding_box()["y"] for k in (0, 1)]
        assert (tops[0] == tops[1]) == beside


# ---- choices: the numbers are those of Trace.scores ----


def test_every_choice_shows_what_python_computes(show: Callable[..., Any]) -> None:
    trace = rich_trace()
    page = show(trace_payload(trace))
    kinds: tuple[Kind, ...] = ("specific", "z", "raw", "cosine")
    assert page.locator("select[name=kind] option").evaluate_all("all => all.map(o => o.value)") == [
        "specific",
        "z",
        "cosine",
        "raw",
    ]
    for kind, alignment, block in itertools.product(kinds, ("at", "before"), ("best", "4", "7")):
        for name, value in (("kind", kind), ("alignment", alignment), ("block", block)):
            choose(page, name, value)
        at = None if block == "best" else int(block)
        for index in (0, 1, SINK, SINK + 1, 20, 21, trace.n_tokens - 1):
            token(page, index).click()
            page.mouse.move(2, 2)
            expected = [scored(trace, t, kind, at, alignment)[index] for t in trace.traits]
            assert bars(page) == texts(expected), f"{kind}, {alignment}, block {block}, token {index}"


def test_smoothing_looks_back_only(show: Callable[..., Any]) -> None:
    page = show(make_payload(words(30), scores={"malice": {FIRST + 10: 5.1}}))
    choose(page, "smooth", "5")
    found = []
    for index in range(FIRST + 8, FIRST + 17):
        token(page, index).click()
        page.mouse.move(2, 2)
        found.append(bars(page)[2])
    assert found == ["+0.10"] * 2 + ["+1.10"] * 5 + ["+0.10"] * 2


def test_traits_blocks_special_tokens_and_scale_can_be_chosen(show: Callable[..., Any]) -> None:
    trace = rich_trace()
    page = show(trace_payload(trace))
    page.locator("[data-part=options] summary").click()
    page.get_by_label("malice", exact=True).uncheck()
    assert page.locator(".tv-chip").all_inner_texts() == ["deception", "flattery"] and len(bars(page)) == 2
    assert page.evaluate("document.activeElement.closest('label').textContent") == "malice", "the focus stays"
    page.get_by_label("Special tokens").uncheck()
    assert page.locator(".tv-special").first.is_hidden()
    choose(page, "scale", "range")
    most = max(np.nanmax(np.abs(scored(trace, t)[FIRST:])) for t in ("deception", "flattery"))
    step = 10 ** np.floor(np.log10(most))
    assert page.locator("[data-part=key-high]").inner_text() == f"+{np.ceil(most / step) * step:.0f}"
    choose(page, "block", "all")
    names = page.locator(".tv-lane-name").all_inner_texts()
    assert names == ["block 1", "block 4", "block 7"]
    chosen = page.locator(".tv-chip[aria-pressed=true]").inner_text()
    scale = float(page.locator("[data-part=key-high]").inner_text())
    for block in (1, 4, 7):
        z = np.abs(scored(trace, chosen, block=block))
        peak = position_of_strongest(strip(page, "0", f"block {block}"), trace.n_tokens)
        assert z[peak] >= min(np.nanmax(z), scale) - 0.05, "colours end at the scale"


def test_a_trace_without_a_null_has_no_z(show: Callable[..., Any]) -> None:
    nothing = np.full((3, 1), np.nan, np.float32)
    page = show(make_payload(words(4), null_mean=nothing, null_std=nothing))
    assert page.locator("select[name=kind] option").evaluate_all("all => all.map(o => o.value)") == ["cosine", "raw"]
    assert page.locator("[data-part=key-unit]").inner_text() == "cosine"


# ---- spans, play, keys ----


def test_a_drag_over_the_chart_marks_a_span_and_shows_its_means(show: Callable[..., Any]) -> None:
    trace = rich_trace()
    page = show(trace_payload(trace))
    area = page.locator(".tv-area").bounding_box()
    x = lambda index: area["x"] + area["width"] * (index + 0.5) / trace.n_tokens  # noqa: E731
    page.mouse.move(x(12), area["y"] + 30)
    page.mouse.down()
    page.mouse.move(x(18), area["y"] + 30)
    page.mouse.move(x(25), area["y"] + 30)
    page.mouse.up()
    page.mouse.move(2, 2)
    means = [np.nanmean(np.round(scored(trace, t)[12:26].astype(float), 4)) for t in trace.traits]
    assert bars(page) == texts(means)
    n = trace.n_prompt
    assert f"okens {12 - n} to {25 - n} · means" in page.locator(".tv-position").inner_text()
    box = page.locator(".tv-span").bounding_box()
    assert abs(box["x"] - (x(12) - area["width"] / trace.n_tokens / 2)) < 2
    assert page.evaluate("view.state().span") == [12 - n, 25 - n]
    page.locator("[role=slider]").press("Escape")
    assert page.locator(".tv-span").is_hidden() and page.evaluate("view.state().span") is None


def test_marked_text_and_shift_arrows_are_spans_too(show: Callable[..., Any]) -> None:
    page = show(make_payload(words(30)))
    token(page, 10).click()
    for _ in range(3):
        page.locator(".tv-text").press("Shift+ArrowRight")
    assert page.evaluate("view.state().span") == [10 - FIRST, 13 - FIRST]
    page.locator(".tv-text").press("Shift+ArrowLeft")
    assert page.evaluate("view.state().span") == [10 - FIRST, 12 - FIRST]
    page.locator(".tv-text").press("Escape")
    first, last = token(page, 14).bounding_box(), token(page, 17).bounding_box()
    page.mouse.move(first["x"] + 8, first["y"] + 8)
    page.mouse.down()
    page.mouse.move(last["x"] + last["width"] - 3, last["y"] + 8, steps=4)
    page.mouse.up()
    assert page.evaluate("view.state().span") == [14 - FIRST, 17 - FIRST]
    assert page.evaluate("getSelection().toString()").strip().startswith("word6"), "and can be copied"


def test_play_walks_to_the_end_and_stops(show: Callable[..., Any]) -> None:
    page = show(make_payload(words(8)))
    page.locator("[role=slider]").press("Home")
    play = page.locator("[data-part=play]")
    play.click()
    assert play.get_attribute("aria-label") == "Pause"
    page.wait_for_function("n => document.querySelector('.tv-thumb').ariaValueNow === String(n)", arg=7)
    page.wait_for_selector("[data-part=play][aria-pressed=false]")
    update(page, make_payload(words(400)))
    page.locator("[role=slider]").press("Home")
    play.click()
    page.wait_for_function("Number(document.querySelector('.tv-thumb').ariaValueNow) > -7")
    play.click()
    stopped = cursor(page)
    page.wait_for_timeout(250)
    assert 0 < stopped < FIRST + 399 and cursor(page) == stopped


# ---- onsets ----


def onset_drawn(page: Any) -> Any:
    return page.evaluate("view.chart().sides[0].onset")


def test_an_onset_is_marked_and_described_and_so_is_its_absence(show: Callable[..., Any]) -> None:
    onsets = {
        "flattery": {"onset": 10, "low": 8, "high": 12, "says": "sets in at token 10 [8, 12]"},
        "malice": {"onset": None, "low": None, "high": None, "says": "no reliable onset"},
    }
    payload = make_payload(words(40), onsets=onsets, caveats=("with a system prompt",))
    page = show(payload)
    page.locator(".tv-chip").nth(1).click()
    assert page.locator(".tv-says").inner_text() == "flattery: sets in at token 10 [8, 12]"
    page.get_by_text("Why is this less certain here?").click()
    assert "with a system prompt" in page.locator(".tv-pane-head").inner_text()
    assert onset_drawn(page) == {"at": FIRST + 10, "low": FIRST + 8, "high": FIRST + 12}
    choose(page, "alignment", "before")
    assert onset_drawn(page)["at"] == FIRST + 11
    page.locator(".tv-chip").nth(2).click()
    assert page.locator(".tv-says").inner_text() == "malice: no reliable onset"
    assert onset_drawn(page) is None
    page.locator(".tv-chip").nth(0).click()
    assert page.locator(".tv-says").is_hidden()


def test_a_score_that_is_high_from_the_start_has_a_tick_where_it_doubles_and_no_band(show: Callable[..., Any]) -> None:
    says = "raised at the first token already; more than doubles at token 12"
    onset = {"answer": "before the reply", "onset": None, "low": None, "high": None, "doubles": 12, "says": says}
    page = show(make_payload(words(40), onsets={"flattery": onset}))
    page.locator(".tv-chip").nth(1).click()
    assert onset_drawn(page) == {"at": FIRST + 12, "low": None, "high": None}
    assert "Tick: where flattery, high at the first token, more than doubles." in page.locator("body").inner_text()


# ---- export ----


def saved(page: Any, which: str) -> bytes:
    page.evaluate("document.querySelector('[data-part=export]').open = true")
    with page.expect_download() as download:
        page.locator(f"[data-format={which}]").click()
    return Path(download.value.path()).read_bytes()


def test_exported_numbers_are_the_displayed_ones(show: Callable[..., Any]) -> None:
    trace = rich_trace()
    page = show(pair_payload(trace_payload(trace, name="a"), trace_payload(rich_trace(seed=1), name="b")))
    choose(page, "kind", "cosine")
    choose(page, "alignment", "before")
    choose(page, "smooth", "3")
    record = json.loads(saved(page, "json"))
    rows = list(csv.DictReader(io.StringIO(saved(page, "csv").decode("utf-8"))))
    assert (record["kind"], record["smoothing"], record["state"]) == ("cosine", 3, "the state that chose the token")
    assert record["blocks"] == {TRAITS[0]: 1, TRAITS[1]: 4, TRAITS[2]: 7}
    assert len(rows) == 2 * trace.n_tokens
    for index in (0, 3, 20, 22, trace.n_tokens - 1):
        token(page, index).click()
        page.mouse.move(2, 2)
        displayed = bars(page)
        for s, name in enumerate("ab"):
            of_json = record["sides"][s]["tokens"][index]["scores"]
            of_csv = rows[s * trace.n_tokens + index]
            assert of_csv["side"] == name and json.loads(of_csv["text"]) == trace.tokens[index]
            for t, trait in enumerate(TRAITS):
                score = of_json[trait]
                assert displayed[2 * t + s] == texts([np.nan if score is None else score])[0]
                assert of_csv[trait] == ("" if score is None else repr(score).removesuffix(".0"))


def test_exports_say_which_tokens_are_sinks_and_what_is_specific(show: Callable[..., Any]) -> None:
    trace = rich_trace()
    page = show(trace_payload(trace, kind="z"))
    tokens = json.loads(saved(page, "json"))["sides"][0]["tokens"]
    rows = list(csv.DictReader(io.StringIO(saved(page, "csv").decode("utf-8"))))
    assert [i for i, one in enumerate(tokens) if one["sink"]] == [SINK]
    assert [i for i, row in enumerate(rows) if row["sink"] == "true"] == [SINK]
    assert tokens[SINK]["scores"]["deception"] is None and tokens[SINK]["scores"]["malice"] is not None, "of block 7"
    for trait in TRAITS:
        own = scored(trace, trait, "specific")
        np.testing.assert_allclose([one["specific"][trait] or np.nan for one in tokens], own, atol=6e-5)
        assert [row[f"specific: {trait}"] for row in rows] == [
            "" if one["specific"][trait] is None else repr(one["specific"][trait]).removesuffix(".0") for one in tokens
        ]
    update(page, make_payload(words(2)))
    assert "specific" not in saved(page, "csv").decode(), "a trace without specific scores has no such columns"


def test_an_exported_table_holds_no_formula(show: Callable[..., Any]) -> None:
    traits = ("=cmd()", "+sum", "malice")
    page = show(make_payload(["=1+1", '@a"b', "-2\n", "\t=x"], traits=traits, name="=side"))
    table = saved(page, "csv").decode("utf-8")
    cells = [cell for row in csv.reader(io.StringIO(table)) for cell in row]
    assert not [cell for cell in cells if cell[:1] in ("=", "@", "\t", "+")]
    assert '"=1+1"' in cells and json.dumps('@a"b') in cells


def test_a_picture_holds_text_and_chart(show: Callable[..., Any]) -> None:
    page = show(pair_payload(make_payload([*words(80), *HOSTILE], name="a"), make_payload(words(90), name="b")))
    picture = saved(page, "png")
    assert picture[:8] == b"\x89PNG\r\n\x1a\n" and int.from_bytes(picture[16:20], "big") == 2400


def test_a_picture_of_a_long_text_ends_with_the_chart_all_the_same(show: Callable[..., Any]) -> None:
    page = show(make_payload(["word\n"] * 700))
    picture = saved(page, "png")
    assert int.from_bytes(picture[20:24], "big") == 32000  # browsers draw none that is taller
    colours = page.evaluate(
        """async (url) => {
          const image = await createImageBitmap(await (await fetch(url)).blob(), 0, 31600, 2400, 400);
          const pen = new OffscreenCanvas(2400, 400).getContext("2d");
          pen.drawImage(image, 0, 0);
          return new Set(new Uint32Array(pen.getImageData(0, 0, 2400, 400).data.buffer)).size;
        }""",
        "data:image/png;base64," + base64.b64encode(picture).decode(),
    )
    assert colours > 20, "the strips at the end of it"
    assert int.from_bytes(picture[20:24], "big") > 1200 and len(picture) > 50_000


def test_an_exported_page_opens_offline_where_it_was(open_page: Callable[..., Any], tmp_path: Path) -> None:
    """The page that the app's export builds: the shell, with the payload and the state inserted."""
    payload = make_payload([*HOSTILE, *words(10)], title=HOSTILE[5])
    shell = json.dumps(shell_page())
    page_path = tmp_path / "app.html"
    page_path.write_text(bare_page(), encoding="utf-8")
    page = open_page(page_path.as_uri())
    page.evaluate(
        """([shell, payload]) => {
          window.fetch = async () => ({ text: async () => shell });
          const root = document.createElement('div');
          root.innerHTML = document.querySelector('.tv').outerHTML;
          root.querySelector('[data-part=formats]').replaceChildren();
          document.body.replaceChildren(root);
          window.view = mountTokenView(root, { shellUrl: 'shell' });
          view.update(payload);
        }""",
        [json.loads(shell), payload],
    )
    page.locator(".tv-chip").nth(2).click()
    token(page, FIRST + 3).click()
    exported = tmp_path / "exported.html"
    exported.write_bytes(saved(page, "html"))
    offline = open_page(exported.as_uri(), theme="dark")
    assert shown_tokens(offline) == payload["sides"][0]["tokens"]
    assert offline.title() == HOSTILE[5]
    assert cursor(offline) == FIRST + 3
    assert offline.locator(".tv-chip[aria-pressed=true]").inner_text() == TRAITS[2]
    offline.wait_for_selector("[data-chart=ready]")


def test_a_standalone_page_of_two_sides(open_page: Callable[..., Any], tmp_path: Path) -> None:
    pair = pair_payload(make_payload(words(9), name="a"), make_payload(words(9), name="b"))
    path = tmp_path / "pair.html"
    path.write_text(standalone_page(pair), encoding="utf-8")
    page = open_page(path.as_uri())
    assert page.locator(".tv-pane").count() == 2 and page.locator("[data-format=html]").count() == 0


# ---- state ----


def test_the_state_can_be_taken_and_restored(show: Callable[..., Any]) -> None:
    payload = trace_payload(rich_trace())
    page = show(payload)
    page.locator(".tv-chip").nth(2).click()
    choose(page, "kind", "raw")
    choose(page, "block", "4")
    choose(page, "smooth", "9")
    token(page, 17).click()
    page.mouse.move(2, 2)
    page.wait_for_timeout(300)
    state = page.evaluate("view.state()")
    assert page.evaluate("states.at(-1)") == state
    shown = (bars(page), cursor(page), page.locator("[data-part=key-high]").inner_text())
    other = show(None)
    other.evaluate("state => view.restore(state)", json.loads(json.dumps(state)))
    update(other, payload)
    assert (bars(other), cursor(other), other.locator("[data-part=key-high]").inner_text()) == shown
    assert other.evaluate("view.state()") == state


def test_a_state_that_means_nothing_here_does_no_harm(show: Callable[..., Any]) -> None:
    page = show(None)
    wild = {
        "trait": HOSTILE[0],
        "at": 10**6,
        "span": [3, 10**7],
        "kind": "bits",
        "block": "x",
        "smooth": 4,
        "hidden": [*TRAITS],
    }
    page.evaluate("state => view.restore(state)", wild)
    update(page, make_payload(words(5)))
    assert bars(page) == ["+0.10"] * 3 and page.locator("[data-part=key-unit]").inner_text().startswith("standard")
