"""What becomes of conversations: kept, deleted, imported, written in two tabs, in versions."""

import json
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver.common.keys import Keys

from tests.browser.page import Page
from tests.browser.scripted_server import MODEL, Event, Scripted, answering, delta, ending

pytestmark = pytest.mark.browser

FOR_EVER = 60.0


def bring_in(page: Page, file: Path, nodes: dict[str, Any]) -> None:
    """Import a chat whose messages answer each other in turn."""
    parents = ["root", *nodes]
    for parent, node in zip(parents, nodes.values(), strict=False):
        node["parent"] = parent
    chat = {"mode": "chat", "title": "From a file", "nodes": nodes, "chosen": dict(zip(parents, nodes, strict=False))}
    file.write_text(json.dumps({"format": "deepzig-conversations", "version": 1, "conversations": [chat]}))
    page.click(".foot-link", "Settings")
    page.run("return document.querySelector('dialog input[type=file]')").send_keys(str(file))
    page.find(".toast")


def test_a_page_that_was_closed_in_mid_answer_says_interrupted(page: Page, scripted: Scripted) -> None:
    page.open(scripted(lambda body: [delta(content="It begins"), FOR_EVER]).url)
    page.write("Go.")
    page.find(".answer > .prose", "It begins")
    page.run("return new Promise((done) => setTimeout(done, 900))")  # written behind
    page.browser.refresh()
    page.find(".note-line", "Interrupted")
    assert page.text(".answer > .prose") == "It begins"


def test_an_answer_goes_on_while_another_conversation_is_shown(page: Page, scripted: Scripted) -> None:
    page.open(scripted(lambda body: [delta(content="One. "), 1.5, delta(content="Two."), *ending()]).url)
    page.write("First.")
    page.find(".answer > .prose", "One.")
    page.click(".new-button")
    page.find("h1", MODEL["id"])
    page.until("document.querySelectorAll('.row .pulse').length === 0")
    page.click(".row a", "First.")
    page.until("document.querySelector('.answer > .prose')?.textContent === 'One. Two.'")


def test_a_conversation_that_is_deleted_in_mid_answer_stays_deleted(page: Page, scripted: Scripted) -> None:
    server = scripted(lambda body: [delta(content="It begins"), FOR_EVER])
    page.open(server.url)
    page.write("Go.")
    page.find(".answer > .prose", "It begins")
    page.run("document.querySelector('.row-delete').click()")
    page.find("h1", MODEL["id"])
    page.run("return new Promise((done) => setTimeout(done, 900))")  # written behind
    page.browser.refresh()
    page.wait_ready()
    assert page.count(".row") == 0


def test_a_story_that_is_edited_while_it_grows_keeps_the_edit(page: Page, scripted: Scripted) -> None:
    model = {**MODEL, "meta": {**MODEL["meta"], "has_chat_template": False}}
    page.open(scripted(lambda body: [{"choices": [{"index": 0, "text": " it"}]}, FOR_EVER], model=model).url)
    page.write("There")
    page.find(".passage.assistant", "it")
    page.press(Keys.ARROW_UP)
    page.press(" was", Keys.CONTROL + Keys.ENTER)
    page.find(".toast", "Stop it first.")
    page.click(".send-button.running")
    page.click(".edit-box button", "Save")
    page.find(".versions-count", "2 / 2")
    assert page.text(".story-text") == "There it was"


def test_two_tabs_keep_what_both_write(page: Page, scripted: Scripted) -> None:
    finish = threading.Event()

    def reply(body: dict[str, Any]) -> Iterable[Event]:
        if body["messages"][-1]["content"] != "First":
            return answering("To the second.")(body)
        return (event for n in range(600) if n < 2 or not finish.is_set() for event in (delta(content=f"{n} "), 0.1))

    page.open(scripted(reply).url)
    page.write("First")
    page.find(".answer > .prose", "1")
    address = page.run("return new Promise((done) => setTimeout(() => done(location.href), 900))")  # written behind
    other = Page(page.browser)
    other.browser.get(address)
    other.wait_ready()
    other.run("document.querySelector(\".question [aria-label='Edit']\").click()")
    other.press(" and second")
    length = len(other.text(".answer > .prose"))
    other.until("document.querySelector('.answer > .prose').textContent.length > arguments[0]", length)
    other.press("!", Keys.CONTROL + Keys.ENTER)  # the field is there still, with the focus
    other.find(".answer > .prose", "To the second.")
    assert other.text(".bubble") == "First and second!"
    other.run("return new Promise((done) => setTimeout(done, 900))")
    finish.set()
    other.close()
    page.complaints += other.complaints
    page.browser.switch_to.window(page.browser.window_handles[-1])
    page.wait_answer()
    page.run("return new Promise((done) => setTimeout(done, 900))")
    page.browser.refresh()
    page.wait_ready()
    page.click(".question [aria-label='Next version']")
    assert page.text(".bubble") == "First and second!" and page.text(".answer > .prose") == "To the second."


