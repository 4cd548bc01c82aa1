"""`deepzig chat` as a person sees it, in a pty, and the bar of `deepzig quantize`."""

import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.terminal import ALT_ENTER, CTRL_C, CTRL_D, CTRL_R, UP, Terminal
from tests.talkers import TEMPLATES, make_talker

GREEDY = ("--temperature", "0")
ENDLESS = (*GREEDY, "--ignore-eos", "--context-shift", "--max-tokens", "1000000")
STATISTICS = re.compile(r"prompt \d+ tokens.*; answer \d+ tokens, ", re.DOTALL)


@pytest.fixture
def state(tmp_path: Path) -> dict[str, str]:
    """An environment in which nothing was typed before."""
    return {"XDG_STATE_HOME": str(tmp_path / "state")}


@pytest.fixture
def chat(state: dict[str, str]) -> Iterator[Terminal]:
    with Terminal("chat", *GREEDY, "--max-tokens", "20", env=state) as terminal:
        yield terminal


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_talker(tmp_path_factory.mktemp("thinker"), TEMPLATES["R1"]))


def test_two_turns_and_the_second_reuses_the_first(chat: Terminal) -> None:
    chat.wait_for("stories goes on with texts", "/help lists commands, Ctrl-D leaves.")
    chat.enter("Once upon a time")
    chat.enter("The end came.")
    chat.enter("/stats")
    chat.wait_for_prompt()
    assert "> Once upon a time\n, there was a little girl" in chat.text
    first, second = re.findall(r"prompt (\d+) tokens, (?:(\d+) cached, )?[\d.]+ tok/s", chat.text)
    assert first == ("5", "")
    assert int(second[1]) == 5 + 20 - 1, "all of the first turn but the last token, which was never computed"
    assert re.search(rf"prompt +{second[0]} tokens: 24 cached, {int(second[0]) - 24} read at", chat.text)
    assert "session  answers: 2 with 40 tokens" in chat.text


def test_an_answer_streams_until_ctrl_c_and_the_talk_goes_on(state: dict[str, str]) -> None:
    with Terminal("chat", *ENDLESS, env=state) as chat:
        chat.enter("Once upon a time")
        chat.wait_for("there was a little girl")
        assert "tok/s" not in chat.text, "it is still being written"
        chat.send(CTRL_C)
        chat.wait_for("Stopped.")
        chat.enter("/set max_tokens 5")
        chat.enter("Then")
        chat.wait_for("> Then")
        chat.wait_for_prompt()
        assert "^C" not in chat.text
        first, second = re.findall(r"prompt \d+ tokens, (?:(\d+) cached, )?[\d.]+ tok/s", chat.raw)[-2:]
        assert first == "" and int(second) > 5, "what was said before the stop is part of the talk"
        chat.send(CTRL_D)
        assert chat.exit_code() == 0


def test_a_late_ctrl_c_does_not_end_the_chat(state: dict[str, str]) -> None:
    """One that comes between the end of an answer and the next prompt."""
    with Terminal("chat", *GREEDY, "--max-tokens", "2", env=state) as chat:
        for _ in range(3):
            chat.enter("Once")
            for _ in range(5):
                chat.kill(signal.SIGINT)
            chat.wait_for_prompt()
        chat.send(CTRL_D)
        assert chat.exit_code() == 0


def test_what_is_typed_ahead_waits_for_the_prompt(state: dict[str, str]) -> None:
    with Terminal("chat", *GREEDY, "--ignore-eos", "--max-tokens", "400", env=state) as chat:
        chat.enter("Once upon a time")
        chat.wait_for("there was a little girl")
        chat.send("/set seed")
        chat.wait(lambda: chat.lines[-1] == "> /set seed")
        assert chat.text.count("/set seed") == 1


def test_ctrl_c_at_a_prompt_takes_back_what_is_typed_and_then_tells_how_to_leave(chat: Terminal) -> None:
    chat.wait_for_prompt()
    chat.send("no good idea")
    chat.wait_for("> no good idea")
    chat.send(CTRL_C)
    chat.wait_for_prompt()
    assert chat.text.count("Ctrl-D leaves") == 1
    chat.send(CTRL_C)
    chat.wait(lambda: chat.text.count("Ctrl-D leaves") == 2)
    chat.wait_for_prompt()


