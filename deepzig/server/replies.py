"""What clients get, as msgspec structs in the shape of OpenAI's objects; fields that OpenAI lacks say so.

Filled by the endpoints; shown by `openapi`. UNSET leaves a field out, None writes null.
"""

from typing import Literal

from msgspec import UNSET, Struct, UnsetType

FinishReason = Literal["stop", "length", "tool_calls"]


class CachedTokens(Struct):
    """Detail of the prompt's tokens."""

    cached_tokens: int


class ReasoningTokens(Struct):
    """Detail of the answer's tokens."""

    reasoning_tokens: int


class Usage(Struct):
    """Tokens of a request; the cache's share in OpenAI's field and in DeepSeek's two."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens
    completion_tokens_details: ReasoningTokens
    prompt_cache_hit_tokens: int
    prompt_cache_miss_tokens: int


class TimingsReply(Struct):
    """Speed of a request (llama.cpp's field)."""

    cache_n: int
    prompt_n: int
    prompt_ms: float
    prompt_per_second: float | None
    predicted_n: int
    predicted_ms: float
    predicted_per_second: float | None


class PromptProgress(Struct):
    """How far the prompt is (llama.cpp's field), and how many requests are served before this one."""

    total: int
    cache: int
    processed: int
    time_ms: int
    queue_position: int


class TopLogprob(Struct):
    """A token that could have been."""

    token: str
    logprob: float
    bytes: list[int]


class ChatLogprob(TopLogprob):
    """A token of the answer."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(Struct):
    """Log-probabilities of a chat's answer."""

    content: list[ChatLogprob]


class FunctionReply(Struct):
    """The function of a call; in a stream the name comes first and the arguments in pieces."""

    arguments: str
    name: str | UnsetType = UNSET


class ToolCallReply(Struct):
    """A call of a whole answer."""

    id: str
    function: FunctionReply
    type: Literal["function"] = "function"


class ToolCallDelta(Struct):
    """A piece of a call."""

    index: int
    function: FunctionReply
    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET


class AssistantMessage(Struct):
    """A whole answer. `reasoning` is the same as `reasoning_content`, which DeepSeek's API has."""

    content: str | None
    role: Literal["assistant"] = "assistant"
    refusal: None = None
    reasoning_content: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    tool_calls: list[ToolCallReply] | UnsetType = UNSET


class Delta(Struct):
    """A piece of an answer."""

    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    tool_calls: list[ToolCallDelta] | UnsetType = UNSET


class ChatChoice(Struct):
    """One of n answers."""

    index: int
    message: AssistantMessage
    finish_reason: FinishReason
    logprobs: ChatLogprobs | None = None


class ChatChunkChoice(Struct):
    """A piece of one of n answers."""

    index: int
    delta: Delta
    finish_reason: FinishReason | None = None
    logprobs: ChatLogprobs | None = None


class ChatCompletion(Struct):
    """Reply of /v1/chat/completions."""

    id: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    system_fingerprint: str
    timings: TimingsReply
    object: Literal["chat.completion"] = "chat.completion"


class ChatChunk(Struct):
    """An event of a streamed reply."""

    id: str
    created: int
    model: str
    choices: list[ChatChunkChoice]
    system_fingerprint: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    usage: Usage | UnsetType | None = UNSET
    timings: TimingsReply | UnsetType = UNSET
    prompt_progress: PromptProgress | UnsetType = UNSET


class CompletionLogprobs(Struct):
    """Log-probabilities of a completion; the first token of an echoed prompt has none."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(Struct):
    """One of the answers, or a piece of it."""

    index: int
    text: str
    finish_reason: FinishReason | None = None
    logprobs: CompletionLogprobs | None = None


class Completion(Struct):
    """Reply of /v1/completions, whole or an event of a stream."""

    id: str
    created: int
    model: str
    choices: list[CompletionChoice]
    system_fingerprint: str
    object: Literal["text_completion"] = "text_completion"
    usage: Usage | UnsetType | None = UNSET
    timings: TimingsReply | UnsetType = UNSET
    prompt_progress: PromptProgress | UnsetType = UNSET


class ModelMeta(Struct):
    """What the model is (llama.cpp's field)."""

    n_ctx: int
    n_vocab: int
    n_params: int
    size: int  # bytes of the weights
    format: str
    has_chat_template: bool
    has_tools: bool
    has_thinking: bool


class ModelReply(Struct):
    """Reply of /v1/models/{id}."""

    id: str
    created: int
    meta: ModelMeta
    max_model_len: int
    object: Literal["model"] = "model"
    owned_by: Literal["deepzig"] = "deepzig"


class ModelList(Struct):
    """Reply of /v1/models."""

    data: list[ModelReply]
    object: Literal["list"] = "list"


class TokenPiece(Struct):
    """A token with its text, or its bytes where they are no whole characters."""

    id: int
    piece: str | list[int]


class Tokenized(Struct):
    """Reply of /tokenize."""

    tokens: list[int | TokenPiece]  # pieces where they were asked for
    count: int
    max_model_len: int


class Detokenized(Struct):
    """Reply of /detokenize."""

    content: str


class AppliedTemplate(Struct):
    """Reply of /apply-template."""

    prompt: str


class Health(Struct):
    """Reply of /health and /livez."""

    status: Literal["ok"] = "ok"
