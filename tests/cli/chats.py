"""Sessions with models that say what a test wants them to, for the tests of `deepzig chat`."""

from collections.abc import Sequence
from typing import Any

import pytest

from deepzig.cli.chat_session import ChatSession
from deepzig.engine.llm import LLM
from deepzig.text.answer_parser import Content, Reasoning
from tests.talkers import Script


def tokens_of(llm: LLM, text: str, *, by_character: bool = False) -> list[int]:
    """Tokens of a text; marks in it are control tokens. by_character: not those that the tokenizer would choose."""
    assert llm.tokenizer is not None
    pieces = list(text) if by_character else [text]
    return [token for piece in pieces for token in llm.tokenizer.encode(piece, add_bos=False)]


def script(monkeypatch: pytest.MonkeyPatch, llm: LLM, *answers: Sequence[int]) -> None:
    """Let the model give these answers, one after the other."""
    submit, waiting = llm.submit, list(answers)

    def submit_scripted(*arguments: Any, **options: Any) -> Any:
        constraint = Script(waiting.pop(0), llm.config.vocab_size)
        return submit(*arguments, **options, constraint=constraint)

    monkeypatch.setattr(llm, "submit", submit_scripted)


def said(session: ChatSession, message: str) -> tuple[str, str]:
    """Thoughts and answer to a message."""
    events = list(session.ask(message))
    thoughts = "".join(event.text for event in events if isinstance(event, Reasoning))
    return thoughts, "".join(event.text for event in events if isinstance(event, Content))


def cached(session: ChatSession) -> int:
    """Tokens of the last prompt that were not read again."""
    assert session.report is not None
    return session.report.timings.cached_tokens