def test_an_interrupt_from_elsewhere_does_not_end_the_chat_but_ctrl_d_does(chat: Terminal) -> None:
    chat.wait_for_prompt()
    chat.kill(signal.SIGINT)
    chat.wait(lambda: chat.text.count("Ctrl-D leaves") == 2)
    chat.wait_for_prompt()
    chat.send(CTRL_D)
    assert chat.exit_code() == 0


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_a_chat_ended_from_outside_keeps_the_prompt_cache(
    state: dict[str, str], tmp_path: Path, number: signal.Signals
) -> None:
    with Terminal("chat", "--max-tokens", "5", "--prompt-cache", str(tmp_path / "prompts"), env=state) as chat:
        chat.enter("Once upon a time")
        chat.wait_for_prompt()
        chat.kill(number)
        assert chat.exit_code() == 128 + number
        assert "Traceback" not in chat.text
    assert list((tmp_path / "prompts").iterdir())


def test_arrow_up_brings_back_what_was_typed_in_this_chat_and_the_last(state: dict[str, str]) -> None:
    with Terminal("chat", env=state) as chat:
        chat.enter("/set seed 7")
        chat.wait_for_prompt()
        chat.send(UP)
        chat.wait(lambda: chat.lines[-1] == "> /set seed 7")
        chat.send(CTRL_C)
        chat.enter("/exit")
        assert chat.exit_code() == 0
    with Terminal("chat", env=state) as chat:
        chat.wait_for_prompt()
        chat.send(UP)
        chat.wait(lambda: chat.lines[-1] == "> /exit")
        chat.send(UP)
        chat.wait(lambda: chat.lines[-1] == "> /set seed 7")
    kept = Path(state["XDG_STATE_HOME"]) / "deepzig" / "chat_history"
    assert kept.stat().st_mode & 0o077 == 0, "what one says is nobody else's business"


def test_a_search_of_the_history_ends_with_enter_and_with_ctrl_c(chat: Terminal) -> None:
    chat.enter("/set seed 7")
    chat.wait_for_prompt()
    for key, left in ((CTRL_C, ">"), ("\r", "> /set seed 7")):
        chat.send(f"{CTRL_R}seed")
        chat.wait(lambda: chat.lines[-2:] == ["> /set seed 7", "I-search backward: seed"])
        chat.send(key)
        chat.wait(lambda left=left: chat.lines[-1] == left)


def test_history_that_cannot_be_kept_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file", encoding="utf-8")
    with Terminal("chat", env={"XDG_STATE_HOME": str(tmp_path / "state")}) as chat:
        chat.wait_for("Warning: what you write is not kept for later chats")
        chat.enter("/set seed 7")
        chat.wait_for_prompt()
        chat.send(UP)
        chat.wait(lambda: chat.lines[-1] == "> /set seed 7")


def test_messages_of_two_lines_and_errors_of_one(chat: Terminal) -> None:
    for name, keys in (("/foo", ALT_ENTER), ("/bar", "\\\r")):
        chat.wait_for_prompt()
        chat.send(f"{name} one{keys}two")
        chat.wait(lambda name=name: chat.lines[-2:] == [f"> {name} one", "  two"])
        chat.send("\r")
        chat.wait_for(f"Error: {name} is no command")
    chat.enter("/set temperature hot")
    chat.wait_for("Error: temperature takes a number, not 'hot'")
    chat.enter("Tom")
    chat.wait(lambda: STATISTICS.search(chat.text) is not None)


def test_commands_are_completed(chat: Terminal) -> None:
    chat.wait_for_prompt()
    chat.send("/he\t")
    chat.wait(lambda: chat.lines[-1] == "> /help")
    chat.send("\r")
    chat.wait_for("/undo [N]")
    chat.wait_for_prompt()
    chat.send("/set tem\t")
    chat.wait(lambda: chat.lines[-1] == "> /set temperature")
    chat.send("\r")
    chat.wait_for("temperature  0.0")


