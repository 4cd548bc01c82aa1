"""What clients send, as msgspec structs: decoding one checks types and ranges, and `openapi` shows the same structs.

Decoded by `body` for the endpoints. Unknown fields are ignored and null stands for "not given", as OpenAI's
clients expect. Knows nothing of models: what depends on one is checked by the endpoints.
"""

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

MAX_MESSAGES = 2048
MAX_TOOLS = 128
MAX_STOPS = 16
MAX_STOP_TOKENS = 128
MAX_CHOICES = 8
MAX_LOGIT_BIAS = 1024
MAX_GRAMMAR_CHARS = 64 << 10
MAX_SCHEMA_BYTES = 64 << 10
MAX_PROMPTS = 64

Temperature = Annotated[float, Meta(ge=0, le=100)]
Probability = Annotated[float, Meta(ge=0, le=1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Count = Annotated[int, Meta(ge=1, description="Clamped to what fits the context.")]
Seed = Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
StopText = Annotated[str, Meta(min_length=1, max_length=1024)]
Stop = str | Annotated[list[StopText], Meta(max_length=MAX_STOPS)]
StopTokens = Annotated[list[Annotated[int, Meta(ge=0)]], Meta(max_length=MAX_STOP_TOKENS)]
TokenText = Annotated[str, Meta(pattern=r"^[0-9]{1,9}$")]  # JSON objects have only strings for keys
LogitBias = Annotated[dict[TokenText, Annotated[float, Meta(ge=-100, le=100)]], Meta(max_length=MAX_LOGIT_BIAS)]
TopLogprobs = Annotated[int, Meta(ge=0, le=20)]
Salt = Annotated[str, Meta(min_length=1, max_length=256)]
GrammarText = Annotated[str, Meta(min_length=1, max_length=MAX_GRAMMAR_CHARS)]
FunctionName = Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]


class StreamOptions(Struct, kw_only=True):
    """What a stream has beside the answer."""

    include_usage: bool | None = None


class ContentPart(Struct, kw_only=True):
    """A part of a message; only text is understood."""

    type: Literal["text", "input_text", "output_text"]
    text: str


Content = str | list[ContentPart]


class FunctionCall(Struct, kw_only=True):
    """What an assistant called."""

    name: str  # any: a model may invent one, and the client sends back what it got
    arguments: str  # JSON


class ToolCall(Struct, kw_only=True):
    """A call in an assistant's message of the past."""

    function: FunctionCall
    id: str | None = None
    type: Literal["function"] = "function"


class Message(Struct, kw_only=True):
    """A message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content | None = None
    name: str | None = None
    tool_calls: Annotated[list[ToolCall], Meta(max_length=MAX_TOOLS)] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None  # the same under its other name
    prefix: bool | None = None  # on the last one, an assistant's: continue it


class FunctionDefinition(Struct, kw_only=True):
    """A function that the model may call."""

    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None  # JSON Schema
    strict: bool | None = None


class Tool(Struct, kw_only=True):
    """A tool that the model may call."""

    function: FunctionDefinition
    type: Literal["function"] = "function"


class NamedFunction(Struct, kw_only=True):
    """The name of a function."""

    name: FunctionName


class NamedToolChoice(Struct, kw_only=True):
    """The one tool that must be called."""

    function: NamedFunction
    type: Literal["function"] = "function"


ToolChoice = Literal["none", "auto", "required"] | NamedToolChoice


class JsonSchema(Struct, kw_only=True):
    """A schema that the answer must fit."""

    schema: dict[str, Any] | None = None
    name: str | None = None
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(Struct, kw_only=True):
    """What form the answer must have."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class Thinking(Struct, kw_only=True):
    """DeepSeek's switch of thinking."""

    type: Literal["enabled", "disabled"]


class SamplingFields(Struct, kw_only=True):
    """What chats and completions have in common."""

    model: str | None = None
    max_tokens: Count | None = None
    temperature: Temperature | None = None
    top_p: Probability | None = None
    top_k: Annotated[int, Meta(ge=-1)] | None = None  # -1 and 0: off
    min_p: Probability | None = None
    repetition_penalty: Annotated[float, Meta(ge=0.01, le=100)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: LogitBias | None = None
    seed: Seed | None = None
    stop: Stop | None = None
    stop_token_ids: StopTokens | None = None
    n: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None = None
    ignore_eos: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    grammar: GrammarText | None = None  # llguidance's Lark dialect, or GBNF
    regex: GrammarText | None = None
    return_progress: bool | None = None  # chunks that tell how far the prompt is
    cache_salt: Salt | None = None  # prefixes are shared only with requests of the same salt
    priority: Annotated[int, Meta(ge=-100, le=100)] | None = None  # higher ones are served first


class ChatRequest(SamplingFields, kw_only=True):
    """Body of /v1/chat/completions, and of /v1/ws."""

    messages: Annotated[list[Message], Meta(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: TopLogprobs | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Tool], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    thinking: Thinking | None = None
    enable_thinking: bool | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    thinking_token_budget: Annotated[int, Meta(ge=0)] | None = None


class CompletionRequest(SamplingFields, kw_only=True):
    """Body of /v1/completions."""

    max_tokens: Annotated[int, Meta(ge=0)] | None = None  # 0: nothing but the echo

    prompt: str | Annotated[list[str | int | list[int]], Meta(min_length=1)]
    suffix: str | None = None
    echo: bool | None = None
    logprobs: TopLogprobs | None = None
    best_of: int | None = None  # refused unless it is n
    response_format: ResponseFormat | None = None


class TokenizeRequest(Struct, kw_only=True):
    """Body of /tokenize: a text, or messages to be put through the chat template."""

    content: str | None = None
    prompt: str | None = None  # the same under its other name
    messages: Annotated[list[Message], Meta(min_length=1, max_length=MAX_MESSAGES)] | None = None
    tools: Annotated[list[Tool], Meta(max_length=MAX_TOOLS)] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_special: bool | None = None  # begin with the BOS token if the tokenizer does
    with_pieces: bool | None = None


class TemplateRequest(Struct, kw_only=True):
    """Body of /apply-template."""

    messages: Annotated[list[Message], Meta(min_length=1, max_length=MAX_MESSAGES)]
    tools: Annotated[list[Tool], Meta(max_length=MAX_TOOLS)] | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class DetokenizeRequest(Struct, kw_only=True):
    """Body of /detokenize."""

    tokens: Annotated[list[int], Meta(max_length=1 << 20)]
