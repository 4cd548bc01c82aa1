"""Log-probabilities in the two shapes that OpenAI's protocol has. Called by `chat` and `completions`."""

from collections.abc import Sequence

from deepzig.engine.sampling import TokenLogprob
from deepzig.server.replies import ChatLogprob, CompletionLogprobs, TopLogprob
from deepzig.text.tokenizer import Tokenizer

LEAST = -100.0  # JSON has no -inf


def chat_logprob(entry: TokenLogprob, tokenizer: Tokenizer) -> ChatLogprob:
    """A token of a chat's answer with those that could have been."""
    token = _token(entry.token_id, entry.logprob, tokenizer)
    top = [_token(token_id, logprob, tokenizer) for token_id, logprob in entry.top]
    return ChatLogprob(token.token, token.logprob, token.bytes, top)


def completion_logprobs(
    entries: Sequence[TokenLogprob | int], tokenizer: Tokenizer, offset: int
) -> CompletionLogprobs:
    """Tokens of a completion, the first at `offset` of the text; an int is a token without log-probability."""
    reply = CompletionLogprobs([], [], [], [])
    for entry in entries:
        token_id = token_of(entry)
        text = _text(_bytes(token_id, tokenizer))
        reply.tokens.append(text)
        reply.text_offset.append(offset)
        offset += len(text)
        if isinstance(entry, int):
            reply.token_logprobs.append(None)
            reply.top_logprobs.append(None)
        else:
            reply.token_logprobs.append(max(entry.logprob, LEAST))
            reply.top_logprobs.append(
                {_text(_bytes(other, tokenizer)): max(logprob, LEAST) for other, logprob in entry.top}
            )
    return reply


def token_of(entry: TokenLogprob | int) -> int:
    """The token of an entry."""
    return entry if isinstance(entry, int) else entry.token_id


def _token(token_id: int, logprob: float, tokenizer: Tokenizer) -> TopLogprob:
    content = _bytes(token_id, tokenizer)
    return TopLogprob(_text(content), max(logprob, LEAST), list(content))


def _bytes(token_id: int, tokenizer: Tokenizer) -> bytes:
    """Bytes of a token; rows of the model's vocabulary that the tokenizer lacks have none."""
    return tokenizer.token_bytes(token_id) if token_id < tokenizer.vocab_size else b""


def _text(content: bytes) -> str:
    return content.decode(errors="replace")
