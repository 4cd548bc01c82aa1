"""Text by strangers, for a terminal: it must not be able to control it.

Called by `generate` and `chat_output`, which show what models and saved conversations say, by `tables`, and for errors,
which may quote a server. Knows nothing of them.
"""

from typing import TextIO

# Line breaks and tabs are the only control characters that stay.
_CONTROLS = {code: "\ufffd" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"} | {0x0D: None}


def harmless(text: str, stream: TextIO) -> str:
    """The text without control characters if the stream is a terminal; elsewhere unchanged."""
    return text.translate(_CONTROLS) if stream.isatty() else text
