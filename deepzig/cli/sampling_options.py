"""How an answer's tokens are chosen, as options. Called by `generate` and `chat`; calls `engine.sampling`."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import click

from deepzig.cli.options import Decorator

if TYPE_CHECKING:
    from deepzig.engine.sampling import SamplingParams

MODELS = "[default: the model's]"


_OPTIONS: tuple[Decorator, ...] = (
    click.option("--temperature", type=float, metavar="T", help=f"0: always the likeliest token.  {MODELS}"),
    click.option("--top-k", type=int, metavar="K", help=f"Choose among the K likeliest; 0: among all.  {MODELS}"),
    click.option("--top-p", type=float, metavar="P", help=f"Choose among the likeliest with P together.  {MODELS}"),
    click.option("--min-p", type=float, metavar="P", help="Leave out tokens less likely than P times the likeliest."),
    click.option("--repetition-penalty", type=float, metavar="X", help="Above 1: what the text has gets less likely."),
    click.option("--presence-penalty", type=float, metavar="X", help="Taken from the logits of tokens the answer has."),
    click.option("--frequency-penalty", type=float, metavar="X", help="The same, for each time that it has them."),
    click.option("--seed", type=int, metavar="S", help="The same seed gives the same text."),
    click.option("--stop", multiple=True, metavar="TEXT", help="End before this text. May be given several times."),
    click.option("--ignore-eos", is_flag=True, help="Go on past the model's end of text."),
)


def sampling_options(*, most: str) -> Decorator:
    """Add the options that `sampling_params` makes parameters of. most: what --max-tokens is without being given."""
    most_help = f"Most tokens to generate.  [default: {most}]"
    limit: Decorator = click.option("--max-tokens", type=int, metavar="N", help=most_help)

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed((limit, *_OPTIONS)):
            command = option(command)
        return command

    return add


def sampling_params(values: Mapping[str, Any]) -> "SamplingParams":
    """Parameters with what was given; None and () were not. Raises RequestError."""
    from deepzig.engine.sampling import SamplingParams

    return SamplingParams(**{name: value for name, value in values.items() if value not in (None, ())})
