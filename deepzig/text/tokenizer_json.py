"""Backend for tokenizer.json, HF's format, through the `tokenizers` library.

Called by `tokenizer`. Encoding is the library's own; bytes of tokens are worked out here, because the
library decodes to text only.
"""

import json
import re
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepzig.errors import TokenizerError, shown
from deepzig.small_files import read_json_object
from deepzig.text import byte_level
from deepzig.text.control_tokens import ControlTokens
from deepzig.text.library_errors import library_errors
from deepzig.text.tokenizer_config import AddedToken

if TYPE_CHECKING:
    import tokenizers

MAX_TOKENIZER_JSON_BYTES = 128 << 20  # DeepSeek-V3's is 8 MB, the largest of other families 35 MB
LONG_TEXT_CHARS = 10_000  # encoded in about 20 ms
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # SentencePiece's sign for a space


class TokenizerJson:
    """Encodes exactly as `tokenizers` does. Vocabularies are byte-level, or SentencePiece's as converted by HF."""

    def __init__(self, path: Path) -> None:
        data = read_json_object(path, MAX_TOKENIZER_JSON_BYTES, TokenizerError)
        self.is_byte_level, self.strips_leading_space = _decoding_kind(data)
        self._engine = _build_engine(data)
        self._plain_engine: tokenizers.Tokenizer | None = None
        self.added_tokens = [
            AddedToken(token_id, token.content, token.special)
            for token_id, token in self._engine.get_added_tokens_decoder().items()
        ]
        self.control_tokens = ControlTokens(self.added_tokens)
        highest_added = max((token.id for token in self.added_tokens), default=-1)
        self.vocab_size = max(self._engine.get_vocab_size(with_added_tokens=True), highest_added + 1)
        self.token_bytes = lru_cache(maxsize=None)(self._token_bytes)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "token_bytes"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.token_bytes = lru_cache(maxsize=None)(self._token_bytes)

    def encode(self, text: str, allow_special: bool) -> list[int]:
        """See `tokenizer.Backend`."""
        # Normalization may find more control tokens than the spelling shows, so the ids are looked at, too.
        if allow_special or next(self.control_tokens.spans(text), None) is None:
            ids = _ids(self._engine, text)
            if allow_special or self.control_tokens.id_set.isdisjoint(ids):
                return ids
        if self._plain_engine is None:
            self._plain_engine = self._build_plain_engine()
        ids = _ids(self._plain_engine, text)
        if not self.control_tokens.id_set.isdisjoint(ids):
            raise TokenizerError("tokenizer.json makes control tokens out of plain text; use one that does not")
        return ids

    def _build_plain_engine(self) -> "tokenizers.Tokenizer":
        """The same tokenizer without its control tokens; built at the first text that spells one."""
        data = json.loads(self._engine.to_str())
        data["added_tokens"] = [
            token for token in data["added_tokens"] if token["content"] not in self.control_tokens.ids
        ]
        data["post_processor"] = None
        return _build_engine(data)

    def affixes(self) -> tuple[list[int], list[int]]:
        """What the post-processor puts around a text."""
        bare = _ids(self._engine, "a")
        full = _ids(self._engine, "a", post_process=True)
        for start in range(len(full) - len(bare) + 1):
            if full[start : start + len(bare)] == bare:
                return full[:start], full[start + len(bare) :]
        raise TokenizerError("tokenizer.json's post-processor changes the text's own tokens, which is not supported")

    def _token_bytes(self, token_id: int) -> bytes | None:
        spelling: str | None = self._engine.id_to_token(token_id) if token_id < self.vocab_size else None
        if spelling is None:
            return None
        if self.is_byte_level:
            content = byte_level.to_bytes(spelling)
            return spelling.encode() if content is None else content
        if match := _BYTE_TOKEN.fullmatch(spelling):
            return bytes.fromhex(match[1])
        return spelling.replace(_SPACE, " ").encode()

    def token_to_id(self, token: str) -> int | None:
        """See `tokenizer.Backend`."""
        token_id: int | None = self._engine.token_to_id(token)
        return token_id


def _build_engine(data: dict[str, Any]) -> "tokenizers.Tokenizer":
    import tokenizers

    # A saved padding or truncation rule serves training; it would shorten or fill a prompt.
    content = json.dumps(data | {"padding": None, "truncation": None})
    with library_errors("tokenizer.json cannot be used", "download it again"):
        return tokenizers.Tokenizer.from_str(content)


def encode_unlocked(engine: "tokenizers.Tokenizer", text: str, post_process: bool = False) -> list[int]:
    """Ids of a text; other threads go on while a long one is encoded, which the library allows for batches alone."""
    if len(text) < LONG_TEXT_CHARS:
        ids: list[int] = engine.encode(text, add_special_tokens=post_process).ids
    else:
        ids = engine.encode_batch_fast([text], add_special_tokens=post_process)[0].ids
    return ids


def _ids(engine: "tokenizers.Tokenizer", text: str, post_process: bool = False) -> list[int]:
    with library_errors("tokenizer.json cannot encode the text", "use another"):
        return encode_unlocked(engine, text, post_process)


def _decoding_kind(data: dict[str, Any]) -> tuple[bool, bool]:
    """(byte-level alphabet, decode drops a leading space), or TokenizerError if bytes of tokens cannot be known."""
    decoders = _components(data.get("decoder"), "decoders")
    splitters = _components(data.get("pre_tokenizer"), "pretokenizers")
    if any(part.get("type") == "ByteLevel" for part in decoders + splitters):
        return True, False
    for part in decoders:
        if part.get("type") == "Metaspace" and part.get("replacement") == _SPACE:
            return False, part.get("prepend_scheme", "always") != "never" and part.get("add_prefix_space", True)
        if part.get("type") == "Replace" and part.get("pattern") == {"String": _SPACE} and part.get("content") == " ":
            return False, any(p.get("type") == "Strip" and p.get("start") for p in decoders)
    kinds = [part.get("type") for part in decoders]
    raise TokenizerError(
        f"tokenizer.json decodes by {shown(kinds)}; supported are ByteLevel, Metaspace and SentencePiece conversions"
    )


def _components(part: object, key: str) -> list[dict[str, Any]]:
    """The leaves of a Sequence of decoders or pre-tokenizers."""
    if not isinstance(part, dict):
        return []
    members = part.get(key)
    if part.get("type") != "Sequence" or not isinstance(members, list):
        return [part]
    return [leaf for member in members for leaf in _components(member, key)]
