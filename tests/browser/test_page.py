"""The page with `deepzig serve` and the bundled model: what a reader does, from the first story to the export."""

import json
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium.webdriver.common.keys import Keys

from tests.browser.conftest import deepzig_serve
from tests.browser.page import Page

pytestmark = pytest.mark.browser

OPENING = "Once upon a time, there was a little dragon"
STORY = ".story-text"
KEY = "a-key-for-this-test"
ON_CHANGE = """((work) => {
  const all = {subtree: true, childList: true, characterData: true};
  new MutationObserver((_, observer) => work(observer)).observe(document.getElementById("main"), all);
})"""


@pytest.fixture
def story(page: Page, served: str) -> Page:
    """The page with a finished story of a few words."""
    page.open(served)
    page.set_settings(max_tokens=24, seed=7)
    page.write(OPENING)
    page.wait_answer()
    return page


def cancelled(url: str) -> float:
    """How many requests the server has cancelled."""
    with urllib.request.urlopen(f"{url}metrics", timeout=30) as reply:
        lines = reply.read().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if re.match(r'deepzig_\w+_total\{reason="cancelled"\}', line))


def test_a_story_streams_in(page: Page, served: str) -> None:
    page.open(served)
    page.wait_ready()
    page.run("window.lengths = new Set()")
    page.run(f"{ON_CHANGE}(() => lengths.add(document.querySelector('.passage.assistant')?.textContent.length))")
    page.click(".opening")
    page.find(".message-foot .statistics", "tokens/s")
    lengths = [length for length in page.run("return [...lengths]") if length]
    assert len(lengths) > 3 and lengths == sorted(lengths)  # it grew piece by piece
    assert page.text(STORY).startswith(OPENING)
    assert "first after" in page.text(".statistics") and "of 1,024 tokens" in page.text(".context-meter")


def test_stop_stops(page: Page, served: str) -> None:
    page.open(served)
    page.set_settings(max_tokens=900)
    page.wait_ready()
    before = cancelled(served)
    page.run(  # in the page, so that no pause of this test lets the story come to its end
        f"{ON_CHANGE}((observer) => {{ if (!document.querySelector('.passage.assistant')?.textContent) return;"
        "observer.disconnect(); document.querySelector('.send-button.running').click(); })"
    )
    page.write(OPENING)
    page.find(".note-line", "Stopped.")
    page.wait_answer()
    text = page.text(STORY)
    assert len(text) > len(OPENING)
    page.until("fetch('status').then((r) => r.json()).then((s) => s.running === 0 && s.open === 0)")
    assert cancelled(served) == before + 1
    assert page.text(STORY) == text


def test_reload_keeps_the_conversation(story: Page) -> None:
    text = story.text(STORY)
    story.until("indexedDB.databases().then((all) => all.length)")
    story.run("return new Promise((done) => setTimeout(done, 600))")  # written behind
    story.browser.refresh()
    story.wait_ready()
    assert story.text(STORY) == text
    assert OPENING[:20] in story.text(".row.open")


def test_a_story_goes_on_in_turns_and_keeps_versions(story: Page) -> None:
    first = story.text(STORY)
    story.write("Then it rained.")
    story.wait_answer()
    assert story.text(STORY).startswith(f"{first} Then it rained.")
    story.set_settings(max_tokens=24, seed=8)
    told = story.text(STORY)
    story.click("[aria-label='Tell this part differently']")
    story.wait_answer()
    assert story.text(".versions-count") == "2 / 2" and story.text(STORY) != told
    story.click("[aria-label='Previous version']")
    assert story.text(".versions-count") == "1 / 2" and story.text(STORY) == told
    story.click("[aria-label='Take this part back']")
    assert story.text(STORY) == f"{first} Then it rained."


def test_editing_a_story_keeps_the_old_one(story: Page) -> None:
    old = story.text(STORY)
    story.click("[aria-label='Edit the story']")
    area = story.find(".edit-area")
    assert area.get_attribute("value") == old
    area.clear()
    area.send_keys("A shorter one.", Keys.CONTROL, Keys.ENTER)
    story.find(".versions-count", "2 / 2")
    assert story.text(STORY) == "A shorter one."
    story.click("[aria-label='Previous version']")
    assert story.text(STORY) == old


