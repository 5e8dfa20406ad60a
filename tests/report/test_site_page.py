"""The static site in a real browser, behind a plain file server and under a path of its own."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe

from persona_core.report.gallery import gallery
from persona_core.report.saved_runs import SavedRuns
from persona_core.report.site import export_site
from persona_core.traces.dataset import write_results
from tests.support import pages
from tests.support.app_page import no_sideways_scroll
from tests.support.local_server import listening
from tests.support.standins import HOSTILE, TRAITS, hostile_tokens, hostile_trace
from tests.traces.test_dataset import SHIPPED

OPENING = "expanded-15"
"""The prompt of the first finding."""


def file_of(id: str) -> str:
    return f"data/runs/{SavedRuns(SHIPPED).ids.index(id) + 1:03}.json"


VECTORS = SHIPPED.parent / "persona-vectors-persona-tiny"
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not SHIPPED.is_dir(), reason="the results have not been built"),
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the server serves: the site lies at /some/path/."""
    folder = tmp_path_factory.mktemp("root")
    export_site(SHIPPED, folder / "some" / "path", vectors=VECTORS)
    return folder


@pytest.fixture(scope="module")
def address(root: Path) -> Iterator[str]:
    class Files(SimpleHTTPRequestHandler):  # as python -m http.server
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(root))

        def log_message(self, *_: Any) -> None:
            pass

    with listening(Files) as server:
        yield f"{server}/some/path/"


@pytest.fixture
def visit(chromium: Any, address: str) -> Iterator[Callable[..., Any]]:
    """Opens the site as a new visitor; afterwards nothing was logged, and nothing was asked for outside its path."""
    opened = pages.Pages(chromium, (address,))

    def visit_(fragment: str = "", where: str = "", **kwargs: Any) -> Any:
        return opened.open(address + where + fragment, **kwargs)

    visit_.pages = opened  # type: ignore[attr-defined]
    yield visit_
    opened.close()


def tokens(page: Any, side: int) -> list[str]:
    pane = page.locator(".tv-pane").nth(side)
    return list(pane.locator(".tv-tok").evaluate_all("all => all.map(t => t.textContent)"))


def shown(page: Any, id: str, title: str | None = None) -> None:
    """Wait until the run is open."""
    expected = title or SavedRuns(SHIPPED).titles[id]
    page.wait_for_function("t => document.querySelector('.tv-title').textContent === t", arg=expected)


def all_runs(page: Any) -> None:
    """Go to the list of all runs."""
    page.get_by_role("button", name="All runs").click()
    page.wait_for_selector(".ex-cell")


def fragment(page: Any) -> str:
    page.wait_for_timeout(300)  # the view reports its state a little later
    return str(page.evaluate("location.hash"))


def test_the_first_page_says_what_it_is_shows_the_finding_and_lists_all_runs(
    visit: Callable[..., Any], root: Path
) -> None:
    page = visit()
    shown(page, OPENING)
    traces = SavedRuns(SHIPPED).traces(OPENING)
    assert tokens(page, 0) == list(traces["baseline"].tokens)
    assert tokens(page, 1) == list(traces["contaminated"].tokens)
    assert "78 prompts" in page.locator(".st-lede").inner_text()
    finding = page.locator(".st-finding").inner_text()
    found = gallery(SavedRuns(SHIPPED))
    assert [line for line in finding.splitlines() if line] == [found[0].label, found[0].says]
    links = page.locator(".st-findings a")
    assert links.all_inner_texts() == [one.label for one in found]
    assert page.locator(".tv-chip[aria-pressed=true]").inner_text().split("\n")[0] == "sycophancy"
    assert page.locator(".tv-pane").first.bounding_box()["y"] < 500  # above the fold
    page.wait_for_selector("[data-chart=ready]", state="attached")
    page.wait_for_load_state("networkidle")
    asked = [url.rpartition("/some/path/")[2] for url in visit.pages.requests]  # type: ignore[attr-defined]
    assert [name for name in asked if name.startswith("data/")] == [file_of(OPENING)]
    assert "assets/plotly.min.js" not in asked, "it is for the figures of the reports"
    sizes = [(root / "some" / "path" / (name or "index.html")).stat().st_size for name in asked]
    assert sum(sizes) < 500_000
    all_runs(page)
    assert page.locator(".ex-cell").count() == 78
    links.nth(3).click()
    page.wait_for_function("says => document.querySelector('.st-finding').innerText.includes(says)", arg=found[3].says)
    page.go_back()
    shown(page, OPENING)