def test_files_are_completed(state: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "talk.json").write_text('{"messages": []}', encoding="utf-8")
    with Terminal("chat", *GREEDY, columns=240, env=state) as chat:  # the path fits a line
        chat.wait_for_prompt()
        chat.send(f"/load {tmp_path}/ta\t")
        chat.wait_for("/talk.json")
        chat.send("\r")
        chat.wait_for("Loaded 0 messages")


def test_a_narrow_terminal(state: dict[str, str]) -> None:
    with Terminal("chat", *GREEDY, "--max-tokens", "60", columns=40, env=state) as chat:
        chat.enter("Once upon a time there was a very small mouse who")
        chat.wait_for("> Once upon a time there was a very", "tok/s")
        chat.wait_for_prompt()
        words = set(re.findall(r"[a-z]{4,}", re.sub(r"\s+", " ", chat.raw)))
        on_screen = {word for line in chat.lines for word in re.findall(r"[a-z]{4,}", line)}
        assert {"there", "small", "mouse", "tokens"} <= words & on_screen
        answer = chat.text.partition("mouse who\n")[2].partition("\nprompt ")[0]
        assert len(answer.splitlines()) > 3 and " ".join(answer.split()) in " ".join(chat.raw.split())
        chat.enter("/help")
        chat.wait_for("take back the last turn, or the last N")
        assert all(len(line) <= 40 for line in chat.lines)


def test_colours_and_their_absence(thinker: str, state: dict[str, str]) -> None:
    arguments = ("chat", "-m", thinker, *GREEDY, "--max-tokens", "8")
    with Terminal(*arguments, env=state) as chat:
        chat.enter("Why?")
        chat.wait_for("No answer came", "tok/s")
        assert "\x1b[2m" in chat.raw and "<think>" not in chat.text
    with Terminal(*arguments, env={**state, "NO_COLOR": "1"}) as chat:
        chat.enter("Why?")
        chat.wait_for("<think>", "</think>", "No answer came", "tok/s")
        assert "\x1b[2m" not in chat.raw and not re.search(r"\x1b\[(?:\d+;)*[349]\d", chat.raw)


def test_thoughts_are_hidden(thinker: str, state: dict[str, str]) -> None:
    with Terminal("chat", "-m", thinker, *GREEDY, "--max-tokens", "8", "--hide-reasoning", env=state) as chat:
        chat.enter("Why?")
        chat.wait_for("Cut at --max-tokens 8", "No answer came", "tok/s")
        assert "thinking…" in chat.raw and "thinking…" not in chat.text
        question = chat.lines.index("> Why?")
        assert chat.lines[question + 1].startswith("Cut at --max-tokens 8")


def test_quiet_leaves_the_prompt_and_the_answer(state: dict[str, str]) -> None:
    with Terminal("chat", "-q", *GREEDY, "--max-tokens", "4", env=state) as chat:
        chat.enter("Once upon a time")
        chat.wait_for(", there was")
        chat.wait_for_prompt()
        assert chat.lines == ["", "> Once upon a time", ", there was a", "", ">"]


@pytest.mark.parametrize("columns", [80, 40])
def test_the_bar_of_a_conversion_fits_its_line(columns: int, tmp_path: Path) -> None:
    with Terminal("quantize", "stories", str(tmp_path / "int8"), "--format", "int8", columns=columns) as terminal:
        assert terminal.exit_code() == 0
    bars = [line for line in terminal.lines if line.startswith("to int8")]
    assert len(bars) == 1, "one bar, drawn over itself"
    assert re.fullmatch(r"to int8 ━+ ([\d.]+)/\1 MB .*", bars[0])
    assert "\r" in terminal.raw and "\x1b[?25l" in terminal.raw and terminal.raw.rstrip().endswith("files")
    assert terminal.raw.rindex("\x1b[?25h") > terminal.raw.rindex("\x1b[?25l"), "the cursor is there again"
