"""tiktoken.model: a merge loop after tiktoken's rule is the judge, and `tiktoken` itself where it is installed."""

# ruff: noqa: RUF001

import base64
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deepzig.errors import TokenizerError
from deepzig.text.tiktoken_ranks import KIMI_SPLIT_PATTERN, split_long_runs
from deepzig.text.tokenizer import Tokenizer, load_tokenizer

if TYPE_CHECKING:
    import tiktoken


def merged_by_rank(piece: bytes, ranks: dict[bytes, int]) -> list[int]:
    """tiktoken's rule: while neighbours form a token, join those of the lowest rank, the leftmost of them first."""
    parts = [bytes([byte]) for byte in piece]
    if piece in ranks:
        return [ranks[piece]]
    while True:
        joined = [(ranks[a + b], i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in ranks]
        if not joined:
            return [ranks[part] for part in parts]
        _, i = min(joined)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]


def tokenizer_of(ranks: dict[bytes, int], directory: Path) -> Tokenizer:
    lines = [base64.b64encode(token) + b" %d" % rank for token, rank in ranks.items()]
    (directory / "tiktoken.model").write_bytes(b"\n".join(lines))
    tokenizer = load_tokenizer(directory)
    assert tokenizer is not None
    return tokenizer


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_merging_follows_the_ranks(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Any vocabulary, not only trained ones: many of its tokens can be made in several ways or not at all."""
    longer = data.draw(st.lists(st.text("abc", min_size=2, max_size=5).map(str.encode), unique=True, max_size=25))
    ranks = {bytes([byte]): byte for byte in range(256)} | {token: 256 + i for i, token in enumerate(longer)}
    tokenizer = tokenizer_of(ranks, tmp_path_factory.mktemp("ranks"))
    for text in data.draw(st.lists(st.text("abc", min_size=1, max_size=40), min_size=20, max_size=20)):
        assert tokenizer.encode(text) == merged_by_rank(text.encode(), ranks)


def test_tokens_that_are_made_in_too_many_ways_are_refused(tmp_path: Path) -> None:
    ranks = {bytes([byte]): byte for byte in range(256)} | {b"a" * n: 254 + n for n in range(2, 1000)}
    with pytest.raises(TokenizerError, match="too many ways"):
        tokenizer_of(ranks, tmp_path)


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("你好world世界", ["你好", "world", "世界"]),
        ("Hello WORLD don't", ["Hello", " WORLD", " don't"]),
        ("camelCaseHTTPServer", ["camel", "Case", "HTTPServer"]),
        ("1234567 x", ["123", "456", "7", " x"]),
        ("a  b   \n\n c", ["a", " ", " b", "   \n\n", " c"]),
        ("x!?\r\n(y)", ["x", "!?\r\n", "(y", ")"]),
        ("I'LL 'S", ["I'LL", " '", "S"]),
        ("々〇", ["々〇"]),
        ("éclair ñ", ["éclair", " ñ"]),
    ],
)
def test_split_pattern(text: str, pieces: list[str]) -> None:
    from tokenizers import Regex, pre_tokenizers

    splitter = pre_tokenizers.Split(Regex(KIMI_SPLIT_PATTERN), "isolated")
    assert [piece for piece, _ in splitter.pre_tokenize_str(text)] == pieces


def test_marks_of_answers_are_not_left_out(kimi_tokenizer: Tokenizer) -> None:
    text = "<|im_end|><think><|tool_call_begin|>"
    ids = kimi_tokenizer.encode(text, add_bos=False)
    assert len(ids) == 3 and set(ids) <= kimi_tokenizer.control_tokens.id_set
    assert kimi_tokenizer.decode(ids) == "<think><|tool_call_begin|>"


def test_special_tokens(kimi_tokenizer: Tokenizer, kimi_ranks: dict[bytes, int]) -> None:
    n = len(kimi_ranks)
    assert kimi_tokenizer.vocab_size == n + 256
    assert (kimi_tokenizer.bos_token_id, kimi_tokenizer.eos_token_id) == (n, n + 1)
    assert kimi_tokenizer.token_to_id("<|im_end|>") == n + 2
    assert kimi_tokenizer.token_bytes(n + 255) == b"<|reserved_token_%d|>" % (n + 255)
    assert kimi_tokenizer.encode(f"[BOS]the<think><|reserved_token_{n + 100}|>") == [
        n,
        *kimi_tokenizer.encode("the"),
        n + 40,
        n + 100,
    ]
    assert kimi_tokenizer.decode([n, n + 40, n + 100]) == "<think>"


def test_bytes_of_tokens(kimi_tokenizer: Tokenizer, kimi_ranks: dict[bytes, int]) -> None:
    assert {kimi_tokenizer.token_bytes(rank): rank for rank in range(len(kimi_ranks))} == kimi_ranks
    assert kimi_tokenizer.token_to_id(" the") == kimi_ranks[b" the"]
    assert kimi_tokenizer.token_to_id("no such token") is None


def test_long_runs_are_cut() -> None:
    assert list(split_long_runs("a b")) == ["a b"]
    runs = "x" * 60_000 + " " + "y" * 25_000 + " " * 25_001 + "z"
    parts = list(split_long_runs(runs))
    assert "".join(parts) == runs
    assert [len(part) for part in parts] == [25_000, 25_000, 10_000 + 1 + 25_000 + 25_000, 2]
    assert [len(part) for part in split_long_runs("a " * 300_000)] == [400_000, 200_000]


@pytest.fixture(scope="session")
def oracle(kimi_ranks: dict[bytes, int], kimi_tokenizer: Tokenizer) -> "tiktoken.Encoding":
    tiktoken = pytest.importorskip("tiktoken", reason="`pip install tiktoken` lets these tests ask tiktoken itself")
    encoding: tiktoken.Encoding = tiktoken.Encoding(
        name="kimi",
        pat_str=KIMI_SPLIT_PATTERN,
        mergeable_ranks=kimi_ranks,
        special_tokens=kimi_tokenizer.control_tokens.ids,
    )
    return encoding


pieces = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=10),
    st.text("aAbBéÉ漢字々'sStTlLvV12 \n\r\t.,!ſK", max_size=12),
    st.sampled_from(["<|im_end|>", "[BOS]", "<think>", "<|im_", "the cat", "  sat", "don't", "你好"]),
)


@settings(deadline=None, max_examples=500, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(pieces, max_size=8).map("".join))
def test_ids_are_those_of_tiktoken(kimi_tokenizer: Tokenizer, oracle: "tiktoken.Encoding", text: str) -> None:
    assert kimi_tokenizer.encode(text, allow_special=False) == oracle.encode_ordinary(text)
    assert kimi_tokenizer.encode(text) == oracle.encode(text, allowed_special="all")


def test_every_character_like_tiktoken(kimi_tokenizer: Tokenizer, oracle: "tiktoken.Encoding") -> None:
    """Both libraries have Unicode tables of their own; a character classed differently would be split otherwise."""
    for start in range(0, 0x3_0000, 32):
        chars = [chr(code) for code in range(start, start + 32) if not 0xD800 <= code < 0xE000]
        text = "".join(f"a{char}b1{char} '{char}" for char in chars)
        assert kimi_tokenizer.encode(text, allow_special=False) == oracle.encode_ordinary(text)
