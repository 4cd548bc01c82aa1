"""What the page makes of answers that the bundled model never gives: HTML, Markdown, thoughts, a queue, failures."""

from collections.abc import Iterable
from typing import Any

import pytest
from selenium.webdriver.common.keys import Keys

from tests.browser.page import Page
from tests.browser.scripted_server import MODEL, Event, Scripted, answering, delta, ending, progress

pytestmark = pytest.mark.browser

FOR_EVER = 60.0

HOSTILE = """<script>window.hacked = 1</script><img src=x onerror="window.hacked = 2">
[link](javascript:window.hacked=3) ![picture](http://127.0.0.1:9/tracker.png)

<iframe src="http://127.0.0.1:9/"></iframe>

```html
<script>window.hacked = 4</script>
```

| a | b |
|---|---|
| <b onclick=alert(1)>x</b> | $\\href{javascript:1}{<script>}$ |
"""
RICH = """# Title

Euler: $e^{i\\pi} + 1 = 0$, prices: $5 and $10.

$$\\sum_{i=1}^n i = \\frac{n(n+1)}{2}$$

| name | value |
|:-----|------:|
| a    | **1** |

```python
def f(x):
    return x + 1  # one more
```
"""


def test_html_in_an_answer_stays_text(page: Page, scripted: Scripted) -> None:
    pieces = [HOSTILE[start : start + 3] for start in range(0, len(HOSTILE), 3)]
    page.open(scripted(answering(*pieces)).url)
    page.write("<script>window.hacked = 5</script>")
    page.wait_answer()
    shown = page.text(".answer > .prose")
    assert "<script>window.hacked = 1</script>" in shown and "<iframe" in shown
    assert page.text(".bubble") == "<script>window.hacked = 5</script>"
    assert page.count(".thread script, .thread img, .thread iframe, .thread b") == 0
    assert set(page.run("return [...document.querySelectorAll('.thread a')].map((a) => a.protocol)")) == {"http:"}
    assert page.run("return window.hacked") is None


def test_markdown_code_tables_and_formulas_are_drawn(page: Page, scripted: Scripted) -> None:
    page.open(scripted(answering(RICH)).url)
    page.write("Show me.")
    page.wait_answer()
    assert page.text(".prose h1") == "Title"
    assert page.count(".prose math") == 2 and page.count(".formula mfrac") == 1
    assert "prices: $5 and $10." in page.text(".prose")
    assert page.run("return getComputedStyle(document.querySelector('.prose td:last-child')).textAlign") == "right"
    assert page.text(".code-keyword") == "def" and page.text(".code-comment") == "# one more"
    widths = "[...document.querySelectorAll('.formula munderover *')].map((e) => e.getBoundingClientRect().width)"
    assert all(width > 0 for width in page.run(f"return {widths}"))  # MathML is drawn, not just there
    page.cdp("Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"])
    page.click("[aria-label='Copy code']")
    page.find("[aria-label='Copied']")
    assert page.run("return navigator.clipboard.readText()") == "def f(x):\n    return x + 1  # one more"


def test_thoughts_show_while_they_last_and_are_not_sent_back(page: Page, scripted: Scripted) -> None:
    def reply(body: dict[str, Any]) -> Iterable[Event]:
        yield delta(role="assistant", content="")
        yield delta(reasoning_content="Let me think ")
        yield delta(reasoning_content="about it.")
        yield 1.0
        yield delta(content="Because.")
        yield from ending()

    server = scripted(reply)
    page.open(server.url)
    page.set_settings(thinking="on", temperature=0.3, system="Be brief.")
    page.write("Why?")
    assert page.text(".thinking[open] .thinking-text") == "Let me think about it."
    page.wait_answer()
    assert page.text(".thinking summary").startswith("Thought for")
    assert not page.find(".thinking").get_attribute("open")
    page.write("Really?")
    page.wait_answer()
    body = server.bodies[-1]
    assert body["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "Because."},
        {"role": "user", "content": "Really?"},
    ]
    assert body["chat_template_kwargs"] == {"thinking": True} and body["temperature"] == 0.3
    assert "top_p" not in body and body["stream_options"] == {"include_usage": True}