def test_chat_answers_again_and_branches(page: Page, served: str) -> None:
    page.open(served)
    page.set_settings(max_tokens=12, seed=1)
    page.click(".mode-switch button", "Chat")
    page.write("Hello, little bird.")
    page.wait_answer()
    first = page.text(".answer > .prose")
    page.set_settings(max_tokens=12, seed=2)
    page.click("[aria-label='Answer again']")
    page.wait_answer()
    assert page.text(".answer .versions-count") == "2 / 2" and page.text(".answer > .prose") != first
    page.run("document.querySelector(\".question [aria-label='Edit']\").click()")
    page.press(" How are you?", Keys.CONTROL + Keys.ENTER)
    page.find(".question .versions-count", "2 / 2")
    page.wait_answer()
    assert page.text(".bubble") == "Hello, little bird. How are you?"
    page.click(".question [aria-label='Previous version']")
    assert page.text(".bubble") == "Hello, little bird."
    page.click(".answer [aria-label='Previous version']")
    assert page.text(".answer > .prose") == first


def test_keyboard_alone_is_enough(story: Page) -> None:
    story.press(Keys.CONTROL, Keys.SHIFT, "o")
    story.find("h1", "How does the story begin?")
    assert story.run("return document.activeElement.id") == "composer-input"
    story.press("A cat sat", Keys.SHIFT, Keys.ENTER, Keys.NULL, "on a mat.", Keys.ENTER)
    story.wait_answer()
    assert story.text(STORY).startswith("A cat sat\non a mat.")
    story.press(Keys.CONTROL, "k")
    story.press("dragon")
    story.until("document.querySelectorAll('.row').length === 1")
    story.press(Keys.TAB, Keys.ENTER)
    story.find(".row.open", OPENING[:20])


def test_the_focus_stays_where_the_reader_is(story: Page) -> None:
    focused = "document.activeElement.getAttribute('aria-label')"
    story.click("[aria-label='Tell this part differently']")
    story.find(".versions-count", "2 / 2")
    story.wait_answer()
    story.run("document.querySelector(\"[aria-label='Previous version']\").focus()")
    story.press(Keys.ENTER)
    assert story.run(f"return {focused}") == "Next version"  # there is none before
    story.run("document.querySelector(\"[aria-label='Edit the story']\").focus()")
    story.press(Keys.ENTER)
    story.press(Keys.ESCAPE)
    assert story.run(f"return {focused}") == "Edit the story"
    story.run("document.querySelector('.row a').focus()")
    story.press(Keys.ENTER)
    assert story.run("return document.activeElement.matches('.row a')")


def test_the_list_of_a_narrow_window_opens_and_closes_by_keyboard(page: Page, served: str) -> None:
    page.open(served, width=360)
    page.wait_ready()
    page.run("document.querySelector('.topbar .only-narrow').focus()")
    page.press(Keys.ENTER)
    page.until("document.activeElement.matches('.new-button')")
    page.press(Keys.ESCAPE)
    assert page.run("return document.activeElement.matches('.topbar .only-narrow')")
    page.press(Keys.ENTER)
    page.until("document.activeElement.matches('.new-button')")
    page.press(Keys.TAB, Keys.TAB, Keys.TAB, Keys.TAB)
    assert page.run("return document.activeElement.matches('.stage *') && document.getElementById('scrim').hidden")


def test_the_link_to_the_composer_stays_in_the_conversation(story: Page) -> None:
    text = story.text(STORY)
    story.run("document.querySelector('.skip-link').focus()")
    story.press(Keys.ENTER)
    story.until("document.activeElement.id === 'composer-input'")
    assert story.text(STORY) == text and story.run("return location.hash").startswith("#c=")


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory, browser: object) -> Iterator[str]:
    with deepzig_serve(tmp_path_factory.mktemp("locked") / "log", "--api-key", KEY) as url:
        yield url


def test_a_key_is_asked_for_and_kept_in_the_tab_only(page: Page, locked: str) -> None:
    page.open(locked)
    page.find("dialog", "This server asks for a key")
    page.press("a-wrong-key", Keys.ENTER)
    page.find("dialog", "The server refused this key.")
    page.press(f"{KEY}\u200b", Keys.ENTER)  # as copied from a web page
    page.find("dialog :invalid")
    page.press(Keys.BACKSPACE, Keys.ENTER)
    page.set_settings(max_tokens=8)
    page.write(OPENING)
    page.wait_answer()
    page.browser.refresh()
    page.wait_ready()
    assert page.count("dialog") == 0
    assert KEY not in page.run("return JSON.stringify(localStorage)")
    page.expect_complaint("401")


