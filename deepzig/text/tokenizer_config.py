"""What tokenizer_config.json says, checked once.

Called by `tokenizer`, its backends, `chat` and `cli.chat_file`. Knows nothing of vocabularies or templates.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deepzig.errors import TokenizerError, shown
from deepzig.small_files import read_json_object

MAX_CONFIG_BYTES = 16 << 20
NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")  # what HF hands to a chat template


@dataclass(frozen=True)
class AddedToken:
    """A token matched as a whole, outside the vocabulary's own splitting (HF `AddedToken`)."""

    id: int
    text: str
    special: bool  # HF's flag: left out by decode(skip_special=True)

    @property
    def is_control(self) -> bool:
        """Whether only a chat template, never the text of a user, may write this token.

        The flag alone does not tell: DeepSeek-V3 leaves it off `<think>` and the tokens that open a turn. Added words,
        single characters and runs of spaces (DeepSeek-V2 adds "ø") are vocabulary.
        """
        is_word = all(c.isalnum() or c.isspace() for c in self.text)
        return self.special or not (len(self.text) == 1 or is_word)


@dataclass(frozen=True)
class TokenizerConfig:
    """The fields of tokenizer_config.json that deepzig obeys; all are optional in the file."""

    names: dict[str, str] = field(default_factory=dict)  # NAMED_TOKENS that the file names, e.g. bos_token -> "<s>"
    add_bos_token: bool | None = None
    added_tokens: tuple[AddedToken, ...] = ()
    chat_template: Any = None  # as it stands in the file; `chat` judges it

    @classmethod
    def from_directory(cls, directory: Path) -> "TokenizerConfig":
        """Reads tokenizer_config.json; without one, all defaults. Raises TokenizerError if it is malformed."""
        path = directory / "tokenizer_config.json"
        if not path.is_file():
            return cls()
        data = read_json_object(path, MAX_CONFIG_BYTES, TokenizerError)
        add_bos_token = data.get("add_bos_token")
        if add_bos_token is not None and not isinstance(add_bos_token, bool):
            raise TokenizerError(f"{path.name}: add_bos_token is {shown(add_bos_token)}; it must be true or false")
        names = {name: _token_text(data[name], name) for name in NAMED_TOKENS if data.get(name) is not None}
        added_tokens = _parse_added_tokens(data.get("added_tokens_decoder"))
        return cls(names, add_bos_token, added_tokens, data.get("chat_template"))


def is_unicode(text: str) -> bool:
    """Whether UTF-8 can write the text: JSON can spell lone surrogates, which are no characters."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _token_text(value: object, name: str) -> str:
    text = value.get("content") if isinstance(value, dict) else value
    if not isinstance(text, str) or not text:
        raise TokenizerError(f"tokenizer_config.json: {name} is {shown(value)}; it must be a text")
    if not is_unicode(text):
        raise TokenizerError(f"tokenizer_config.json: {name} is {shown(text)}, which has a lone surrogate; mend it")
    return text


def _parse_added_tokens(entries: object) -> tuple[AddedToken, ...]:
    if entries is None:
        return ()
    if not isinstance(entries, dict):
        raise TokenizerError(f"tokenizer_config.json: added_tokens_decoder is {shown(entries)}; it must be an object")
    tokens = []
    for key, entry in entries.items():
        if not (key.isascii() and key.isdecimal() and len(key) < 8):
            raise TokenizerError(f"tokenizer_config.json: added_tokens_decoder has {shown(key)} for a token id")
        text = _token_text(entry, f"added_tokens_decoder[{key}]")
        special = entry.get("special", False) if isinstance(entry, dict) else False
        tokens.append(AddedToken(int(key), text, special is True))
    return tuple(tokens)