def test_queue_and_prompt_show_before_the_answer_and_stop_closes_the_stream(page: Page, scripted: Scripted) -> None:
    def reply(body: dict[str, Any]) -> Iterable[Event]:
        yield progress(4096, 0, queue_position=2)
        yield 1.0
        yield progress(4096, 1024, time_ms=3000)
        for _ in range(300):
            yield 0.1

    server = scripted(reply)
    page.open(server.url)
    page.write("A long prompt.")
    page.find(".progress-line", "2 ahead of this one")
    line = page.text(".progress-line", "Reading the prompt")
    assert "1,024 of 4,096 tokens, about 9.0 s left" in line
    assert page.find("progress").get_attribute("value") == "1024"
    page.press(Keys.ESCAPE)
    page.find(".note-line", "Stopped before it began.")
    assert server.ended_by_page.wait(30)


def test_an_answer_that_was_cut_short_goes_on(page: Page, scripted: Scripted) -> None:
    def reply(body: dict[str, Any]) -> Iterable[Event]:
        is_second = body["messages"][-1].get("prefix")
        return [delta(content=" two." if is_second else "One,"), *ending("stop" if is_second else "length")]

    server = scripted(reply)
    page.open(server.url)
    page.write("Count.")
    page.click(".note-line button", "Go on")
    page.until("document.querySelector('.answer > .prose').textContent === 'One, two.'")
    assert server.bodies[-1]["messages"][-1] == {"role": "assistant", "content": "One,", "prefix": True}


def test_a_failure_in_mid_stream_keeps_the_text_and_can_be_tried_again(page: Page, scripted: Scripted) -> None:
    attempts: list[int] = []

    def reply(body: dict[str, Any]) -> Iterable[Event]:
        attempts.append(1)
        if len(attempts) > 1:
            return [delta(content="All of it."), *ending()]
        return [delta(content="Half"), {"error": {"message": "the engine has a problem", "code": "engine_error"}}]

    page.open(scripted(reply).url)
    page.write("Go.")
    assert "the engine has a problem" in page.text(".problem") and "req_scripted" in page.text(".problem")
    assert page.text(".answer > .prose") == "Half"
    page.click(".problem button", "Try again")
    page.until("document.querySelector('.answer > .prose').textContent === 'All of it.'")
    assert page.count(".problem") == 0 and page.text(".answer .versions-count") == "2 / 2"


def test_nothing_is_asked_before_the_model_is_there(page: Page, scripted: Scripted) -> None:
    server = scripted(answering("Well."))
    page.open(server.url)
    page.write("Go.")
    page.wait_answer()
    page.run("return new Promise((done) => setTimeout(done, 900))")  # written behind
    page.cdp("Network.enable")
    page.cdp("Network.setBlockedURLs", urls=["*/v1/models"])
    page.browser.refresh()
    page.click("[aria-label='Answer again']")
    page.find(".toast", "The server cannot be reached.")
    page.until("document.querySelector('#composer-input').placeholder === 'The server cannot be reached'")
    page.cdp("Network.setBlockedURLs", urls=[])
    page.wait_answer()
    assert page.count(".versions") == 0 and len(server.bodies) == 1


def test_esc_that_ends_the_input_of_a_word_stops_nothing(page: Page, scripted: Scripted) -> None:
    page.open(scripted(lambda body: [delta(content="One"), FOR_EVER]).url)
    page.write("Go.")
    page.find(".answer > .prose", "One")
    page.run("document.querySelector(\".question [aria-label='Edit']\").click()")
    esc = "new KeyboardEvent('keydown', {key: 'Escape', isComposing: true, bubbles: true})"
    page.run(f"for (const name of ['.edit-area', '#composer-input']) document.querySelector(name).dispatchEvent({esc})")
    assert page.count(".edit-area") == 1 and page.count(".send-button.running") == 1
    page.press(Keys.ESCAPE, Keys.ESCAPE)
    page.find(".note-line", "Stopped.")