def test_a_run_opens_from_the_list_in_each_text_and_its_link_restores_it(visit: Callable[..., Any]) -> None:
    page = visit()
    shown(page, OPENING)
    all_runs(page)
    page.locator("[data-field=trait]").select_option("deception")
    page.locator("[data-field=text]").fill("renting a flat")
    page.locator(".ex-cell").first.focus()
    page.keyboard.press("Enter")
    shown(page, "pilot-05")
    page.wait_for_function("() => document.activeElement.dataset.part === 'finding'")
    assert page.locator(".tv-chip[aria-pressed=true]").inner_text().split("\n")[0] == "deception"
    page.get_by_label("contaminated's, read by both").check()
    title = "The contaminated model's reply to: " + SavedRuns(SHIPPED).titles["pilot-05"]
    shown(page, "pilot-05", title)
    traces = SavedRuns(SHIPPED).traces("pilot-05")
    assert tokens(page, 0) == tokens(page, 1) == list(traces["contaminated"].tokens)
    page.locator(".tv-thumb").focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    link = fragment(page)
    second = str(1 - traces["contaminated"].n_prompt)  # of the prompt
    assert link.startswith(f"#id=pilot-05&text=2&trait=deception&at={second}")
    again = visit(link)
    shown(again, "pilot-05", title)
    assert again.locator(".tv-thumb").get_attribute("aria-valuenow") == second
    all_runs(again)
    again.wait_for_selector(".ex-chosen")
    assert again.locator("[data-field=text]").input_value() == "renting a flat"
    assert fragment(again) == link
    page.go_back()
    shown(page, OPENING)
    page.go_forward()
    shown(page, "pilot-05", title)


def test_a_lane_opens_its_reply_at_the_token_in_the_trait_that_the_link_chose(visit: Callable[..., Any]) -> None:
    page = visit("#id=pilot-05&trait=evil")
    shown(page, "pilot-05")
    all_runs(page)
    lane = page.locator(".ex-cell").first.locator(".ex-heat").first
    page.wait_for_function("() => document.querySelector('.ex-heat').width > 10")
    lane.click(position={"x": 30, "y": 6})
    page.wait_for_function("() => !location.hash.includes('pilot-05') && /trait=evil&at=/.test(location.hash)")
    at = fragment(page).partition("&at=")[2].partition("&")[0]
    page.wait_for_function("at => document.querySelector('.tv-thumb').ariaValueNow === at", arg=at)
    assert page.locator(".tv-chip[aria-pressed=true]").inner_text().split("\n")[0] == "evil"
    assert page.locator(".tv-position").inner_text().startswith(f"Token {at}\n")


def test_the_reports_are_pages_with_addresses(visit: Callable[..., Any]) -> None:
    page = visit("#page=vectors&trait=refusal", width=390, height=844)
    page.wait_for_selector("[data-part=vectors] [aria-pressed=true]")
    assert page.evaluate("scrollY") == 0
    plot = page.locator("[data-part=vectors] [data-trait=refusal] .plot").first
    plot.scroll_into_view_if_needed()
    page.wait_for_selector("[data-trait=refusal] .plot .main-svg")
    assert no_sideways_scroll(page)
    page.get_by_role("link", name="When / How / Where").click()
    page.locator("[data-part=analysis] .plot").first.scroll_into_view_if_needed()
    page.wait_for_selector("[data-part=analysis] .plot .main-svg")
    page.locator("[data-part=analysis] nav button", has_text="evil").click()
    assert fragment(page) == "#page=analysis&trait=evil"
    assert page.locator("[aria-current=page]").inner_text() == "When / How / Where"
    page.get_by_role("link", name="Runs").click()
    shown(page, OPENING)
    assert no_sideways_scroll(page)