def test_without_a_key_the_page_says_so_and_asks_again(page: Page, locked: str) -> None:
    page.open(locked)
    page.click("dialog button", "Cancel")
    assert page.find("#composer-input").get_attribute("disabled")
    page.click(".model-chip.locked", "Enter an API key")
    page.find("dialog", "This server asks for a key")
    page.expect_complaint("401")


def test_export_and_import(story: Page, tmp_path: Path) -> None:
    text = story.text(STORY)
    story.cdp("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    story.click(".foot-link", "Settings")
    story.click("dialog .button", "Export all")
    file = tmp_path / "deepzig-conversations.json"
    story.until("new Promise((done) => setTimeout(() => done(true), 300))")
    assert json.loads(file.read_text(encoding="utf-8"))["format"] == "deepzig-conversations"
    story.click("dialog .button", "Delete all")
    story.browser.switch_to.alert.accept()
    story.until("document.querySelectorAll('.row').length === 0")
    story.click(".foot-link", "Settings")
    picker = story.run("return document.querySelector('dialog input[type=file]')")
    broken = tmp_path / "broken.json"
    broken.write_text('{"format": "deepzig-conversations", "version": 1, "conversations": [{"nodes": {"a": 1}}]}')
    picker.send_keys(str(broken))
    story.find(".toast", "predecessor is missing")
    picker.send_keys(str(file))
    story.find(".toast", "Imported 1 conversation.")
    story.click(".row a")
    assert story.text(STORY) == text


def test_status_shows_what_the_server_does(story: Page) -> None:
    story.click(".foot-link", "Status")
    assert "stories" in story.text(".status-page .facts")
    for name in ("Load", "Speed", "Cache"):
        assert story.find(".card", name)
    written = story.text(".card", "Tokens written")
    assert int(written.partition("Tokens written")[2].split()[0].replace(",", "")) > 0
    story.click(".row a")
    assert story.text(STORY).startswith(OPENING)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_every_place_fits_and_can_be_read(page: Page, served: str, width: int, scheme: str) -> None:
    page.open(served, width=width, scheme=scheme)
    page.set_settings(max_tokens=8)
    page.wait_ready()
    assert_fits(page)
    page.write(OPENING)
    page.wait_answer()
    assert_fits(page)
    if width == 360:
        page.click(".topbar [aria-label='Conversations']")
        page.until("document.activeElement.matches('.new-button')")
    page.click(".foot-link", "Settings")
    assert_fits(page)
    page.press(Keys.ESCAPE)
    page.run("location.hash = 'status'")
    page.find(".card", "Load")
    assert_fits(page)


READABLE = """
  const channel = (c) => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const parse = (color) => color.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const ground = (e) => { for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor);
    if (c.length < 4 || c[3] === 1) return c; } return [255, 255, 255]; };
  const bad = [];
  for (const e of document.querySelectorAll("body *")) {
    const hasText = [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    const isSeen = e.checkVisibility({visibilityProperty: true, opacityProperty: true});
    if (!hasText || !isSeen || e.closest(":disabled")) continue;
    const [a, b] = [light(parse(getComputedStyle(e).color)), light(ground(e))].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) bad.push(`${e.className || e.tagName}: ${e.textContent.slice(0, 30)}`);
  }
  return bad;
"""
NAMELESS = """
  const controls = "button, a, input, textarea, select, summary, progress, [role=img]";
  const isNamed = (e) => e.getAttribute("aria-label") || e.textContent.trim() || e.labels?.length;
  const nameless = (e) => e.checkVisibility() && !isNamed(e);
  return [...document.querySelectorAll(controls)].filter(nameless).map((e) => e.outerHTML);
"""


def assert_fits(page: Page) -> None:
    """Nothing is wider than the window, text has the contrast of WCAG AA, and every control has a name."""
    assert page.run("return document.documentElement.scrollWidth - innerWidth") <= 0
    assert page.run("const m = document.getElementById('main'); return m.scrollWidth - m.clientWidth") <= 0
    assert page.run(READABLE) == []
    assert page.run(NAMELESS) == []
