"""Tokenizer: text to token ids and back, over whichever tokenizer file a model folder has.

Called by engine, cli and server; calls one of three backends (`tokenizer_json`, `sentencepiece_model`,
`tiktoken_ranks`). Knows nothing of models and chat templates.
"""

import operator
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Protocol

from deepzig.errors import ContextLengthError, RequestError
from deepzig.text.control_tokens import ControlTokens
from deepzig.text.tokenizer_config import AddedToken, TokenizerConfig

SHRINKS_TO = 4  # normalization is not expected to make a text shorter than by this


class Backend(Protocol):
    """What one kind of tokenizer file must provide."""

    added_tokens: list[AddedToken]
    control_tokens: ControlTokens
    vocab_size: int
    strips_leading_space: bool  # encode puts a space before the text, so decode takes one away

    def encode(self, text: str, allow_special: bool) -> list[int]:
        """The ids of `text` alone, without BOS or EOS."""

    def affixes(self) -> tuple[list[int], list[int]]:
        """The ids that the file's own rule puts before and after a text."""

    def token_bytes(self, token_id: int) -> bytes | None:
        """The bytes of a token of the vocabulary, None if there is none; added tokens are not asked for."""

    def token_to_id(self, token: str) -> int | None:
        """The id of a token as the file spells it; added tokens are not asked for."""


def load_tokenizer(directory: Path) -> "Tokenizer | None":
    """The tokenizer of a model folder, None if it has no tokenizer file.

    tokenizer.json wins over tokenizer.model (SentencePiece), and that over tiktoken.model (Kimi, Moonlight). Nothing
    from the folder is executed. Raises TokenizerError if the file is malformed.
    """
    config = TokenizerConfig.from_directory(directory)
    backend: Backend
    if (path := directory / "tokenizer.json").is_file():
        from deepzig.text.tokenizer_json import TokenizerJson

        backend = TokenizerJson(path)
    elif (path := directory / "tokenizer.model").is_file():
        from deepzig.text.sentencepiece_model import SentencePieceModel

        backend = SentencePieceModel(path, config)
    elif (path := directory / "tiktoken.model").is_file():
        from deepzig.text.tiktoken_ranks import TiktokenRanks

        backend = TiktokenRanks(path, config)
    else:
        return None
    return Tokenizer(backend, config)


