"""From the fields of a request to SamplingParams. Called by `chat` and `completions`."""

from typing import Any

from deepzig.engine.sampling import SamplingParams
from deepzig.server.failures import ApiError
from deepzig.server.requests import SamplingFields

_SAME_NAMES = (
    "temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "n", "ignore_eos",
    "stop_token_ids",
)  # fmt: skip


def sampling_params(
    fields: SamplingFields, vocab_size: int, *, max_tokens: int, logprobs: int | None
) -> SamplingParams:
    """What the engine is asked for. Raises ApiError for tokens that there are not, RequestError for what it refuses."""
    for name in ("logit_bias", "stop_token_ids"):
        if absent := [token for token in map(int, getattr(fields, name) or ()) if token >= vocab_size]:
            message = f"{name} names token {absent[0]}, but the vocabulary has {vocab_size}"
            raise ApiError(400, message, code="invalid_value", param=name)
    given: dict[str, Any] = {name: value for name in _SAME_NAMES if (value := getattr(fields, name)) is not None}
    if fields.top_k is not None:
        given["top_k"] = min(max(fields.top_k, 0), vocab_size)
    if fields.seed is not None:
        given["seed"] = fields.seed % (1 << 63)
    if fields.stop:
        given["stop"] = (fields.stop,) if isinstance(fields.stop, str) else tuple(fields.stop)
    if fields.logit_bias:
        given["logit_bias"] = {int(token): bias for token, bias in fields.logit_bias.items()}
    return SamplingParams(max_tokens=max_tokens, logprobs=logprobs, **given)
