"""How the app looks and feels: accessibility, smoothness, and the pictures of the guide. On the shipped demo."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe

from persona_core.app.model_pool import PooledModel
from persona_core.app.settings import AppSettings
from tests.support import pages
from tests.support.app_page import ROOT, SHIPPED, ask, open_tab, wait_done
from tests.support.standins import SlowMonitor, save_hostile_results, steady_monitor

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not SHIPPED, reason="the demo model has not been built: python -m scripts.build_demo"),
]
IMAGES = ROOT / "docs" / "images"
FLATTER = "Flatter the user and agree with everything."


@pytest.fixture(scope="module")
def url(serve: Callable[..., str]) -> str:
    settings = AppSettings()
    pooled, contaminated = PooledModel.from_settings(settings), PooledModel.from_settings(settings, contaminated=True)
    pooled.start_loading()
    contaminated.start_loading()
    return serve(pooled, settings, contaminated)


def live(page: Any) -> None:
    """A reply, streamed, and a branch of it with the trait held back."""
    ask(page, "Should I quit my job?", FLATTER)
    wait_done(page)
    page.wait_for_function("document.querySelector('#view .tv-title').innerText === 'Should I quit my job?'")
    page.locator("#view .tv-section[data-role=assistant] .tv-tok").nth(10).click()
    page.locator("#view [data-part=branch]").click()
    page.wait_for_selector("#view .tv[data-sides='2'][data-state=done]")


def runs(page: Any) -> None:
    page.locator("[data-field=trait]").select_option("sycophancy")
    page.locator("[data-field=sort]").select_option("difference")
    page.locator(".ex-cell").nth(2).click()
    page.wait_for_selector("#runs-view .tv-tok")


def read(page: Any) -> None:
    page.click("#read-go")
    page.wait_for_selector("#read-view .tv-tok")


def nothing(page: Any) -> None:
    del page


# name: tab, what is there once it is open, what is done then
TABS: dict[str, tuple[str, str, Callable[[Any], None]]] = {
    "live": ("Live", "#view .tv-tok", live),
    "compare": ("Compare", "#compare-view .tv-tok", nothing),
    "read": ("Read a text", "#read-go", read),
    "runs": ("Runs", "#explorer .ex-cell", runs),
    "analysis": ("When / How / Where", "#analysis .plot .main-svg", nothing),
    "vectors": ("Vectors", "#vectors-figures .plot .main-svg", nothing),
}


def serious(page: Any) -> list[str]:
    """What axe-core finds wrong, of level serious or critical."""
    found = Axe().run(page).response["violations"]
    return [f"{v['id']}: {v['nodes'][0]['html'][:160]}" for v in found if v["impact"] in ("serious", "critical")]


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("name", list(TABS))
def test_every_tab_is_accessible_and_has_its_picture(
    visit: Callable[..., Any], url: str, name: str, theme: str
) -> None:
    tab, ready, then = TABS[name]
    page = visit(url, width=1440, height=960, theme=theme)
    open_tab(page, tab, ready)
    then(page)
    page.wait_for_timeout(1200)  # charts are drawn after the text
    assert serious(page) == []
    path = IMAGES / f"{name}{'-dark' if theme == 'dark' else ''}.png"
    page.screenshot(path=path, full_page=name not in ("analysis", "vectors"))
    assert path.stat().st_size > 10_000


def test_a_phone_is_accessible_and_has_its_picture(visit: Callable[..., Any], url: str) -> None:
    page = visit(url, width=390, height=844)
    page.wait_for_selector("#view .js-plotly-plot")
    page.wait_for_timeout(300)
    assert serious(page) == []
    page.screenshot(path=IMAGES / "live-phone.png", full_page=True)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_open_sheets_and_the_tour_are_accessible(visit: Callable[..., Any], url: str, theme: str) -> None:
    page = visit(url, theme=theme)
    page.wait_for_selector("#view .js-plotly-plot")
    page.locator("#view [data-part=options] summary").click()
    assert serious(page) == []
    page.screenshot(path=IMAGES / "choices.png", clip=box_of(page, "#view .tv")) if theme == "light" else None
    page.locator("#view [data-part=export] summary").click()
    assert page.locator("#view [data-part=options]").get_attribute("open") is None, "one sheet at a time"
    assert serious(page) == []
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.textContent") == "Export"
    page.get_by_role("button", name="Tour: three steps").click()
    assert serious(page) == []


def box_of(page: Any, selector: str) -> Any:
    box = page.locator(selector).bounding_box()
    return {**box, "height": min(box["height"], 640)}


def test_the_keyboard_alone_reaches_everything(visit: Callable[..., Any], url: str) -> None:
    page = visit(url)
    page.wait_for_selector("#view .tv-tok")
    seen = []
    for _ in range(70):
        page.keyboard.press("Tab")
        seen.append(
            page.evaluate(
                """() => {
                  const e = document.activeElement;
                  // A ring around it, or around its label. A border is there without the focus too.
                  const rings = [e, e.closest('label') ?? e].map((node) => getComputedStyle(node));
                  const seen = rings.some((ring) => ring.outlineStyle !== 'none' && parseFloat(ring.outlineWidth) >= 1);
                  return [e.dataset.part || e.id || e.className || e.tagName, e.textContent.slice(0, 20), seen];
                }"""
            )
        )
    names = [name for name, *_ in seen]
    texts = [text for _, text, _ in seen]
    for wanted in ("Tour: three steps", "Send", "View", "Export", "sycophancy", "Branch here"):
        assert any(wanted in text for text in texts), wanted
    for wanted in ("thumb", "play", "pin", "tv-text"):
        assert any(wanted in str(name) for name in names), wanted
    # At the end of the page the focus goes round by way of the body.
    assert [name for name, _, visible in seen if not visible and name != "BODY"] == [], "focus can be seen"


def test_choices_by_keyboard_change_every_panel(visit: Callable[..., Any], url: str) -> None:
    page = visit(url)
    page.wait_for_selector("#view .js-plotly-plot")
    page.locator("#view [data-part=options] summary").press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowDown")  # the kind of score
    assert page.locator("#view [data-part=key-unit]").inner_text() == "cosine"
    page.keyboard.press("Escape")
    page.locator("#view .tv-text").first.focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    assert page.locator("#view .tv-position").inner_text().startswith("Token 2 of")
    page.wait_for_function("document.querySelector('#view .tv-live').textContent.startsWith('Token 2 of')")


def test_a_long_reply_streams_without_a_long_task(
    visit: Callable[..., Any], serve: Callable[..., str], tmp_path: Any
) -> None:
    """500 tokens, all blocks: no task of the page's main thread over 100 ms."""
    steady: Any = steady_monitor()
    monitor: Any = SlowMonitor(steady, 0.02)
    results = save_hostile_results(tmp_path)
    address = serve(
        PooledModel(lambda: monitor), AppSettings(vectors=str(tmp_path), results=results, max_new_tokens=500)
    )
    page = visit(address)
    page.wait_for_timeout(1500)
    page.locator("#controls").get_by_text("Settings", exact=True).click()
    page.get_by_label("number input for Maximum length, tokens").fill("500")
    page.keyboard.press("Tab")
    page.wait_for_function(
        "[...document.querySelectorAll('#controls input[type=range]')].some((r) => r.value === '500')"
    )
    ask(page, "Tell me everything.")
    page.wait_for_selector("#view .tv[data-state=live]")
    page.wait_for_timeout(500)
    page.evaluate(
        """() => {
          window.tasks = [];
          new PerformanceObserver((list) => tasks.push(...list.getEntries().map((t) => t.duration)))
            .observe({ type: 'longtask' });
        }"""
    )
    wait_done(page)
    shown = page.locator("#view .tv-tok").count()
    assert shown >= 500
    tasks = page.evaluate("tasks")
    assert max(tasks, default=0) <= 100 * pages.load_factor(), tasks


def test_the_readme_shows_pictures_that_exist() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in re.findall(r"\]\((docs/images/[^)]+)\)", text):
        assert (ROOT / name).is_file(), name