@pytest.mark.parametrize("width", [360, 1280])
def test_a_long_name_of_a_model_fits(page: Page, scripted: Scripted, width: int) -> None:
    page.open(scripted(answering("x"), model={**MODEL, "id": "deepseek_v3_1_terminus" * 8}).url, width=width)
    page.wait_ready()
    for element in ("document.documentElement", "document.getElementById('main')"):
        assert page.run(f"return {element}.scrollWidth - {element}.clientWidth") <= 0


def test_texts_from_right_to_left_begin_at_the_right(page: Page, scripted: Scripted) -> None:
    page.open(scripted(answering("שלום, עולם!\n\nHello, world!\n\n- שלום!")).url)
    page.write("מה שלומך?")
    page.wait_answer()
    begin_and_end = """
      const text = document.querySelector(arguments[0]).firstChild;
      const range = document.createRange();
      const left = (at) => (range.setStart(text, at), range.setEnd(text, at + 1), range.getBoundingClientRect().left);
      return [left(0), left(text.length - 1)];
    """
    for selector in (".bubble", ".answer p", ".answer li"):
        begin, end = page.run(begin_and_end, selector)
        assert begin > end  # also of the mark that ends it
    begin, end = page.run(begin_and_end, ".answer p + p")
    assert begin < end


def test_a_server_that_comes_back_with_another_model_is_met_again(page: Page, scripted: Scripted) -> None:
    def reply(body: dict[str, Any]) -> Iterable[Event]:
        if body["model"] == server.model["id"]:
            return answering("Well.")(body)
        raise ConnectionError  # the stream has no end, as when a server stops

    server = scripted(reply)
    page.open(server.url)
    page.wait_ready()
    server.model = {**MODEL, "id": "another"}
    page.write("Go.")
    page.find(".problem")
    page.find(".model-chip.ready", "another")
    page.click(".problem button", "Try again")
    page.until("document.querySelector('.answer > .prose').textContent === 'Well.'")


def test_copying_without_a_clipboard_keeps_the_focus(page: Page, scripted: Scripted) -> None:
    page.open(scripted(answering("Well.")).url)
    page.write("Go.")
    page.wait_answer()
    page.run("Object.defineProperty(navigator, 'clipboard', {value: undefined})")  # as without TLS
    page.run("document.querySelector(\".answer [aria-label='Copy']\").focus()")
    page.press(Keys.ENTER)
    page.find(".answer [aria-label='Copied']")
    assert page.run("return document.activeElement.getAttribute('aria-label')") == "Copied"


def test_a_status_that_hangs_is_asked_for_once(page: Page, scripted: Scripted) -> None:
    page.open(scripted(answering("Well.")).url)
    page.wait_ready()
    hangs = "String(url).endsWith('/status') ? (asked++, new Promise(() => {})) : real(url, options)"
    page.run(f"const real = fetch; window.asked = 0; window.fetch = (url, options) => {hangs}")
    page.click(".foot-link", "Status")
    assert page.run("return new Promise((done) => setTimeout(() => done(asked), 2500))") == 1


def test_a_connection_that_breaks_is_told_in_words(page: Page, scripted: Scripted) -> None:
    page.open(scripted(answering("Well.")).url)
    page.wait_ready()
    broken = "new Response(new ReadableStream({pull: (to) => to.error(new TypeError('network error'))}))"
    choice = f"String(url).endsWith('/completions') ? Promise.resolve({broken}) : real(url, options)"
    page.run(f"const real = fetch; window.fetch = (url, options) => {choice}")
    page.write("Go.")
    assert "The connection ended before the answer did." in page.text(".problem")


def test_screen_readers_hear_whole_sentences(page: Page, scripted: Scripted) -> None:
    text = "The first sentence is here. The second one follows it. And a third, unfinished"

    def reply(body: dict[str, Any]) -> Iterable[Event]:
        for word in text.split(" "):
            yield delta(content=f"{word} ")
            yield 0.3
        yield from ending()

    page.open(scripted(reply).url)
    page.write("Speak.")
    page.wait_answer()
    heard = page.run("return [...document.querySelectorAll('#announcements p')].map((p) => p.textContent)")
    spoken = heard[heard.index("The answer is being written") + 1 :]
    assert " ".join(spoken) == text
    assert len(spoken) < len(text.split(" ")) / 2 and all(piece.endswith(".") for piece in spoken[:-1])


