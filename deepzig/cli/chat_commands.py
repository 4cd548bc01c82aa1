"""The commands of a chat: what begins with a slash.

Called by `chat`, and by `chat_input` for what can be completed; calls `ChatSession` and `chat_file`. Knows nothing of
terminals: a command gives back lines to be shown.
"""

import difflib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from deepzig.cli.chat_file import load_messages, save_messages
from deepzig.cli.chat_session import ChatSession, Events
from deepzig.cli.progress import plural
from deepzig.cli.statistics import rate
from deepzig.errors import RequestError

SHOWN_CHARS = 60  # of a message that was taken back
KEYS = "Enter sends, Alt-Enter or \\ Enter begins a new line, Tab completes, Ctrl-C stops an answer, Ctrl-D leaves."

# What /set takes, and how it is read.
_KINDS: dict[str, type] = {
    "max_tokens": int,
    "temperature": float,
    "top_k": int,
    "top_p": float,
    "min_p": float,
    "repetition_penalty": float,
    "presence_penalty": float,
    "frequency_penalty": float,
    "seed": int,
    "stop": tuple,
    "ignore_eos": bool,
    "speculation": str,
    "draft_tokens": int,
}
_SWITCH = {"on": True, "off": False}
_WORDS = {"None": "none", "True": "on", "False": "off"}


@dataclass(frozen=True)
class Outcome:
    """The result of a command."""

    lines: list[str] = field(default_factory=list)
    rows: list[tuple[str, str]] = field(default_factory=list)  # names and their descriptions, shown before the lines
    answer: Events | None = None  # to be shown as it comes
    is_end: bool = False  # of the chat


@dataclass(frozen=True)
class Command:
    """A command, what it takes, and how it is completed."""

    run: Callable[[ChatSession, str], Outcome]
    takes: str
    help: str
    choices: tuple[str, ...] = ()  # for the first word of its argument
    takes_file: bool = False


def is_command(text: str) -> bool:
    """Whether a line is a command; a blank before the slash makes it a message."""
    return text.startswith("/")


def run_command(session: ChatSession, line: str) -> Outcome:
    """Do what a line that begins with a slash asks for. Raises DeepzigError; then nothing has changed."""
    name, argument = [*line.split(maxsplit=1), ""][:2]
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"perhaps {near[0]}; " if near else ""
        raise RequestError(f"{name} is no command; {hint}/help lists them; a blank before / makes it a message")
    command = COMMANDS[name]
    argument = argument.strip()
    if argument and not command.takes:
        raise RequestError(f"{name} takes nothing, but got {argument!r}")
    return command.run(session, argument)


def _help(_session: ChatSession, _argument: str) -> Outcome:
    return Outcome([KEYS], [(f"{name} {command.takes}".strip(), command.help) for name, command in COMMANDS.items()])


def _clear(session: ChatSession, _argument: str) -> Outcome:
    session.clear()
    return Outcome(["Forgotten; the system message stays." if session.system else "Forgotten."])


def _undo(session: ChatSession, argument: str) -> Outcome:
    n_turns = _integer("/undo", argument or "1")
    if n_turns < 1:
        raise RequestError("/undo takes back at least 1 turn")
    return Outcome([f"Took back: {_short(turn.message or turn.answer)}" for turn in session.undo(n_turns)])


def _retry(session: ChatSession, _argument: str) -> Outcome:
    return Outcome(answer=session.retry())


def _system(session: ChatSession, argument: str) -> Outcome:
    if argument:
        session.system = None if argument == "off" else argument
    return Outcome([f"System message: {session.system}" if session.system else "There is no system message."])


def _set(session: ChatSession, argument: str) -> Outcome:
    name, _, value = argument.partition(" ")
    name = name.replace("-", "_")  # as the options of the command line are spelt
    if name and name not in _KINDS:
        raise RequestError(f"/set knows no {name!r}; it takes {', '.join(_KINDS)}")
    if value:
        read = getattr(session.defaults, name) if value == "default" else _read(name, value.strip())
        session.params = replace(session.params, **{name: read})
    return Outcome(rows=[(each, _setting(session, each)) for each in ([name] if name else _KINDS)])


def _think(session: ChatSession, argument: str) -> Outcome:
    if argument:
        session.thinking = _switched("/think", argument)
    state = "as the model likes" if session.thinking is None else "on" if session.thinking else "off"
    return Outcome([f"Thinking: {state}."])


