"""How an answer's tokens are chosen, as options. Called by `generate` and `chat`; calls `engine.sampling`."""

import dataclasses
import functools
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from deepzig.cli.naming import Decorator, in_order, shared_option
from deepzig.errors import RequestError

if TYPE_CHECKING:
    from deepzig.engine.sampling import SamplingParams

MODELS = "[default: the model's]"

_option = functools.partial(shared_option, heading="Sampling")

_OPTIONS: tuple[Decorator, ...] = (
    _option("--temperature", type=float, metavar="T", help=f"0: always the likeliest token.  {MODELS}"),
    _option("--top-k", type=int, metavar="K", help=f"Choose among the K likeliest; 0: among all.  {MODELS}"),
    _option("--top-p", type=float, metavar="P", help=f"Choose among the likeliest with total probability P.  {MODELS}"),
    _option("--min-p", type=float, metavar="P", help="Leave out tokens less likely than P times the likeliest."),
    _option("--repetition-penalty", type=float, metavar="X", help="Above 1: makes tokens of the text less likely."),
    _option("--presence-penalty", type=float, metavar="X", help="Subtracted from logits of tokens in the answer."),
    _option("--frequency-penalty", type=float, metavar="X", help="Subtracted for each time the answer has the token."),
    _option("--seed", type=int, metavar="S", help="The same seed gives the same text."),
    _option("--stop", multiple=True, metavar="TEXT", help="End before this text. May be given several times."),
    _option("--ignore-eos", is_flag=True, help="Go on past the model's end of text."),
)


def sampling_options(*, most: str) -> Decorator:
    """Add the options from which `sampling_params` makes parameters. most: default of --max-tokens, for the help."""
    limit = _option("--max-tokens", type=int, metavar="N", help=f"Most tokens to generate.  [default: {most}]")
    return in_order(limit, *_OPTIONS)


def sampling_params(values: Mapping[str, Any], defaults: "SamplingParams | None" = None) -> "SamplingParams":
    """Parameters with the options that were given, not None or (). Raises RequestError, which names them as options."""
    from deepzig.engine.sampling import SamplingParams

    given = {name: value for name, value in values.items() if value not in (None, ())}
    try:
        return dataclasses.replace(defaults or SamplingParams(), **given)
    except RequestError as error:
        names = re.compile(rf"\b({'|'.join(values)})\b")
        raise RequestError(names.sub(lambda name: f"--{name[0].replace('_', '-')}", str(error))) from error
