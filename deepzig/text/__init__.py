"""Text: token ids from text and back, chat templates, stop strings.

Called by engine, cli and server; calls nothing of deepzig but errors and `small_files`. Tokenizer libraries and Jinja
are imported where they are used, so importing this package is cheap.
"""

from deepzig.text.chat import ChatTemplate
from deepzig.text.stop_strings import StopMatcher
from deepzig.text.stream_decoder import StreamDecoder
from deepzig.text.tokenizer import Tokenizer, load_tokenizer

__all__ = ["ChatTemplate", "StopMatcher", "StreamDecoder", "Tokenizer", "load_tokenizer"]