def test_a_title_can_be_written_while_an_answer_ends(page: Page, scripted: Scripted) -> None:
    page.open(scripted(lambda body: [delta(content="One"), 1.5, *ending()]).url)
    page.write("Go.")
    page.find(".answer > .prose", "One")
    page.find("input.topbar-title").send_keys(" On")
    page.wait_answer()
    page.press(" and on", Keys.ENTER)
    page.find(".row a", "Go. On and on")


def test_esc_stops_the_answer_after_a_search(page: Page, scripted: Scripted) -> None:
    page.open(scripted(lambda body: [delta(content="One"), FOR_EVER]).url)
    page.wait_ready()
    page.press(Keys.CONTROL, "k")
    page.write("Go.")
    page.find(".answer > .prose", "One")
    page.press(Keys.ESCAPE)
    page.find(".note-line", "Stopped.")


def test_the_page_says_when_conversations_are_not_kept(page: Page, scripted: Scripted) -> None:
    server = scripted(answering("Well."))
    page.open(server.url)
    page.wait_ready()
    origin = server.url.rstrip("/")
    page.cdp("Storage.overrideQuotaForOrigin", origin=origin, quotaSize=1000)
    page.run("document.getElementById('composer-input').value = 'long '.repeat(100_000)")
    page.write("text")
    page.find(".toast", "is its storage full?")
    page.wait_answer()
    page.cdp("Storage.overrideQuotaForOrigin", origin=origin)


def test_the_page_works_where_storage_is_forbidden(page: Page, scripted: Scripted) -> None:
    forbid = "get() { throw new DOMException('no', 'SecurityError'); }"
    names = "['localStorage', 'sessionStorage', 'indexedDB']"
    script = f"for (const name of {names}) Object.defineProperty(window, name, {{ {forbid} }});"
    page.cdp("Page.addScriptToEvaluateOnNewDocument", source=script)
    page.open(scripted(answering("Well.")).url)
    page.write("Go.")
    page.wait_answer()
    assert page.text(".answer > .prose") == "Well." and page.count(".row") == 1


def test_a_title_is_cut_between_characters(page: Page, scripted: Scripted) -> None:
    page.open(scripted(answering("Well.")).url)
    page.wait_ready()
    page.run("document.getElementById('composer-input').value = `a${'😀'.repeat(40)}`")
    page.write("!")
    page.wait_answer()
    assert page.text(".row a") == f"a{'😀' * 23}…"


def test_a_failed_answer_without_an_error_is_not_imported(page: Page, scripted: Scripted, tmp_path: Path) -> None:
    page.open(scripted(answering("x")).url)
    page.wait_ready()
    bring_in(page, tmp_path / "bad.json", {"a": {"role": "assistant", "content": "Half", "state": "failed"}})
    assert "no text where its error should be" in page.text(".toast") and page.count(".row") == 0


def test_a_long_conversation_is_not_searched_for_each_message(page: Page, scripted: Scripted, tmp_path: Path) -> None:
    page.open(scripted(answering("x")).url)
    page.wait_ready()
    roles = ("user", "assistant")
    bring_in(
        page, tmp_path / "long.json", {f"m{i}": {"role": roles[i % 2], "content": f"Text {i}"} for i in range(600)}
    )
    page.run("const all = Object.values; window.calls = 0; Object.values = (item) => (window.calls++, all(item))")
    page.click(".row a")
    page.find(".answer", "Text 599")
    assert page.run("return window.calls") < 100


def test_versions_can_be_looked_at_while_another_is_written(page: Page, scripted: Scripted) -> None:
    def reply(body: dict[str, Any]) -> Iterable[Event]:
        if len(server.bodies) == 1:
            return answering("The first.")(body)
        return (event for n in range(600) for event in (delta(content=f"{n} "), 0.05))

    server = scripted(reply)
    page.open(server.url)
    page.write("Go.")
    page.wait_answer()
    page.click("[aria-label='Answer again']")
    page.find(".answer > .prose", "1 2")
    page.run("window.arrow = document.querySelector(\"[aria-label='Previous version']\")")
    page.find(".answer > .prose", "5 6 7")
    assert page.run("return window.arrow.isConnected")  # else a click that lasts longer than a frame would miss it
    page.click("[aria-label='Previous version']")
    assert page.text(".answer > .prose") == "The first."


def test_settings_of_an_older_page_and_of_others_do_no_harm(page: Page, scripted: Scripted) -> None:
    server = scripted(answering("ok"))
    page.open(server.url)
    page.set_settings(temperature="hot", stop="a\nb")
    page.write("Hi")
    page.wait_answer()
    assert "temperature" not in server.bodies[-1] and server.bodies[-1]["stop"] == ["a", "b"]
    page.set_settings(stop=5)
    page.write("Hi")
    page.until("document.querySelectorAll('.answer').length === 2")
    page.wait_answer()
    assert "stop" not in server.bodies[-1]
    page.run("localStorage.setItem('deepzig.settings', 'no JSON')")
    page.browser.refresh()
    page.write("Hi")
    page.wait_answer()
    assert len(server.bodies) == 3
