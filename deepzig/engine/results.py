"""What a generation and the engine give back. Made by `generation` and `ledger`; read by users, `cli`, `server`."""

from dataclasses import dataclass

from deepzig.engine.sampling import TokenLogprob


@dataclass(frozen=True)
class Timings:
    """Where the time of a request went; times in seconds."""

    prompt_tokens: int  # tokens of the prompt, BOS and chat template included
    cached_tokens: int  # prompt tokens taken from an earlier request
    prompt_s: float  # from leaving the queue to the first token
    first_token_s: float  # from the call to the first token
    decode_tokens: int  # tokens after the first, of all choices
    decode_s: float  # from the first token to the last
    drafted_tokens: int  # tokens proposed by speculative decoding
    accepted_tokens: int  # drafted tokens that the model accepted
    speculation_gain: float | None  # speed of steps with draft tokens / speed without; None: not known


@dataclass(frozen=True)
class Choice:
    """One of the answers to a prompt, without the prompt."""

    index: int  # from 0
    text: str  # empty if the model has no tokenizer
    token_ids: list[int]  # includes the end-of-sequence token, if that ended the answer
    finish_reason: str  # "stop" (end of sequence, stop string or complete constraint) or "length"
    logprobs: list[TokenLogprob] | None  # one for each token, where asked for
    score: float | None = None  # in a beam search: sum of log-probabilities / length ** length_penalty


@dataclass(frozen=True)
class GenerationResult:
    """A finished request: `n` choices. text, token_ids, finish_reason and logprobs are those of the first."""

    choices: list[Choice]  # best first if from a beam search
    timings: Timings  # of the whole request
    n_dropped: int = 0  # with context_shift: old tokens dropped because the context was full

    @property
    def text(self) -> str:
        """`text` of the first choice."""
        return self.choices[0].text

    @property
    def token_ids(self) -> list[int]:
        """`token_ids` of the first choice."""
        return self.choices[0].token_ids

    @property
    def finish_reason(self) -> str:
        """`finish_reason` of the first choice."""
        return self.choices[0].finish_reason

    @property
    def logprobs(self) -> list[TokenLogprob] | None:
        """`logprobs` of the first choice."""
        return self.choices[0].logprobs


@dataclass(frozen=True)
class StreamChunk:
    """A piece of a choice: one token and the text that became certain with it."""

    text: str  # empty while a character is not whole, or a stop string may be beginning
    token_ids: list[int]  # one token
    index: int = 0  # of the choice
    finish_reason: str | None = None  # set on the choice's last chunk
    logprobs: list[TokenLogprob] | None = None  # of token_ids, where asked for
    result: GenerationResult | None = None  # the whole request, on its last chunk


@dataclass(frozen=True)
class Progress:
    """How far a request is."""

    queue_position: int  # 0: running or finished
    prompt_tokens: int  # tokens of the prompt, BOS and chat template included
    prompt_tokens_done: int  # prompt tokens computed or found in the cache
    cached_tokens: int  # prompt tokens found in the cache


@dataclass(frozen=True)
class EngineStats:
    """Counts since the model was loaded, and what is held now."""

    n_waiting: int  # branches in the queue
    n_running: int  # branches in prefill or decoding
    n_pages: int  # pages of the latent cache, 64 tokens each
    n_held_pages: int  # pages held by running branches or cached prefixes
    n_prefix_pages: int  # pages held by cached prefixes
    prompt_tokens: int  # tokens of prompts that have been read
    cached_tokens: int  # prompt tokens taken from an earlier request
    answer_tokens: int  # tokens of answers
    drafted_tokens: int  # tokens proposed by speculative decoding
    accepted_tokens: int  # drafted tokens that the model accepted
    preemptions: int  # times that a branch, or a search's beams together, went back to the queue
    finished: dict[str, int]  # requests by reason: stop, length, cancelled, error
