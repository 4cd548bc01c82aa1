"""Backend for tiktoken.model as Kimi-K2 and Moonlight ship it: a vocabulary of bytes, ranked, and no rules beside it.

Called by `tokenizer`. Each line of the file is a token in base64, a space and its rank, which is its id.
The pattern that splits text and the names of unnamed special tokens live in Python code beside the published files;
they are constants here, for code from a model folder is never run. The `tokenizers` library does the merging.
"""

import base64
import binascii
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from deepzig.errors import TokenizerError, shown
from deepzig.small_files import read_small
from deepzig.text import byte_level
from deepzig.text.control_tokens import ControlTokens
from deepzig.text.library_errors import library_errors
from deepzig.text.tokenizer_config import AddedToken, TokenizerConfig
from deepzig.text.tokenizer_json import encode_unlocked

if TYPE_CHECKING:
    import tokenizers

MAX_RANKS_BYTES = 64 << 20
MAX_TOKEN_BYTES = 1024  # every split of a token is looked at; real ones stay below 256
MAX_CUT_BYTES = 1 << 24  # of all cuts of tokens into two; the tokens of DeepSeek-V3 would have 2 million
N_RESERVED = 256  # special ids after the vocabulary
MAX_PIECE_CHARS = 400_000
MAX_RUN_CHARS = 25_000

_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
_BEFORE_WORD = r"[^\r\n\p{L}\p{N}]?"
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
KIMI_SPLIT_PATTERN = "|".join(
    [
        r"[\p{Han}]+",
        f"{_BEFORE_WORD}{_UPPER}*{_LOWER}+{_CONTRACTION}",
        f"{_BEFORE_WORD}{_UPPER}+{_LOWER}*{_CONTRACTION}",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)
# Parts of an answer that `answer_parser` looks for: never left out of its text, whatever tokenizer_config.json says.
_ANSWER_MARK = re.compile(r"<\|tool_call\w*\|>|</?think>")
_LONG_RUN = re.compile(rf"\s{{{MAX_RUN_CHARS + 1},}}|\S{{{MAX_RUN_CHARS + 1},}}")


class TiktokenRanks:
    """Encodes as `tiktoken` does with Kimi's pattern, ranks and special tokens."""

    strips_leading_space = False

    def __init__(self, path: Path, config: TokenizerConfig) -> None:
        ranks = parse_ranks(read_small(path, MAX_RANKS_BYTES, TokenizerError))
        self._tokens = sorted(ranks, key=ranks.__getitem__)
        self._engine = _build_engine(self._tokens)
        self.added_tokens = _special_tokens(len(ranks), config)
        self.control_tokens = ControlTokens(self.added_tokens)
        self.vocab_size = max(token.id for token in self.added_tokens) + 1

    def encode(self, text: str, allow_special: bool) -> list[int]:
        """See `tokenizer.Backend`."""
        ids: list[int] = []
        for part in split_long_runs(text):
            for piece, token_id in self.control_tokens.split(part) if allow_special else [(part, None)]:
                ids += [token_id] if token_id is not None else self._encode_plain(piece)
        return ids

    def _encode_plain(self, text: str) -> list[int]:
        with library_errors("tiktoken.model cannot encode the text", "use another"):
            return encode_unlocked(self._engine, text)

    def affixes(self) -> tuple[list[int], list[int]]:
        """Kimi's tokenizer adds nothing by itself."""
        return [], []

    def token_bytes(self, token_id: int) -> bytes | None:
        """See `tokenizer.Backend`."""
        return self._tokens[token_id] if token_id < len(self._tokens) else None

    def token_to_id(self, token: str) -> int | None:
        """The id of the vocabulary's token with the bytes of this text."""
        token_id: int | None = self._engine.token_to_id(byte_level.to_chars(token.encode()))
        return token_id


def parse_ranks(content: bytes) -> dict[bytes, int]:
    """Token -> rank. Raises TokenizerError unless the ranks are 0, 1, 2, ... and every single byte has one."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(content.splitlines(), 1):
        if not line:
            continue
        try:
            spelling, rank = line.split()
            token = base64.b64decode(spelling, validate=True)
            ranks[token] = int(rank)
        except (ValueError, binascii.Error) as error:
            raise TokenizerError(
                f"tiktoken.model line {number} is {shown(line)}, not a base64 token and its rank; download it again"
            ) from error
        if not 0 < len(token) <= MAX_TOKEN_BYTES:
            raise TokenizerError(f"tiktoken.model line {number} has a token of {len(token)} bytes; download it again")
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise TokenizerError("tiktoken.model has ranks missing or given twice; download it again")
    if any(bytes([byte]) not in ranks for byte in range(256)):
        raise TokenizerError("tiktoken.model lacks single bytes, so not all text can be encoded; download it again")
    return ranks


def split_long_runs(text: str) -> Iterator[str]:
    """Cuts `text` where Kimi's tokenizer does; concatenated, the parts are `text`.

    That is every 400,000 characters and, within runs of spaces or of anything else, every 25,000.
    """
    for start in range(0, len(text), MAX_PIECE_CHARS):
        part = text[start : start + MAX_PIECE_CHARS]
        position = 0
        for run in _LONG_RUN.finditer(part):
            for cut in range(run.start() + MAX_RUN_CHARS, run.end(), MAX_RUN_CHARS):
                yield part[position:cut]
                position = cut
        yield part[position:]


def _build_engine(tokens: list[bytes]) -> "tokenizers.Tokenizer":
    """tiktoken's merging as `tokenizers` BPE.

    tiktoken merges whichever neighbours form the token of the lowest rank, and takes a piece that is a token as it is:
    hence every way to cut a token into two tokens is a merge, ordered by the rank of the whole, and `ignore_merges`.
    """
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    vocab = {byte_level.to_chars(token): rank for rank, token in enumerate(tokens)}
    merges: list[tuple[str, str]] = []
    n_bytes = 0
    for whole in vocab:
        cuts = [(whole[:i], whole[i:]) for i in range(1, len(whole)) if whole[:i] in vocab and whole[i:] in vocab]
        n_bytes += len(cuts) * len(whole)
        if n_bytes > MAX_CUT_BYTES:
            raise TokenizerError("tiktoken.model has tokens that others make in too many ways; download it again")
        merges += sorted(cuts, key=lambda cut: (vocab[cut[0]], vocab[cut[1]]))
    engine = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=True))
    engine.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(KIMI_SPLIT_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return engine


def _special_tokens(n_ranks: int, config: TokenizerConfig) -> list[AddedToken]:
    named = {
        token.id: replace(token, special=False) if _ANSWER_MARK.fullmatch(token.text) else token
        for token in config.added_tokens
    }
    if below := [token for token in config.added_tokens if token.id < n_ranks]:
        raise TokenizerError(
            f"tokenizer_config.json gives {shown(below[0].text)} the id {below[0].id}, "
            f"which tiktoken.model uses; the two files do not belong together"
        )
    reserved = {i: AddedToken(i, f"<|reserved_token_{i}|>", True) for i in range(n_ranks, n_ranks + N_RESERVED)}
    return [token for _, token in sorted((reserved | named).items())]
