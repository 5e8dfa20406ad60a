"""How the app looks and feels: accessibility, smoothness, and the pictures of the guide. On the shipped demo."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe

from persona_core.app.layout import build_app
from persona_core.app.pooled_model import PooledModel
from persona_core.app.serve import LAUNCH
from persona_core.app.served_set import served_sets
from persona_core.app.settings import AppSettings, sets_from_environment
from tests.support import pages
from tests.support.app_page import ROOT, SHIPPED, ask, open_tab, wait_done
from tests.support.standins import SlowMonitor, save_hostile_results, steady_monitor

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not SHIPPED, reason="the demo model has not been built: python -m scripts.build_demo"),
]
SETTLED = """() => document.getAnimations().every(
    (a) => a.playState !== 'running' || a.effect.getTiming().iterations === Infinity)"""
"""Whether no colour is still fading: half-way through, its contrast is that of neither end."""
NEXT_FRAMES = "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
FLATTER = "Flatter the user and agree with everything."


@pytest.fixture(scope="module")
def url(serve: Callable[..., str]) -> str:
    settings = AppSettings()
    pooled = PooledModel.from_settings(settings)
    contaminated = PooledModel.contaminated(pooled, settings)
    pooled.monitor()
    contaminated.monitor()
    return serve(pooled, settings, contaminated)


@pytest.fixture(scope="module")
def shipped() -> Iterator[str]:
    """The app as it is without any setting; no model is loaded."""
    demo = build_app(*served_sets(sets_from_environment({})))
    _, address, _ = demo.launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, **LAUNCH)
    yield address
    demo.close()


def live(page: Any) -> None:
    """A reply, streamed, and a branch of it with the trait held back."""
    ask(page, "Should I quit my job?", FLATTER)
    wait_done(page)
    page.wait_for_function("document.querySelector('#view .tv-title').innerText === 'Should I quit my job?'")
    page.locator("#view .tv-section[data-role=assistant] .tv-tok").nth(10).click()
    page.locator("#view [data-action=cap]").click()
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


def figures(page: Any) -> None:
    page.locator("#vectors-figures").scroll_into_view_if_needed()  # they are drawn once they are in sight
    page.wait_for_selector("#vectors-figures .plot .main-svg")


# name: tab, what is there once it is open, what is done then
TABS: dict[str, tuple[str, str, Callable[[Any], None]]] = {
    "findings": ("Findings", "#findings-view .tv-section[data-role=assistant] .tv-tok", nothing),
    "live": ("Live", "#view .tv-tok", live),
    "compare": ("Compare", "#compare-view .tv-tok", nothing),
    "read": ("Read a text", "#read-go", read),
    "runs": ("Runs", "#explorer .ex-cell", runs),
    "analysis": ("When / How / Where", "#analysis .plot .main-svg", nothing),
    "vectors": ("About the instrument", "#vectors-figures .plot", figures),
}


def screenshot(page: Any, name: str, **options: Any) -> Path:
    path = pages.PICTURES / f"{name}.png"
    page.screenshot(path=path, **options)
    return path


def serious(page: Any, within: str | None = None, *rules: str) -> list[str]:
    """What axe-core finds wrong on the page or in a part of it, of level serious or critical; rules: the only ones."""
    page.wait_for_function(SETTLED)
    options = {"resultTypes": ["violations"], **({"runOnly": list(rules)} if rules else {})}
    found = Axe().run(page, context=within, options=options).response["violations"]
    return [f"{v['id']}: {v['nodes'][0]['html'][:160]}" for v in found if v["impact"] in ("serious", "critical")]


@pytest.fixture(scope="module")
def tabs_page(chromium: Any, url: str) -> Iterator[Any]:
    """One page for all tabs: reloading it for each would take most of the time."""
    opened = pages.Pages(chromium, ("http://127.0.0.1:",))
    yield opened.open(f"{url}#tab=findings", width=1440, height=960)
    opened.close()


def in_both_themes(page: Any) -> Iterator[tuple[str, tuple[str, ...]]]:
    """ "" and then "-dark", with the page in that theme; and the rules of axe that can differ in it, none being all."""
    yield "", ()
    page.evaluate("document.body.classList.add('dark')")
    page.evaluate(NEXT_FRAMES)  # charts are redrawn
    yield "-dark", ("color-contrast", "link-in-text-block")
    page.evaluate("document.body.classList.remove('dark')")
    page.evaluate(NEXT_FRAMES)


def test_the_page_opens_on_a_finding_of_the_real_model_and_has_its_picture(
    shipped: str, visit: Callable[..., Any]
) -> None:
    page = visit(shipped + "#")
    page.wait_for_selector("#findings-view .tv-section[data-role=assistant] .tv-tok")
    assert "SmolLM2" in page.inner_text("#masthead") and "SmolLM2" in page.inner_text("#findings-view .tv-pane")
    assert page.get_by_role("link", name="persona-tiny").is_visible()
    page.wait_for_selector("#findings-view [data-chart=ready]")
    screenshot(page, "real", full_page=False)
    card = visit(f"{shipped}?embed=1#tab=findings", width=1200, height=630)  # the picture of links to the app
    card.wait_for_selector("#findings-view [data-chart=ready]")
    assert card.locator("#masthead").is_hidden() and card.locator("#findings .finding-says").is_visible()
    screenshot(card, "persona-card", full_page=False)
    open_tab(page, "Compare", "#compare-view .tv-tok")
    page.wait_for_selector("#compare-view .tv[data-sides='2']")
    screenshot(page, "real-compare", full_page=False)


@pytest.mark.parametrize("name", list(TABS))
def test_every_tab_is_accessible_and_has_its_picture(tabs_page: Any, name: str) -> None:
    tab, ready, then = TABS[name]
    open_tab(tabs_page, tab, ready)
    then(tabs_page)
    tabs_page.wait_for_timeout(700)  # charts are drawn after the text
    tabs_page.evaluate("scrollTo(0, 0)")
    for suffix, rules in in_both_themes(tabs_page):
        assert serious(tabs_page, None, *rules) == []
        picture = screenshot(tabs_page, f"{name}{suffix}", full_page=name not in ("analysis", "vectors"))
        assert picture.stat().st_size > 10_000


def test_a_phone_is_accessible_and_has_its_picture(visit: Callable[..., Any], url: str) -> None:
    page = visit(url, width=390, height=844)
    page.wait_for_selector("#view [data-chart=ready]")
    page.wait_for_timeout(300)
    assert serious(page) == []
    screenshot(page, "live-phone", full_page=True)


def test_open_menus_and_the_tour_are_accessible_and_have_a_picture(visit: Callable[..., Any], url: str) -> None:
    page = visit(url)
    page.wait_for_selector("#view [data-chart=ready]")
    page.locator("#view [data-part=options] summary").click()
    for suffix, rules in in_both_themes(page):
        assert serious(page, "#view", *rules) == []
        if not suffix:
            screenshot(page, "choices", clip=box_of(page, "#view .tv"))
    page.locator("#view [data-part=export] summary").click()
    assert page.locator("#view [data-part=options]").get_attribute("open") is None, "one sheet at a time"
    for _, rules in in_both_themes(page):
        assert serious(page, "#view .tv-menus", *rules) == []
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.textContent") == "Export"
    page.get_by_role("button", name="Tour").click()
    for _, rules in in_both_themes(page):
        assert serious(page, ".tour-card", *rules) == []


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
    for wanted in ("Tour", "Send", "View", "Export", "sycophancy", "Hold it here"):
        assert any(wanted in text for text in texts), wanted
    for wanted in ("thumb", "play", "pin", "tv-text"):
        assert any(wanted in str(name) for name in names), wanted
    # At the end of the page the focus goes round by way of the body.
    assert [name for name, _, visible in seen if not visible and name != "BODY"] == [], "focus can be seen"


def test_choices_by_keyboard_change_every_panel(visit: Callable[..., Any], url: str) -> None:
    page = visit(url)
    page.wait_for_selector("#view [data-chart=ready]")
    page.locator("#view [data-part=options] summary").press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowDown")  # the kind of score: from specific to z
    page.keyboard.press("ArrowDown")
    assert page.locator("#view [data-part=key-unit]").inner_text() == "cosine"
    page.keyboard.press("Escape")
    page.locator("#view .tv-text").first.focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    assert page.locator("#view .tv-position").inner_text().startswith("Prompt token 1\n")
    page.wait_for_function("document.querySelector('#view .tv-live').textContent.startsWith('Prompt token 1:')")


def test_a_long_reply_makes_each_token_once(
    visit: Callable[..., Any], serve: Callable[..., str], tmp_path: Any
) -> None:
    """500 tokens, all blocks: the elements of earlier tokens stay. (benchmarks/page.py measures the time.)"""
    monitor: Any = SlowMonitor(steady_monitor(), 0.01)
    settings = AppSettings(
        vectors=str(tmp_path), results=save_hostile_results(tmp_path), max_new_tokens=500, max_seconds=900
    )
    page = visit(serve(PooledModel(lambda: monitor), settings))
    page.wait_for_selector("#view [data-chart=ready]", state="attached")
    page.locator("#controls").get_by_text("Settings", exact=True).click()
    page.get_by_label("number input for Maximum length, tokens").fill("500")
    page.keyboard.press("Tab")
    page.wait_for_function(
        "[...document.querySelectorAll('#controls input[type=range]')].some((r) => r.value === '500')"
    )
    page.evaluate(
        """() => {
          window.made = 0;
          const isToken = (node) => node.nodeType === 1 && node.matches('.tv-tok');
          const count = (node) => isToken(node) + (node.querySelectorAll?.('.tv-tok').length ?? 0);
          new MutationObserver((list) => {
            for (const { addedNodes } of list) for (const node of addedNodes) made += count(node);
          }).observe(document.querySelector('#view .tv-panes'), { childList: true, subtree: true });
        }"""
    )
    ask(page, "Tell me everything.")
    page.wait_for_selector("#view .tv[data-state=live]")
    wait_done(page)
    shown = page.locator("#view .tv-tok").count()
    assert shown >= 500
    # Sections and tokens are added in one record each at most, so that a token may be counted with its section too.
    assert shown <= page.evaluate("made") <= 2 * shown


def test_the_readme_shows_pictures_that_exist() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in re.findall(r"\]\((docs/images/[^)]+)\)", text):
        assert (ROOT / name).is_file(), name
