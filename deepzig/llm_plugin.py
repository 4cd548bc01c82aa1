"""The plugin for `llm`, the program and library of that name: `llm -m deepzig "Once upon a time"`.

Loaded by `llm` through the entry point in pyproject.toml, and by nobody else, so that deepzig does not need llm; calls
`engine` and `text`. A model is loaded once for a process and keeps what it read: a conversation is not read again, nor
in the next process if DEEPZIG_PROMPT_CACHE names a folder. llm itself refuses tools, attachments and schemas.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import llm
from llm.parts import StreamEvent, TextPart
from pydantic import Field

from deepzig.checkpoint.model_names import BUNDLED_MODEL

if TYPE_CHECKING:
    from deepzig.engine.llm import LLM


@llm.hookimpl
def register_models(register: Callable[[llm.Model], None]) -> None:
    """Tell llm which models this plugin has; llm calls this hook of every plugin."""
    register(Deepzig("deepzig", os.environ.get("DEEPZIG_MODEL") or BUNDLED_MODEL))
    register(Deepzig(f"deepzig/{BUNDLED_MODEL}", BUNDLED_MODEL))


class Options(llm.Options):  # type: ignore[misc]  # Any without llm
    """Options set by `-o NAME VALUE`; the model's own defaults hold for the others."""

    checkpoint: str | None = Field(None, description="Folder of a checkpoint, or org/name of the Hugging Face hub")
    max_tokens: int | None = Field(None, description="Most tokens of an answer")
    temperature: float | None = Field(None, description="0: always the likeliest token")
    top_k: int | None = Field(None, description="Choose among the K likeliest tokens; 0: among all")
    top_p: float | None = Field(None, description="Choose among the likeliest tokens with P together")
    min_p: float | None = Field(None, description="Leave out tokens less likely than P times the likeliest")
    repetition_penalty: float | None = Field(None, description="Above 1: what the text has gets less likely")
    seed: int | None = Field(None, description="The same seed gives the same text")
    stop: str | None = Field(None, description="End before this text")


class Deepzig(llm.Model):  # type: ignore[misc]
    """A name under which llm knows deepzig, and its checkpoint if no option names another."""

    can_stream = True
    Options = Options

    def __init__(self, model_id: str, checkpoint: str) -> None:
        self.model_id = model_id
        self._checkpoint = checkpoint

    def execute(
        self, prompt: llm.Prompt, stream: bool, response: llm.Response, conversation: llm.Conversation | None
    ) -> Iterator[StreamEvent]:
        """The answer in pieces. Raises errors of `deepzig.errors`, which llm prints as a line."""
        from deepzig.engine.sampling import SamplingParams
        from deepzig.text.answer_format import AnswerFormat
        from deepzig.text.answer_parser import AnswerParser, Content, Reasoning

        given = prompt.options.model_dump(exclude_none=True)
        model, known = loaded(given.pop("checkpoint", self._checkpoint))
        template, tokenizer = model.chat_template, model.tokenizer
        ids = prompt_ids(model, prompt, known.copy())  # other threads write to it
        assert tokenizer is not None  # which the line above needed
        if template is not None and template.tells_roles():
            given.setdefault("max_tokens", model.n_context)
        answer_format = AnswerFormat.of_template(template.source if template is not None else None)
        parser = AnswerParser.after(ids, answer_format, tokenizer)
        for chunk in model.stream(ids, SamplingParams(**given)):
            for part in parser.push(chunk.text, chunk.token_ids) + (parser.finish() if chunk.result else []):
                if isinstance(part, Content | Reasoning):  # no calls are looked for
                    yield StreamEvent("reasoning" if isinstance(part, Reasoning) else "text", part.text)
        assert chunk.result is not None
        known[:] = [*ids, *chunk.result.token_ids]
        timings = chunk.result.timings
        response.response_json = {"finish_reason": chunk.finish_reason, "timings": dataclasses.asdict(timings)}
        details = {"cached_tokens": timings.cached_tokens}
        response.set_usage(input=timings.prompt_tokens, output=len(chunk.result.token_ids), details=details)


@functools.cache
def loaded(checkpoint: str) -> "tuple[LLM, list[int]]":
    """A model, and the tokens that it read and said last."""
    from deepzig.engine.loading import load

    return load(checkpoint, prompt_cache=os.environ.get("DEEPZIG_PROMPT_CACHE") or None), []


def prompt_ids(model: "LLM", prompt: llm.Prompt, known: list[int]) -> list[int]:
    """The conversation so far as token ids; without a chat template its texts, one after the other."""
    from deepzig.text.resumed_tokens import resumed

    texts = [(m.role, "".join(part.text for part in m.parts if isinstance(part, TextPart))) for m in prompt.messages]
    messages = [{"role": role, "content": text} for role, text in texts]
    ids = model.encode(messages if model.chat_template is not None else "".join(text for _, text in texts)).tolist()
    return resumed(ids, known, model.tokenizer) if known and model.tokenizer is not None else ids