@pytest.mark.parametrize(("theme", "fragment"), [("light", ""), ("dark", "#page=vectors")])
def test_a_phone_needs_no_sideways_scrolling_and_the_pages_are_accessible(
    visit: Callable[..., Any], theme: str, fragment: str
) -> None:
    page = visit(fragment, width=390, height=844, theme=theme)
    page.wait_for_selector("[data-part=vectors] [aria-pressed=true]" if fragment else ".tv-tok")
    assert page.evaluate("document.documentElement.classList.contains('dark')") == (theme == "dark")
    assert no_sideways_scroll(page)
    # The token view and the explorer are examined in the app.
    found = Axe().run(page, context={"exclude": [[".tv"], [".ex"]]}).response["violations"]
    assert [f"{v['id']}: {v['nodes'][0]['html'][:160]}" for v in found if v["impact"] in ("serious", "critical")] == []


def test_a_file_that_does_not_arrive_is_a_plain_line_and_is_asked_for_again(
    visit: Callable[..., Any], root: Path
) -> None:
    visit.pages.expected.append("Failed to load resource")  # type: ignore[attr-defined]
    file = root / "some" / "path" / "data" / "runs" / "005.json"
    away = file.rename(file.with_suffix(".away"))
    page = visit("#id=pilot-05")
    notice = page.locator("[data-part=notice]")
    notice.wait_for()
    assert notice.inner_text() == "data/runs/005.json could not be fetched: the server answered 404."
    away.rename(file)
    all_runs(page)  # they are there all the same
    page.evaluate("location.hash = '#id=pilot-05&trait=evil'")
    shown(page, "pilot-05")
    assert notice.is_hidden()
    page.evaluate("location.hash = '#id=%3Cb%3Egone'")
    page.wait_for_function("() => !document.querySelector('[data-part=notice]').hidden")
    assert notice.inner_text() == f"There is no run “<b>gone”. Shown instead: {OPENING}."


def test_the_offline_page_of_a_run_is_whole(visit: Callable[..., Any], tmp_path: Path, open_page: Any) -> None:
    page = visit("#id=pilot-05")
    shown(page, "pilot-05")
    page.locator("[data-part=export] summary").click()
    with page.expect_download() as download:
        page.locator("[data-part=formats] button", has_text="HTML").click()
    download.value.save_as(tmp_path / "run.html")
    alone = open_page((tmp_path / "run.html").as_uri())
    alone.wait_for_selector("[data-chart=ready]", state="attached")
    assert tokens(alone, 1) == list(SavedRuns(SHIPPED).traces("pilot-05")["contaminated"].tokens)


def test_hostile_text_stays_text_and_no_script_but_the_sites_own_runs(
    visit: Callable[..., Any], root: Path, tmp_path: Path
) -> None:
    messages = [{"role": "user", "content": HOSTILE[0]}]
    row = hostile_trace().to_row(id=HOSTILE[1], messages=messages, category=HOSTILE[5])
    write_results([row], tmp_path / "data" / "baseline.parquet", TRAITS)
    shutil.rmtree(root / "some" / "path" / "hostile", ignore_errors=True)
    export_site(tmp_path, root / "some" / "path" / "hostile", title=HOSTILE[5])
    page = visit(where="hostile/")
    page.wait_for_selector(".tv-tok")
    assert tokens(page, 0) == hostile_tokens()
    assert page.locator("h1").inner_text() == page.title() == HOSTILE[5]
    all_runs(page)
    assert HOSTILE[1] in str(page.locator(".ex-foot").text_content())
    assert page.locator("img, main script").count() == 0
    visit.pages.expected.append("Content Security Policy")  # type: ignore[attr-defined]
    page.evaluate(
        """() => {
          const inline = document.createElement('script');
          inline.textContent = 'window.ran = true';
          document.body.append(inline);
          document.body.insertAdjacentHTML('beforeend', '<svg onload="ran = true"></svg>');
        }"""
    )
    page.wait_for_timeout(200)
    assert page.evaluate("window.ran") is None