def test_a_model_without_chat_template_gets_a_page_for_writing(page: Page, scripted: Scripted) -> None:
    model = {**MODEL, "id": "base", "meta": {**MODEL["meta"], "has_chat_template": False, "has_thinking": False}}
    text = {"choices": [{"index": 0, "text": " and more", "finish_reason": "length"}]}
    server = scripted(lambda body: [text], model=model)
    page.open(server.url)
    page.find("h1", "How does the story begin?")
    assert page.count(".mode-switch") == 0 and page.count(".opening") == 0
    page.write("One thing")
    page.wait_answer()
    assert page.text(".story-text") == "One thing and more"
    page.press(Keys.ENTER)  # nothing written: the model goes on
    page.until("document.querySelector('.story-text').textContent === 'One thing and more and more'")
    assert [body["prompt"] for body in server.bodies] == ["One thing", "One thing and more"]


def test_a_story_that_outgrows_the_context_goes_on_from_its_second_half(page: Page, scripted: Scripted) -> None:
    def reply(body: dict[str, Any]) -> Iterable[Event]:
        n_prompt = len(body["prompt"]) // 5  # five characters a token
        usage = {"prompt_tokens": n_prompt, "completion_tokens": 2, "total_tokens": n_prompt + 2}
        return [
            {"choices": [{"index": 0, "text": " It rained.", "finish_reason": "length"}]},
            {"choices": [], "usage": usage},
        ]

    model = {**MODEL, "max_model_len": 400, "meta": {**MODEL["meta"], "has_chat_template": False}}
    server = scripted(reply, model=model)
    page.open(server.url)
    for _ in range(2):
        page.write("They went on and on. " * 24)
        page.wait_answer()
    for tail in ("a", "bc"):
        page.run("document.getElementById('composer-input').value = '😀'.repeat(3000)")
        page.write(tail)
        page.wait_answer()
    first, second, *rest = (body["prompt"] for body in server.bodies)
    assert all(prompt.isprintable() for prompt in rest)  # half a character would not be
    assert first == "They went on and on. " * 24  # 101 tokens, and room for 200 more
    assert second.startswith("They went on") and len(second) <= 400 / 2 * 5 and second.endswith("on and on. ")
    page.find(".note-line", "has outgrown the model's context")
    assert page.text(".story-text").count("They went") == 48


def test_experts_are_drawn_with_words_beside_them(page: Page, scripted: Scripted) -> None:
    status = {
        "state": "ready", "model": "m", "context": 64, "uptime_s": 100.0, "open": 2, "running": 1, "queue": 1,
        "pages": {"total": 10, "held": 5, "prefix": 2}, "tokens_per_s": {"prompt": 50.0, "decode": 7.25},
        "tokens": {"prompt": 1000, "cached": 250, "decoded": 2500}, "speculation": {"drafted": 100, "accepted": 80},
        "expert_load": [{"layer": 3, "counts": [1, 2, 7, 0]}, {"layer": 4, "counts": [5, 5, 5, 6]}],
    }  # fmt: skip
    page.open(scripted(answering("x"), status=status).url + "#status")
    cache, speed = page.text(".card", "50 %"), page.text(".card", "80 % of 100")
    assert "Cache" in cache and "25 %" in cache and "Speed" in speed and "7.3" in speed
    page.click(".card summary", "The busiest expert")
    assert page.text(".card", "Experts").endswith("Layer 3\nexpert 2, 70.0 %\nLayer 4\nexpert 3, 28.6 %")
    cells = "[...document.querySelectorAll('.experts rect')]"
    opacity = page.run(f"return {cells}.map((cell) => +cell.getAttribute('fill-opacity'))")
    assert len(opacity) == 8 and opacity[2] == 1.0 and opacity[0] < opacity[1] < opacity[2]
