"""Objects of /v1/responses, as msgspec structs. Read and filled by `responses`; shown by `openapi`."""

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType, field

from deepzig.server.replies import CachedTokens, ReasoningTokens
from deepzig.server.requests import (
    MAX_MESSAGES,
    MAX_TOOLS,
    Count,
    FunctionName,
    Probability,
    Salt,
    Temperature,
)

Metadata = Annotated[
    dict[Annotated[str, Meta(max_length=64)], Annotated[str, Meta(max_length=512)]], Meta(max_length=16)
]  # OpenAI's limits
Status = Literal["in_progress", "completed", "incomplete", "failed"]

# ---- what clients send


class InputText(Struct, kw_only=True):
    """A part of an input message or of past reasoning."""

    text: str
    type: Literal["input_text", "output_text", "text", "reasoning_text", "summary_text"] = "input_text"


class InputItem(Struct, kw_only=True):
    """A message, or a call, its result or reasoning of the past; which fields count depends on the type.

    A reference is refused: nothing is stored.
    """

    type: Literal["message", "function_call", "function_call_output", "reasoning", "item_reference"] = "message"
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: str | list[InputText] | None = None
    call_id: str | None = None
    name: str | None = None  # of a call, whatever the model wrote
    arguments: str | None = None
    output: str | list[InputText] | None = None


class ResponsesTool(Struct, kw_only=True):
    """A function, without the nesting that chats have; tools of other types are left out."""

    type: str = "function"
    name: FunctionName | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ResponsesToolChoice(Struct, kw_only=True):
    """The one tool that must be called."""

    name: FunctionName
    type: Literal["function"] = "function"


class TextFormat(Struct, kw_only=True):
    """What form the answer must have."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    name: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None
    description: str | None = None


class TextOptions(Struct, kw_only=True):
    """How the answer is written."""

    format: TextFormat | None = None


class ReasoningOptions(Struct, kw_only=True):
    """How much to think."""

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None


class ResponsesRequest(Struct, kw_only=True):
    """Body of /v1/responses."""

    input: str | Annotated[list[InputItem], Meta(min_length=1, max_length=MAX_MESSAGES)]
    model: str | None = None
    instructions: str | None = None
    max_output_tokens: Count | None = None
    temperature: Temperature | None = None
    top_p: Probability | None = None
    stream: bool | None = None
    tools: Annotated[list[ResponsesTool], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ResponsesToolChoice | None = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    reasoning: ReasoningOptions | None = None
    metadata: Metadata | None = None  # comes back as it is
    previous_response_id: str | None = None  # refused: nothing is stored
    conversation: str | dict[str, Any] | None = None  # refused, too
    cache_salt: Salt | None = None


# ---- what clients get


class OutputText(Struct):
    """Text of a message."""

    text: str
    type: Literal["output_text"] = "output_text"
    annotations: list[str] = field(default_factory=list)  # none are made
    logprobs: list[str] = field(default_factory=list)


class ReasoningText(Struct):
    """Text of reasoning."""

    text: str
    type: Literal["reasoning_text"] = "reasoning_text"


class OutputMessage(Struct, tag_field="type", tag="message"):
    """The answer proper."""

    id: str
    content: list[OutputText]
    status: Status = "in_progress"
    role: Literal["assistant"] = "assistant"


class OutputReasoning(Struct, tag_field="type", tag="reasoning"):
    """Reasoning."""

    id: str
    content: list[ReasoningText]
    status: Status = "in_progress"
    summary: list[str] = field(default_factory=list)


class OutputCall(Struct, tag_field="type", tag="function_call"):
    """A call of a function."""

    id: str
    call_id: str
    name: str
    arguments: str
    status: Status = "in_progress"


OutputItem = OutputMessage | OutputReasoning | OutputCall


class ResponsesInputDetails(CachedTokens):
    """Detail of the prompt's tokens."""

    cache_write_tokens: int = 0


class ResponsesUsage(Struct):
    """Tokens of a request."""

    input_tokens: int
    output_tokens: int
    total_tokens: int
    input_tokens_details: ResponsesInputDetails
    output_tokens_details: ReasoningTokens


class IncompleteDetails(Struct):
    """Why the answer ends early."""

    reason: Literal["max_output_tokens"]


class ResponseError(Struct):
    """Why the answer failed."""

    code: str
    message: str


class ResponseReply(Struct):
    """Reply of /v1/responses."""

    id: str
    created_at: int
    model: str
    output: list[OutputItem]
    status: Status
    parallel_tool_calls: bool
    tool_choice: Literal["none", "auto", "required"] | ResponsesToolChoice
    tools: list[ResponsesTool]
    instructions: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    max_output_tokens: int | None = None
    usage: ResponsesUsage | None = None
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    object: Literal["response"] = "response"
    store: bool = False
    metadata: dict[str, str] = field(default_factory=dict)
    previous_response_id: None = None


class ResponseEvent(Struct):
    """An event of a streamed reply; which fields it has depends on its type."""

    type: str
    sequence_number: int
    response: ResponseReply | UnsetType = UNSET
    output_index: int | UnsetType = UNSET
    item: OutputItem | UnsetType = UNSET
    item_id: str | UnsetType = UNSET
    content_index: int | UnsetType = UNSET
    part: OutputText | ReasoningText | UnsetType = UNSET
    delta: str | UnsetType = UNSET
    text: str | UnsetType = UNSET
    name: str | UnsetType = UNSET
    arguments: str | UnsetType = UNSET
    logprobs: list[str] | UnsetType = UNSET
