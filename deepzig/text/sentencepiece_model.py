"""Backend for tokenizer.model, SentencePiece's protobuf, through the `sentencepiece` library.

Called by `tokenizer`. Special tokens beyond the model's own come from tokenizer_config.json.
"""

import re
from pathlib import Path

from deepzig.errors import TokenizerError, shown
from deepzig.small_files import read_small
from deepzig.text.control_tokens import ControlTokens
from deepzig.text.tokenizer_config import AddedToken, TokenizerConfig

MAX_MODEL_BYTES = 64 << 20
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")


class SentencePieceModel:
    """SentencePiece encodes each stretch of text between control tokens on its own (HF's `legacy` LlamaTokenizer)."""

    def __init__(self, path: Path, config: TokenizerConfig) -> None:
        import sentencepiece

        self._model = sentencepiece.SentencePieceProcessor()
        try:
            self._model.LoadFromSerializedProto(read_small(path, MAX_MODEL_BYTES, TokenizerError))
            self._pieces: list[str] = [self._model.IdToPiece(i) for i in range(self._model.GetPieceSize())]
        except (RuntimeError, UnicodeDecodeError) as error:
            raise TokenizerError(f"tokenizer.model cannot be used ({shown(str(error))}); download it again") from error
        own = {
            i: AddedToken(i, piece, special=True)
            for i, piece in enumerate(self._pieces)
            if self._model.IsControl(i) or self._model.IsUnknown(i)
        }
        self.added_tokens = list((own | {token.id: token for token in config.added_tokens}).values())
        self.control_tokens = ControlTokens(self.added_tokens)
        self.vocab_size = max([len(self._pieces), *(token.id + 1 for token in self.added_tokens)])
        # The library tells of its prefix rule only by what it does.
        self.strips_leading_space = self._model.DecodePieces([_SPACE + "a"]) == "a"

    def encode(self, text: str, allow_special: bool) -> list[int]:
        """See `tokenizer.Backend`."""
        if allow_special:
            pieces = self.control_tokens.split(text)
            return [i for piece, token in pieces for i in ([token] if token is not None else self._encode_plain(piece))]
        return self._encode_plain(text)

    def _encode_plain(self, text: str) -> list[int]:
        ids: list[int] = self._model.EncodeAsIds(text)
        written = self.control_tokens.id_set.difference([self._model.unk_id()])
        if not written.isdisjoint(ids):
            raise TokenizerError("tokenizer.model makes control tokens out of plain text; use one that does not")
        return ids

    def affixes(self) -> tuple[list[int], list[int]]:
        """BOS before the text if the model has one, as HF's LlamaTokenizer does by default; nothing after it."""
        return ([self._model.bos_id()] if self._model.bos_id() >= 0 else []), []

    def token_bytes(self, token_id: int) -> bytes | None:
        """See `tokenizer.Backend`."""
        if token_id >= len(self._pieces):
            return None
        piece = self._pieces[token_id]
        if self._model.IsByte(token_id) and (match := _BYTE_PIECE.fullmatch(piece)):
            return bytes.fromhex(match[1])
        return piece.replace(_SPACE, " ").encode()

    def token_to_id(self, token: str) -> int | None:
        """See `tokenizer.Backend`."""
        token_id = int(self._model.PieceToId(token))
        return None if token_id == self._model.unk_id() else token_id
