"""MarkedText: the text of an answer in which control tokens look different from text that spells them.

Called by `answer_parser` and by those who make one; calls `StreamDecoder`. Knows nothing of what the marks mean.
A model quotes what it has read, a web page with the marks of a call for example, and the tokens of a quote are plain
ones. In marked text the first character of each control token is swapped for a stand-in.
"""

from collections import deque
from collections.abc import Iterable, Sequence

from deepzig.text.stream_decoder import StreamDecoder
from deepzig.text.tokenizer import Tokenizer

_FIRST = "<"  # of every mark that is looked for
_STAND_IN = "\udc3c"  # half a surrogate pair, which decoded text never has


class MarkedText:
    """Marks one answer's text as it comes. Where its tokens end in it is found by decoding them once more."""

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int]) -> None:
        """prompt: what the answer follows."""
        self._tokenizer = tokenizer
        self._decoder = StreamDecoder(tokenizer, before=prompt[-1] if prompt else None)
        self._n_decoded = 0  # characters
        self._n_given = 0
        self._starts: deque[int] = deque()  # of control tokens in text that has not come yet

    def spelling(self, mark: str) -> str:
        """`mark` as marked text has it; as it is, if the tokenizer has no token for it."""
        pieces = self._tokenizer.control_tokens.split(mark)
        return "".join(piece if token is None else _marked(piece) for piece, token in pieces)

    def push(self, text: str, token_ids: Iterable[int]) -> str:
        """Marked text: `text` is what came of the answer with these tokens, and may lag behind them."""
        for token in token_ids:
            self._find(token)
        end = self._n_given + len(text)
        while self._starts and self._starts[0] < end:
            at = self._starts.popleft() - self._n_given
            text = text[:at] + _marked(text[at:])
        self._n_given = end
        return text

    def _find(self, token: int) -> None:
        if not self._tokenizer.has_token(token):
            return
        decoded = self._decoder.push(token)
        self._n_decoded += len(decoded)
        if decoded and token in self._tokenizer.control_tokens.id_set:
            mark = self._tokenizer.token_bytes(token).decode()
            if mark.startswith(_FIRST):
                self._starts.append(self._n_decoded - len(mark))


def plain(text: str) -> str:
    """Marked text as the model wrote it."""
    return text.replace(_STAND_IN, _FIRST)


def _marked(text: str) -> str:
    return _STAND_IN + text[1:] if text.startswith(_FIRST) else text
