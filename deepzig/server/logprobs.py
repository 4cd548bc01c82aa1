"""Log-probabilities in the two shapes that OpenAI's protocol has. Called by `chat` and `completions`."""

from collections.abc import Sequence

from deepzig.engine.sampling import TokenLogprob
from deepzig.server.replies import ChatLogprob, CompletionLogprobs, TopLogprob
from deepzig.text.stream_decoder import StreamDecoder
from deepzig.text.tokenizer import Tokenizer

MIN_LOGPROB = -100.0  # JSON has no -inf


def chat_logprob(entry: TokenLogprob, tokenizer: Tokenizer) -> ChatLogprob:
    """A token of a chat's answer with those that could have been."""
    token = _token(entry.token_id, entry.logprob, tokenizer)
    top = [_token(token_id, logprob, tokenizer) for token_id, logprob in entry.top]
    return ChatLogprob(token.token, token.logprob, token.bytes, top)


class CompletionScores:
    """Log-probabilities of one text of a completion, whose tokens come in order."""

    def __init__(self, tokenizer: Tokenizer, offset: int = 0, before: int | None = None) -> None:
        """offset: of the first token in the reply's text, in characters. before: the token that it follows."""
        self._tokenizer = tokenizer
        self._decoder = StreamDecoder(tokenizer, before=before)
        self._offset = offset

    def add(self, entries: Sequence[TokenLogprob | int]) -> CompletionLogprobs:
        """The next tokens; an int is one without log-probability. Special tokens have no text.

        A token that ends within a character moves the offset no further: that is where the next one begins.
        """
        reply = CompletionLogprobs([], [], [], [])
        for entry in entries:
            token_id = entry if isinstance(entry, int) else entry.token_id
            text = "" if self._tokenizer.is_special(token_id) else _text(self._tokenizer.bytes_or_none(token_id))
            reply.tokens.append(text)
            reply.text_offset.append(self._offset)
            if self._tokenizer.has_token(token_id):
                self._offset += len(self._decoder.push(token_id))
            reply.token_logprobs.append(None if isinstance(entry, int) else max(entry.logprob, MIN_LOGPROB))
            reply.top_logprobs.append(None if isinstance(entry, int) else self._top(entry, text))
        return reply

    def _top(self, entry: TokenLogprob, text: str) -> dict[str, float]:
        """The likeliest tokens and the one that came, which goes by `text`. Of several with a text the likeliest."""
        top: dict[str, float] = {}
        for token_id, logprob in (*entry.top, (entry.token_id, entry.logprob)):
            name = text if token_id == entry.token_id else _text(self._tokenizer.bytes_or_none(token_id))
            top.setdefault(name, max(logprob, MIN_LOGPROB))
        return top


def joined(parts: Sequence[CompletionLogprobs]) -> CompletionLogprobs:
    """Parts of a text, one after the other."""
    whole = CompletionLogprobs([], [], [], [])
    for part in parts:
        whole.tokens += part.tokens
        whole.token_logprobs += part.token_logprobs
        whole.top_logprobs += part.top_logprobs
        whole.text_offset += part.text_offset
    return whole


def _token(token_id: int, logprob: float, tokenizer: Tokenizer) -> TopLogprob:
    content = tokenizer.bytes_or_none(token_id)
    return TopLogprob(_text(content), max(logprob, MIN_LOGPROB), list(content or b""))


def _text(content: bytes | None) -> str:
    """None: of a row of the model's vocabulary that the tokenizer lacks."""
    return (content or b"").decode(errors="replace")
