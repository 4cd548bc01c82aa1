"""Commands of a chat: what they do, what they say, and one line for each mistake."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import deepzig
from deepzig.cli.chat_commands import COMMANDS, Outcome, is_command, run_command
from deepzig.cli.chat_session import ChatSession, Turn
from deepzig.engine.llm import LLM
from deepzig.errors import RequestError
from tests.cli.chats import said
from tests.talkers import TEMPLATES, make_talker


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    with deepzig.load(make_talker(tmp_path_factory.mktemp("talker"), TEMPLATES["V3.1"])) as llm:
        yield llm


@pytest.fixture
def session(talker: LLM) -> ChatSession:
    session = ChatSession(talker)
    session.turns = [Turn("Why?", "So."), Turn("Really?\nSay it.", "Yes.", "Hm.")]
    return session


def shown(outcome: Outcome) -> str:
    return "\n".join([*(f"{name}: {text}" for name, text in outcome.rows), *outcome.lines])


def test_a_blank_makes_a_message_of_a_command() -> None:
    assert is_command("/help") and not is_command(" /help") and not is_command("help")


def test_help_lists_every_command(session: ChatSession) -> None:
    text = shown(run_command(session, "/help"))
    assert all(f"{name} {command.takes}".strip() + ": " + command.help in text for name, command in COMMANDS.items())
    assert "Ctrl-D leaves" in text


def test_the_page_tells_of_every_command() -> None:
    page = (Path(__file__).parents[2] / "docs" / "chat.md").read_text(encoding="utf-8").replace("\\|", "|")
    usages = [f"{name} {command.takes}".strip() for name, command in COMMANDS.items()]
    assert re.findall(r"^\| `(/.*?)` \|", page, re.MULTILINE) == usages


def test_what_was_said_is_forgotten(session: ChatSession) -> None:
    session.system = "Be short."
    assert shown(run_command(session, "/clear")) == "Forgotten; the system message stays."
    assert session.turns == [] and session.system == "Be short."


def test_turns_are_taken_back(session: ChatSession) -> None:
    assert shown(run_command(session, "/undo")) == "Took back: Really? Say it."
    session.turns.append(Turn("long " * 30, ""))
    assert shown(run_command(session, "/undo 2")).splitlines()[1] == "Took back: " + ("long " * 12)[:59] + "…"
    assert session.turns == []


def test_another_answer_to_the_last_message(session: ChatSession) -> None:
    session.params = deepzig.SamplingParams(max_tokens=5)
    outcome = run_command(session, "/retry")
    assert outcome.answer is not None
    list(outcome.answer)
    assert [turn.message for turn in session.turns] == ["Why?", "Really?\nSay it."]
    assert session.turns[1].answer not in ("", "Yes.")


def test_system_message(session: ChatSession) -> None:
    assert shown(run_command(session, "/system")) == "There is no system message."
    assert shown(run_command(session, "/system Be short.\nBe kind.")) == "System message: Be short.\nBe kind."
    assert session.messages[0] == {"role": "system", "content": "Be short.\nBe kind."}
    run_command(session, "/system off")
    assert session.system is None


@pytest.mark.parametrize(
    ("line", "name", "value", "says"),
    [
        ("/set temperature 0.7", "temperature", 0.7, "temperature: 0.7"),
        ("/set max_tokens 12", "max_tokens", 12, "max_tokens: 12"),
        ("/set top_k  3", "top_k", 3, "top_k: 3"),
        ("/set top-k 3", "top_k", 3, "top_k: 3"),
        ("/set seed 5", "seed", 5, "seed: 5"),
        ("/set ignore_eos on", "ignore_eos", True, "ignore_eos: on"),
        ("/set stop The end", "stop", ("The end",), 'stop: ["The end"]'),
        (r'/set stop "\n"', "stop", ("\n",), r'stop: ["\n"]'),
        ('/set stop ["a", "b"]', "stop", ("a", "b"), 'stop: ["a", "b"]'),
        ("/set speculation off", "speculation", "off", "speculation: off"),
    ],
)
def test_parameters_are_set(session: ChatSession, line: str, name: str, value: object, says: str) -> None:
    assert shown(run_command(session, line)) == says
    assert getattr(session.params, name) == value
    run_command(session, f"/set {name} default")
    assert session.params == session.defaults


def test_parameters_are_shown_as_they_are_used(session: ChatSession) -> None:
    rows = dict(run_command(session, "/set").rows)
    assert rows["temperature"] == "0.8 (the model's)" and rows["max_tokens"] == "1024" and rows["seed"] == "none"
    assert run_command(session, "/set min_p").rows == [("min_p", "0.0")]


def test_thinking_is_switched(session: ChatSession) -> None:
    assert shown(run_command(session, "/think")) == "Thinking: as the model likes."
    assert shown(run_command(session, "/think on")) == "Thinking: on."
    assert shown(run_command(session, "/think off")) == "Thinking: off." and session.thinking is False


def test_a_saved_conversation_goes_on(session: ChatSession, tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    session.system = "Be short."
    messages = session.messages
    assert shown(run_command(session, f"/save {path}")) == f"Saved 5 messages to {path}."
    other = ChatSession(session.llm)
    assert shown(run_command(other, f"/load {path}")) == f"Loaded 5 messages from {path}."
    assert other.messages == messages and other.system == "Be short."


def test_a_conversation_without_its_last_answer(session: ChatSession, tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    path.write_text(json.dumps([{"role": "user", "content": "Why?"}]), encoding="utf-8")
    assert "/retry asks for it" in shown(run_command(session, f"/load {path}"))
    assert session.unanswered == "Why?" and session.turns == []


def test_paths_may_begin_at_home(session: ChatSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    run_command(session, "/save ~/a talk.json")
    assert (tmp_path / "a talk.json").is_file()


def test_statistics(session: ChatSession) -> None:
    assert [name for name, _ in run_command(session, "/stats").rows] == ["session"]
    session.clear()
    session.params = deepzig.SamplingParams(max_tokens=5, temperature=0, ignore_eos=True)
    said(session, "A question that nobody asked before")
    said(session, "And another")
    rows = dict(run_command(session, "/stats").rows)
    assert session.report is not None
    timings = session.report.timings
    n_cached, n_new = timings.cached_tokens, timings.prompt_tokens - timings.cached_tokens
    assert rows["prompt"].startswith(f"{timings.prompt_tokens} tokens: {n_cached} cached, {n_new} read at ")
    assert timings.cached_tokens > 0
    assert rows["answer"].startswith("5 tokens at ")
    assert rows["context"] == f"{timings.prompt_tokens + 5} of 1024 tokens"
    assert rows["session"].startswith("answers: 2 with 10 tokens; prompts: ")


def test_the_end(session: ChatSession) -> None:
    assert run_command(session, "/exit").is_end
    assert not run_command(session, "/help").is_end


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/", "/ is no command; /help lists them"),
        ("/hepl", "/hepl is no command; perhaps /help;"),
        ("/clear all", "/clear takes nothing, but got 'all'"),
        ("/undo x", "/undo takes a whole number, not 'x'"),
        ("/undo 0", "/undo takes back at least 1 turn"),
        ("/undo 3", "turns to take back: 2"),
        ("/set heat 3", "/set knows no 'heat'; it takes max_tokens, temperature,"),
        ("/set temperature hot", "temperature takes a number, not 'hot'"),
        ("/set temperature -1", "temperature -1.0 is below 0"),
        ("/set top_k 1.5", "top_k takes a whole number, not '1.5'"),
        ("/set ignore_eos maybe", "/set ignore_eos takes on or off, not 'maybe'"),
        ('/set stop "x', "is no JSON"),
        ("/set stop " + "[" * 50_000, "is no JSON"),
        ("/set stop [3]", "stop must be non-empty strings"),
        ("/set speculation wild", "speculation 'wild' is unknown"),
        ("/think hard", "/think takes on or off, not 'hard'"),
        ("/save", "/save needs the name of a file"),
        ("/load", "/load needs the name of a file"),
        ("/save a\0b", "/save takes no name with a zero byte"),
        ("/load a\0b", "/load takes no name with a zero byte"),
        ("/load /nowhere/talk.json", "cannot read /nowhere/talk.json (No such file or directory)"),
    ],
)
def test_a_mistake_is_one_line_and_changes_nothing(session: ChatSession, line: str, message: str) -> None:
    messages, params = session.messages, session.params
    with pytest.raises(RequestError) as caught:
        run_command(session, line)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert (session.messages, session.params, session.thinking) == (messages, params, None)


def test_a_malformed_file_changes_nothing(session: ChatSession, tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    path.write_text("[", encoding="utf-8")
    messages = session.messages
    with pytest.raises(RequestError, match="is no JSON"):
        run_command(session, f"/load {path}")
    assert session.messages == messages


def test_a_story_takes_no_system_message_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    path.write_text(json.dumps([{"role": "system", "content": "Be short."}]), encoding="utf-8")
    with deepzig.load("stories") as llm:
        session = ChatSession(llm)
        session.turns = [Turn("Once", " upon")]
        with pytest.raises(RequestError, match="no system message"):
            run_command(session, f"/load {path}")
    assert session.turns == [Turn("Once", " upon")]
