"""What a generation gives back. Made by `llm`, read by users and by `cli`."""

from dataclasses import dataclass

from deepzig.engine.sampling import TokenLogprob


@dataclass(frozen=True)
class Timings:
    """Where the time of a request went; times in seconds."""

    prompt_tokens: int
    cached_tokens: int  # of the prompt, taken from an earlier request
    prompt_s: float
    first_token_s: float  # from the call to the first token
    decode_tokens: int  # tokens after the first
    decode_s: float


@dataclass(frozen=True)
class GenerationResult:
    """A finished answer, without the prompt."""

    text: str  # empty if the model has no tokenizer
    token_ids: list[int]  # with the end-of-sequence token, if that ended the answer
    finish_reason: str  # "stop" (end of sequence or stop string) or "length"
    logprobs: list[TokenLogprob] | None
    timings: Timings


@dataclass(frozen=True)
class StreamChunk:
    """A piece of an answer: one token and the text that became certain with it."""

    text: str
    token_ids: list[int]
    finish_reason: str | None = None  # set on the last chunk
    result: GenerationResult | None = None  # the whole answer, on the last chunk
