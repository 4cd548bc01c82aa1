"""`deepzig generate`: one prompt in, one answer out.

Called by the command line; calls the LLM of `engine`. Knows nothing of how tokens are made.
"""

import dataclasses
import functools
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deepzig.cli.command import command
from deepzig.cli.messages import note
from deepzig.cli.naming import Option
from deepzig.cli.options import cache_options, compute_options, json_option, load_model, loading_options, model_option
from deepzig.cli.sampling_options import sampling_options, sampling_params
from deepzig.cli.signals import orderly_end
from deepzig.cli.statistics import statistics_line
from deepzig.cli.terminal_text import harmless
from deepzig.cli.text_files import decode, read_whole

if TYPE_CHECKING:
    from deepzig.engine.llm import LLM
    from deepzig.engine.results import GenerationResult
    from deepzig.engine.sampling import SamplingParams

EARLY_STOPPING: dict[str, bool | str] = {"true": True, "false": False, "never": "never"}

Request = str | list[dict[str, str]]
_beam_option = functools.partial(click.option, cls=Option, heading="Beam search")


@command()
@click.argument("prompt", required=False)
@model_option
@click.option(
    "-f", "--file", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Read the prompt from a file."
)
@click.option("--chat", is_flag=True, help="Put the prompt through the model's chat template, as a user's message.")
@sampling_options(most="256")
@_beam_option("--num-beams", type=int, metavar="N", help="Above 1: search for the likeliest text; no sampling.")
@_beam_option("--length-penalty", type=float, metavar="X", help="Above 0 favours long texts.  [default: 1.0]")
@_beam_option(
    "--early-stopping", type=click.Choice(list(EARLY_STOPPING)), callback=lambda _c, _p, word: EARLY_STOPPING.get(word),
    help="End with N texts, when better ones are unlikely, or impossible.  [default: false]",
)  # fmt: skip
@click.option("--logprobs", type=int, metavar="N", help="With --json: log-probabilities, with the N likeliest.")
@json_option
@loading_options(compute_options, cache_options)
def generate(
    prompt: str | None,
    model: str,
    file: Path | None,
    chat: bool,
    as_json: bool,
    loading: dict[str, Any],
    **sampling: Any,
) -> None:
    """Continue a prompt, or answer it.

    PROMPT is text, or - for stdin. Piped text, and the text of --file, come before it on lines of their own; a line
    break at their end does not count.

    \b
        deepzig generate "Once upon a time" --max-tokens 100
        deepzig generate -m ./DeepSeek-V2-Lite-Chat --chat "Why is the sky blue?"
        deepzig generate -m ./DeepSeek-V2-Lite-Chat --chat "Sum this up." < article.txt
    """
    if sampling["logprobs"] is not None and not as_json:
        raise click.UsageError("--logprobs needs --json, which prints them")
    text = read_prompt(prompt, file)
    params = sampling_params(sampling)
    with orderly_end(), load_model(model, **loading) as llm:
        if chat and llm.chat_template is not None and not llm.chat_template.tells_roles():
            note("This model has not been taught to chat: it continues your text.")
        request: Request = [{"role": "user", "content": text}] if chat else text
        if as_json:
            result = llm.generate(request, params)
            click.echo(json.dumps(as_object(model, text, result), ensure_ascii=False))
        else:
            result = print_stream(llm, request, params)
    n_tokens = len(result.token_ids)
    is_cut = result.finish_reason == "length" and n_tokens >= params.max_tokens  # else the context was full
    note(statistics_line(result.timings, n_tokens, result.n_dropped, params.max_tokens if is_cut else None))


def read_prompt(prompt: str | None, file: Path | None) -> str:
    """The text of the file, piped text and the argument, in this order. Raises click.UsageError if there is none."""
    parts = []
    if file is not None:
        with file.open("rb") as content:
            parts.append(_without_last_break(read_whole(content, str(file))))
    if prompt == "-" or not sys.stdin.isatty():
        parts.append(_without_last_break(read_whole(sys.stdin.buffer, "stdin")))
    if prompt is not None and prompt != "-":
        parts.append(decode(prompt.encode("utf-8", "surrogateescape"), "PROMPT"))
    elif not any(parts):
        raise click.UsageError("no prompt: give it as an argument, with --file, or on stdin")
    return "\n".join(part for part in parts if part)


def _without_last_break(text: str) -> str:
    return text.removesuffix("\n").removesuffix("\r")


def print_stream(llm: "LLM", request: Request, params: "SamplingParams") -> "GenerationResult":
    """Print the answer to stdout as it comes."""
    for chunk in llm.stream(request, params):  # color: else click would take away from a pipe what looks like a style
        click.echo(harmless(chunk.text, sys.stdout), nl=False, color=True)
        if chunk.result is not None:
            result = chunk.result
    click.echo()
    return result


def as_object(model: str, prompt: str, result: "GenerationResult") -> dict[str, Any]:
    """The object that --json prints."""
    shown: dict[str, Any] = {
        "model": model,
        "prompt": prompt,
        "text": result.text,
        "token_ids": result.token_ids,
        "finish_reason": result.finish_reason,
        "timings": dataclasses.asdict(result.timings),
    }
    if result.n_dropped:
        shown["n_dropped"] = result.n_dropped
    if result.choices[0].score is not None:
        shown["score"] = result.choices[0].score
    if result.logprobs is not None:
        shown["logprobs"] = [dataclasses.asdict(entry) for entry in result.logprobs]
    return shown
