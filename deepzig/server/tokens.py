"""/tokenize, /detokenize and /apply-template. Called by `app`."""

from collections.abc import Sequence

from deepzig.server.chat_prompt import chat_prompt
from deepzig.server.failures import ApiError, blaming
from deepzig.server.replies import AppliedTemplate, Detokenized, Tokenized, TokenPiece
from deepzig.server.requests import DetokenizeRequest, Message, TemplateRequest, TokenizeRequest
from deepzig.server.served_model import ServedModel
from deepzig.text.tokenizer import Tokenizer


def tokenize(model: ServedModel, request: TokenizeRequest) -> Tokenized:
    """Token ids of a text, or of messages as a chat would send them. Raises ApiError, RequestError, TokenizerError."""
    given = {"content": request.content, "prompt": request.prompt, "messages": request.messages}
    fields = [field for field, value in given.items() if value is not None]
    if len(fields) != 1:
        raise ApiError(400, "give one of content, prompt and messages", param="content", code="invalid_value")
    tokenizer = _tokenizer(model)
    if request.messages is not None:
        ids = _chat_ids(model, request.messages, request)
    else:
        text = request.content if request.content is not None else request.prompt or ""
        with blaming(fields[0]):
            tokenizer.check_room(text, model.llm.prompt_room)
        ids = tokenizer.encode(text, add_bos=False if request.add_special is False else None)
    tokens = [_piece(tokenizer, token) if request.with_pieces else token for token in ids]
    return Tokenized(tokens, len(ids), model.n_context)


def apply_template(model: ServedModel, request: TemplateRequest) -> AppliedTemplate:
    """The prompt of a chat as text. Raises as `tokenize`."""
    ids = _chat_ids(model, request.messages, request)
    return AppliedTemplate(_tokenizer(model).decode(ids, skip_special=False))


def detokenize(model: ServedModel, request: DetokenizeRequest) -> Detokenized:
    """Text of token ids, control tokens included. Raises RequestError for an id that is none."""
    return Detokenized(_tokenizer(model).decode(request.tokens, skip_special=False))


def _chat_ids(
    model: ServedModel, messages: Sequence[Message], request: TokenizeRequest | TemplateRequest
) -> list[int]:
    """The prompt of a chat; other than a chat itself, it may stop before the answer's beginning."""
    variables = dict(request.chat_template_kwargs or {})
    begins_answer = variables.pop("add_generation_prompt", True)
    return chat_prompt(model, messages, request.tools, variables, begins_answer=begins_answer).token_ids


def _piece(tokenizer: Tokenizer, token: int) -> TokenPiece:
    content = tokenizer.token_bytes(token)
    try:
        return TokenPiece(token, content.decode())
    except UnicodeDecodeError:
        return TokenPiece(token, list(content))


def _tokenizer(model: ServedModel) -> Tokenizer:
    if model.tokenizer is None:
        raise ApiError(400, f"the model {model.id!r} has no tokenizer", code="no_tokenizer")
    return model.tokenizer