class Tokenizer:
    """Text to token ids and back. Immutable and safe to share between threads.

    Attributes:
        vocab_size: how many token ids the tokenizer has; the model's head may have more rows.
        bos_token_id, eos_token_id: None if there is none.
        special_tokens: text -> id of those that decode leaves out.
        control_tokens: `control_tokens.ids` (text -> id) are those that only a template may write. DeepSeek-V3's
            `<think>` is one of these, not of the special ones.
        strips_leading_space: encode puts a space before a text, so decode takes one away.
    """

    def __init__(self, backend: Backend, config: TokenizerConfig) -> None:
        self._backend = backend
        self._added = {token.id: token.text.encode() for token in backend.added_tokens}
        self._added_ids = {token.text: token.id for token in backend.added_tokens}
        self.vocab_size: int = backend.vocab_size
        self.control_tokens: ControlTokens = backend.control_tokens
        self.strips_leading_space: bool = backend.strips_leading_space
        self._prefix, self._suffix = backend.affixes()
        self._add_bos = config.add_bos_token
        self.bos_token_id: int | None = self._named_id(config, "bos_token")
        self.eos_token_id: int | None = self._named_id(config, "eos_token")
        self.special_tokens: dict[str, int] = {token.text: token.id for token in backend.added_tokens if token.special}
        self._special_ids = frozenset(
            token_id
            for token_id in (*self.special_tokens.values(), self.bos_token_id, self.eos_token_id)
            if token_id is not None
        )

    def _named_id(self, config: TokenizerConfig, name: str) -> int | None:
        if name in config.names:
            return self.token_to_id(config.names[name])
        own_ids = {"bos_token": self._prefix, "eos_token": self._suffix}[name]
        return own_ids[0] if own_ids else None

    @property
    def own_prefix(self) -> list[int]:
        """What `encode` puts before a text by the tokenizer's own rule: a BOS token, or nothing."""
        if self._add_bos is None:
            return self._prefix
        return [self.bos_token_id] if self._add_bos and self.bos_token_id is not None else []

    def encode(self, text: str, add_bos: bool | None = None, allow_special: bool = True) -> list[int]:
        """Token ids of `text`.

        Args:
            text: any Unicode text.
            add_bos: None follows the tokenizer's own rule: add_bos_token in tokenizer_config.json, else what the
                tokenizer file itself does.
            allow_special: False encodes text that spells a control token as plain text.

        Raises:
            RequestError: the text has a lone surrogate, or BOS is asked for and there is none.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise RequestError(
                f"the text has a lone surrogate at position {error.start}, which is no character; remove it"
            ) from error
        ids = self._backend.encode(text, allow_special)
        if add_bos is None:
            add_bos = self._add_bos
        if add_bos is None:
            return [*self._prefix, *ids, *self._suffix]
        if not add_bos:
            return ids
        if self.bos_token_id is None:
            raise RequestError("a BOS token is asked for but this tokenizer has none; set add_bos=False")
        return [self.bos_token_id, *ids]

    def check_room(self, text: str, room: int) -> None:
        """Refuse a text that cannot have so few tokens as `room`, by its length alone: encoding would take long.

        Raises:
            ContextLengthError: it is longer than `room` of the longest tokens, with leeway for normalization.
        """
        n_bytes = len(text.encode(errors="surrogatepass"))
        if n_bytes <= room:
            return
        most = room * self._longest * SHRINKS_TO
        if n_bytes > most:
            raise ContextLengthError(
                f"the prompt is too long: it has {n_bytes} bytes, but {room} tokens have at most {most}; cut it"
            )

    @cached_property
    def _longest(self) -> int:
        """Bytes of the longest token of the vocabulary."""
        contents = (self._backend.token_bytes(i) for i in range(self.vocab_size) if i not in self._added)
        return max((len(content) for content in contents if content is not None), default=1)

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """Text of `ids`; bytes that are no UTF-8 become U+FFFD. `skip_special` leaves special tokens out.

        Raises:
            RequestError: an id is unknown.
        """
        kept = [token_id for token_id in ids if not (skip_special and self.is_special(token_id))]
        content = b"".join(map(self.token_bytes, kept))
        if self.strips_leading_space:
            content = content.removeprefix(b" ")
        return content.decode("utf-8", errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The exact bytes of one token, often no whole characters.

        Raises:
            RequestError: the id is unknown.
        """
        content = self.bytes_or_none(operator.index(token_id))
        if content is None:
            raise RequestError(f"token id {token_id} is not in the vocabulary, whose ids are below {self.vocab_size}")
        return content

    def has_token(self, token_id: int) -> bool:
        """Whether the id is in use: vocabularies have gaps, and the model's head may have more rows."""
        return self.bytes_or_none(token_id) is not None

    def bytes_or_none(self, token_id: int) -> bytes | None:
        """As `token_bytes`; None for an id without a token."""
        # Backends cache the bytes of a token; ids of no token must not fill that cache.
        if token_id in self._added or not 0 <= token_id < self.vocab_size:
            return self._added.get(token_id)
        return self._backend.token_bytes(token_id)

    def is_special(self, token_id: int) -> bool:
        """Whether decode leaves this token out."""
        return token_id in self._special_ids

    def begins_text(self, before: int | None) -> bool:
        """Whether what follows this token is a text of its own, not the rest of one: after None, that is nothing, and
        after special and control tokens, between which `encode` takes each stretch by itself."""
        return before is None or before in self._special_ids or before in self.control_tokens.id_set

    def token_to_id(self, token: str) -> int | None:
        """The id of a token as the tokenizer file spells it, None if there is none."""
        added = self._added_ids.get(token)
        return self._backend.token_to_id(token) if added is None else added