def _save(session: ChatSession, argument: str) -> Outcome:
    path = _path("/save", argument)
    save_messages(path, session.llm.name, session.messages)
    return Outcome([f"Saved {plural(len(session.messages), 'message')} to {path}."])


def _load(session: ChatSession, argument: str) -> Outcome:
    path = _path("/load", argument)
    messages = load_messages(path)
    session.replace_conversation(messages)
    more = "; the last has no answer, /retry asks for it" if session.unanswered is not None else ""
    return Outcome([f"Loaded {plural(len(messages), 'message')} from {path}{more}."])


def _stats(session: ChatSession, _argument: str) -> Outcome:
    report, totals = session.report, session.totals
    rows = []
    if report is not None:
        timings = report.timings
        new_tokens = timings.prompt_tokens - timings.cached_tokens
        dropped = f", {report.n_dropped} old ones dropped" if report.n_dropped else ""
        rows = [
            ("prompt", f"{timings.prompt_tokens} tokens: {timings.cached_tokens} cached, "
                       f"{new_tokens} read at {rate(new_tokens, timings.prompt_s)}"),
            ("answer", f"{report.n_tokens} tokens at {rate(timings.decode_tokens, timings.decode_s)}, "
                       f"the first after {timings.first_token_s:.2f} s"),
            ("context", f"{session.n_used} of {session.llm.n_context} tokens{dropped}"),
        ]  # fmt: skip
    whole = (
        f"answers: {totals.answers} with {totals.answer_tokens} tokens; "
        f"prompts: {totals.prompt_tokens} tokens, {totals.cached_tokens} cached"
    )
    return Outcome(rows=[*rows, ("session", whole)])


def _exit(_session: ChatSession, _argument: str) -> Outcome:
    return Outcome(is_end=True)


COMMANDS: dict[str, Command] = {
    "/help": Command(_help, "", "this list"),
    "/clear": Command(_clear, "", "forget what was said"),
    "/undo": Command(_undo, "[N]", "take back the last turn, or the last N"),
    "/retry": Command(_retry, "", "another answer to the last message"),
    "/system": Command(_system, "[TEXT|off]", "show or set the system message", ("off",)),
    "/set": Command(_set, "[NAME [VALUE|default]]", "show or set how tokens are chosen", tuple(_KINDS)),
    "/think": Command(_think, "[on|off]", "whether the model thinks before it answers", ("on", "off")),
    "/save": Command(_save, "FILE", "write the conversation as JSON", takes_file=True),
    "/load": Command(_load, "FILE", "go on with a saved conversation", takes_file=True),
    "/stats": Command(_stats, "", "tokens, speeds, and how full the context is"),
    "/exit": Command(_exit, "", "leave, as Ctrl-D does"),
}


def _setting(session: ChatSession, name: str) -> str:
    own: Any = getattr(session.params, name)
    used: Any = getattr(session.llm.defaults.resolve(session.params), name)
    shown = json.dumps(list(used), ensure_ascii=False) if name == "stop" else _WORDS.get(str(used), str(used))
    return shown + (" (the model's)" if own != used else "")


def _read(name: str, value: str) -> Any:
    """The value of a parameter that was typed; SamplingParams checks its range."""
    kind = _KINDS[name]
    if kind is bool:
        return _switched(f"/set {name}", value)
    if kind is tuple:
        return _stops(value)
    if kind is int:
        return _integer(name, value)
    if kind is float:
        try:
            return float(value)
        except ValueError as error:
            raise RequestError(f"{name} takes a number, not {value!r}") from error
    return value


def _stops(value: str) -> tuple[str, ...]:
    """One text as it stands, or JSON: "\\n", ["a", "b"]."""
    if value[0] not in '"[':
        return (value,)
    try:
        found = json.loads(value)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"stop {value!r:.80} is no JSON ({error})") from error
    return (found,) if isinstance(found, str) else tuple(found)


def _integer(name: str, value: str) -> int:
    try:
        return int(value)
    except ValueError as error:
        raise RequestError(f"{name} takes a whole number, not {value!r}") from error


def _switched(name: str, value: str) -> bool:
    if value.lower() not in _SWITCH:
        raise RequestError(f"{name} takes on or off, not {value!r}")
    return _SWITCH[value.lower()]


def _path(name: str, argument: str) -> Path:
    if not argument:
        raise RequestError(f"{name} needs the name of a file")
    if "\0" in argument:
        raise RequestError(f"{name} takes no name with a zero byte")
    return Path(os.path.expanduser(argument))


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= SHOWN_CHARS else f"{line[: SHOWN_CHARS - 1]}…"
