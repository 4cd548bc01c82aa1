"""Token ids to text, one by one or as they come, for streaming.

Called by `engine.generation` for the generated tokens and by `server.logprobs`; calls only `Tokenizer`. Knows nothing
of stop strings.
"""

import codecs

from deepzig.text.tokenizer import Tokenizer


class StreamDecoder:
    """Never emits half a character: bytes wait until their character is complete or cannot become one.

    Special tokens have no text. The concatenation of every `push` and of `finish` equals `tokenizer.decode(ids)`; but
    where the tokens go on with a text, their first space belongs to it and stays.
    """

    def __init__(self, tokenizer: Tokenizer, *, before: int | None = None) -> None:
        """before: the token that the first one follows, None if it follows none."""
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._may_strip = tokenizer.strips_leading_space and tokenizer.begins_text(before)

    def push(self, *token_ids: int) -> str:
        """The text that these tokens complete, often empty. Raises RequestError for an unknown id."""
        kept = [token for token in token_ids if not self._tokenizer.is_special(token)]
        content = b"".join(map(self._tokenizer.token_bytes, kept))
        if self._may_strip and content:
            self._may_strip = False
            content = content.removeprefix(b" ")
        return self._utf8.decode(content)

    def finish(self) -> str:
        """What still waits: U+FFFD for an incomplete character, else nothing."""
        return self._utf8.decode(b"", final=True)
