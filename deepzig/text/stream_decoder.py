"""Token ids to text, one by one or as they come, for streaming.

Called by `engine.generation` for the generated tokens and by `server.logprobs`; calls only `Tokenizer.token_bytes`.
Knows nothing of stop strings.
"""

import codecs

from deepzig.text.tokenizer import Tokenizer


class StreamDecoder:
    """Never emits half a character: bytes wait until their character is complete or cannot become one.

    The concatenation of every `push` and of `finish` equals `tokenizer.decode(ids, skip_special)`.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._at_start = True

    def push(self, *token_ids: int) -> str:
        """The text that these tokens complete, often empty. Raises RequestError for an unknown id."""
        kept = [token for token in token_ids if not (self._skip_special and self._tokenizer.is_special(token))]
        content = b"".join(map(self._tokenizer.token_bytes, kept))
        if self._at_start and content:
            self._at_start = False
            if self._tokenizer.strips_leading_space and content.startswith(b" "):
                content = content[1:]
        return self._utf8.decode(content)

    def finish(self) -> str:
        """What still waits: U+FFFD for an incomplete character, else nothing."""
        return self._utf8.decode(b"", final=True)
