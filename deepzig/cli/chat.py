"""`deepzig chat`: a conversation with a model in the terminal, or one that is read from stdin.

Called by the command line; connects modules that know little of each other: `chat_input` reads, `chat_session` and
`chat_commands` answer, `chat_output` shows.
"""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deepzig.cli.command import command
from deepzig.cli.messages import note
from deepzig.cli.options import cache_options, compute_options, load_model, loading_options, model_option
from deepzig.cli.progress import plural
from deepzig.cli.sampling_options import sampling_options, sampling_params
from deepzig.cli.signals import orderly_end
from deepzig.cli.statistics import statistics_line
from deepzig.errors import ContextLengthError, DeepzigError

if TYPE_CHECKING:
    from deepzig.cli.chat_input import Input
    from deepzig.cli.chat_output import ChatScreen
    from deepzig.cli.chat_session import ChatSession, Events

FULL = "/undo or /clear makes room, --context-shift goes on without the oldest tokens"
LEAVING = "/help lists commands, Ctrl-D leaves."


@command()
@model_option
@click.option("--system", metavar="TEXT", help="System message.")
@click.option("--think/--no-think", default=None, help="Whether the model thinks, where its template has a switch.")
@click.option("--hide-reasoning", is_flag=True, help="Leave out the model's thoughts.")
@click.option(
    "--load", "saved", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="FILE",
    help="Go on with a conversation that /save wrote.",
)  # fmt: skip
@sampling_options(most="256 for a story, else what the context holds")
@loading_options(compute_options, cache_options)
def chat(
    model: str,
    system: str | None,
    think: bool | None,
    hide_reasoning: bool,
    saved: Path | None,
    loading: dict[str, Any],
    **sampling: Any,
) -> None:
    """Talk with a model.

    Ctrl-C stops an answer, Ctrl-D leaves, /help lists commands. Thoughts go to stderr. A model that has learned
    no roles, such as the bundled one, continues the story that you begin; Enter alone lets it go on.

    Piped lines are turns or commands; a \\ at the end of a line joins the next one to it.

    \b
        deepzig chat
        deepzig chat -m ./DeepSeek-V2-Lite-Chat --system "Answer in one sentence."
        deepzig chat -m ./DeepSeek-V2-Lite-Chat --context-shift --prompt-cache ./prompts
        deepzig chat -q -m ./DeepSeek-V2-Lite-Chat < article.txt
    """
    sampling_params(sampling)  # so that mistakes are told before the model is loaded
    from deepzig.cli.chat_file import load_messages
    from deepzig.cli.chat_output import ChatScreen
    from deepzig.cli.chat_session import ChatSession

    messages = load_messages(saved) if saved is not None else []
    with orderly_end(), load_model(model, **loading) as llm:
        session = ChatSession(llm)
        session.params = sampling_params(sampling, session.defaults)
        if saved is not None:
            session.replace_conversation(messages)
            note(f"Loaded {plural(len(messages), 'message')} from {saved}.")
        if system is not None:
            session.system = system
        session.thinking = think
        exit_code = talk(session, ChatScreen(hides_reasoning=hide_reasoning))
    if exit_code:
        raise click.exceptions.Exit(exit_code)


def talk(session: "ChatSession", screen: "ChatScreen") -> int:
    """Read and answer until the end. Returns the exit code: 0 on a terminal, else that of the first error."""
    from deepzig.cli.chat_input import EditorInput, LineInput, has_editor, interrupts, without_echo

    if session.is_story:
        screen.remark(f"{session.name} goes on with texts: you and it write one story. Enter alone lets it go on.")
    if not has_editor():
        return converse(session, screen, LineInput(), contextlib.nullcontext)
    screen.remark(LEAVING)
    with interrupts(session.stop):
        converse(session, screen, EditorInput(lambda: screen.remark(LEAVING)), without_echo)
    return 0


def converse(
    session: "ChatSession",
    screen: "ChatScreen",
    source: "Input",
    while_answering: Callable[[], contextlib.AbstractContextManager[None]],
) -> int:
    """Read messages and commands from a source, and answer. Returns the exit code of the first error, 0 without one."""
    exit_code = 0
    while True:
        try:
            text = source.read()
            if text is None:
                return exit_code
            with while_answering():
                if not respond(session, screen, text):
                    return exit_code
        except DeepzigError as error:
            hint = f"; {FULL}; /retry sends it again" if isinstance(error, ContextLengthError) else ""
            screen.error(f"{error}{hint}")
            exit_code = exit_code or error.exit_code


def respond(session: "ChatSession", screen: "ChatScreen", text: str) -> bool:
    """Answer a message, or do what a command asks for. False: the chat ends. Raises DeepzigError."""
    from deepzig.cli.chat_commands import is_command, run_command

    if not is_command(text):
        if text.strip() or session.is_story:
            answer(session, screen, session.ask(text))
        return True
    outcome = run_command(session, text)
    screen.reply(outcome)
    if outcome.answer is not None:
        answer(session, screen, outcome.answer)
    return not outcome.is_end


def answer(session: "ChatSession", screen: "ChatScreen", events: "Events") -> None:
    """Show an answer, then how it ended if that is not as usual, and what it cost."""
    with contextlib.closing(events):
        screen.show(events)
    report = session.report
    if report is not None:
        if report.end == "length" and report.n_tokens < session.params.max_tokens:
            screen.remark(f"The context of {session.llm.n_context} tokens is full: {FULL}.")
        elif report.end == "length" and not session.is_story:
            screen.remark(f"Cut at --max-tokens {report.n_tokens}; /set max_tokens allows more.")
        elif report.end == "stopped":
            screen.remark("Stopped.")
        elif report.end == "stop" and not session.turns[-1].answer:
            screen.remark("The model says no more.")
    if session.unanswered is not None:
        screen.remark("No answer came, so your message is not kept; /retry sends it again.")
    if report is not None:
        is_cut = session.is_story and report.end == "length" and report.n_tokens >= session.params.max_tokens
        cut_at = session.params.max_tokens if is_cut else None
        screen.remark(statistics_line(report.timings, report.n_tokens, report.n_dropped, cut_at))
