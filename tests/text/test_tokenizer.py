"""What holds for every kind of tokenizer file, and how broken ones are told."""

# ruff: noqa: RUF001

import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deepzig.errors import RequestError, TokenizerError
from deepzig.text.tokenizer import Tokenizer, load_tokenizer

TEXTS = [
    "",
    " ",
    "Hello, world!",
    "  two  spaces, \n\n\tand lines\r\n",
    "你好，世界 こんにちは",
    "👩‍💻 family 👨‍👩‍👧‍👦 flag 🇨🇳 é é",
    "\x00\x01\x7f\u0080\ufffd\U0010ffff",
    "ø ÷ ý 12345678 don't WE'VE",
    "<｜User｜> <think> <|im_end|> [BOS] <s>",
]
characters = st.one_of(
    st.characters(exclude_categories=["Cs"]),
    st.sampled_from("ab <>｜|[]▁é漢字😀\u200d\ufe0f\n\r\t \u3000'"),
)


@pytest.mark.parametrize("text", TEXTS)
def test_text_survives_byte_for_byte(any_tokenizer: Tokenizer, text: str) -> None:
    assert any_tokenizer.decode(any_tokenizer.encode(text, add_bos=False), skip_special=False) == text
    assert any_tokenizer.decode(any_tokenizer.encode(text, add_bos=False, allow_special=False)) == text


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(characters))
def test_any_unicode_survives(any_tokenizer: Tokenizer, text: str) -> None:
    if any_tokenizer.strips_leading_space:  # SentencePiece writes a space as "▁" and cannot tell the two apart
        text = text.replace("▁", "_")
    assert any_tokenizer.decode(any_tokenizer.encode(text, add_bos=False, allow_special=False)) == text


@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_plain_text_never_becomes_a_control_token(any_tokenizer: Tokenizer, data: st.DataObject) -> None:
    control = any_tokenizer.control_tokens
    pieces = st.one_of(st.sampled_from(sorted(control.ids)), st.text(characters, max_size=3))
    text = "".join(data.draw(st.lists(pieces, max_size=6)))
    ids = any_tokenizer.encode(text, allow_special=False, add_bos=False)
    written = control.id_set - {any_tokenizer.token_to_id("<unk>")}
    assert written.isdisjoint(ids)


def test_control_tokens_are_single_tokens_when_allowed(any_tokenizer: Tokenizer) -> None:
    assert any_tokenizer.control_tokens.ids
    for text, token_id in list(any_tokenizer.control_tokens.ids.items())[:20]:
        assert any_tokenizer.encode(text, add_bos=False) == [token_id]
        assert any_tokenizer.token_bytes(token_id) == text.encode()
        assert any_tokenizer.token_to_id(text) == token_id


def test_every_token_has_bytes(any_tokenizer: Tokenizer) -> None:
    assert all(any_tokenizer.token_bytes(token_id) for token_id in range(any_tokenizer.vocab_size))


@pytest.mark.parametrize("token_id", [-1, 10**6, 2**40])
def test_unknown_id(any_tokenizer: Tokenizer, token_id: int) -> None:
    with pytest.raises(RequestError, match="not in the vocabulary"):
        any_tokenizer.token_bytes(token_id)
    with pytest.raises(RequestError, match="not in the vocabulary"):
        any_tokenizer.decode([0, token_id])


def test_a_gap_has_no_token(sentencepiece_directory: Path, tmp_path: Path) -> None:
    shutil.copytree(sentencepiece_directory, tmp_path / "gap")
    config = json.loads((tmp_path / "gap/tokenizer_config.json").read_text())
    config["added_tokens_decoder"]["5000"] = {"content": "<|far|>", "special": True}
    (tmp_path / "gap/tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(tmp_path / "gap")
    assert tokenizer is not None and tokenizer.vocab_size == 5001
    assert [tokenizer.has_token(token_id) for token_id in (-1, 4000, 5000, 5001)] == [False, False, True, False]
    with pytest.raises(RequestError, match="4000 is not in the vocabulary"):
        tokenizer.token_bytes(4000)


def test_a_copy_in_another_process(any_tokenizer: Tokenizer) -> None:
    text = "Once upon a time, 漢字 <think>"
    copy: Tokenizer = pickle.loads(pickle.dumps(any_tokenizer))
    ids = copy.encode(text)
    assert ids == any_tokenizer.encode(text) and copy.decode(ids) == any_tokenizer.decode(ids)


def test_lone_surrogate(any_tokenizer: Tokenizer) -> None:
    with pytest.raises(RequestError, match="surrogate at position 2"):
        any_tokenizer.encode("ab\ud800")


def test_decode_leaves_special_tokens_out(any_tokenizer: Tokenizer) -> None:
    assert any_tokenizer.special_tokens
    for text, token_id in any_tokenizer.special_tokens.items():
        assert any_tokenizer.is_special(token_id)
        assert any_tokenizer.decode([token_id]) == ""
        assert any_tokenizer.decode([token_id], skip_special=False) == text


def test_bos_rule(stories_tokenizer: Tokenizer, tmp_path: Path) -> None:
    assert stories_tokenizer.bos_token_id == 0 and stories_tokenizer.eos_token_id == 1
    bare = stories_tokenizer.encode("Once", add_bos=False)
    assert stories_tokenizer.encode("Once") == [0, *bare] == stories_tokenizer.encode("Once", add_bos=True)


def test_bos_rule_of_the_config_overrules_the_post_processor(llama_json_directory: Path, tmp_path: Path) -> None:
    file_rule = load_tokenizer(llama_json_directory)
    (tmp_path / "tokenizer.json").write_bytes((llama_json_directory / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "<s>", "add_bos_token": false}')
    config_rule = load_tokenizer(tmp_path)
    assert file_rule is not None and config_rule is not None
    bare = file_rule.encode("the cat", add_bos=False)
    assert file_rule.encode("the cat") == [1, *bare]
    assert config_rule.encode("the cat") == bare


def test_bos_asked_for_but_missing(kimi_directory: Path, tmp_path: Path) -> None:
    (tmp_path / "tiktoken.model").write_bytes((kimi_directory / "tiktoken.model").read_bytes())
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer is not None and tokenizer.bos_token_id is None
    with pytest.raises(RequestError, match="BOS"):
        tokenizer.encode("a", add_bos=True)


def test_folder_without_tokenizer(tmp_path: Path) -> None:
    assert load_tokenizer(tmp_path) is None


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", b"{"),
        ("tokenizer.json", b"[]"),
        ("tokenizer.json", b"[" * 100_000),
        ("tokenizer.json", b'{"version": "1.0"}'),
        ("tokenizer.json", b'{"decoder": {"type": "ByteLevel"}}'),
        ("tokenizer.json", b'{"decoder": {"type": "WordPiece"}, "model": {}}'),
        ("tokenizer.json", b"\xff\xfe\x00"),
        ("tokenizer.model", b""),
        ("tokenizer.model", b"not a protobuf"),
        ("tokenizer.model", b"\x0a\xff\xff\xff\xff\x7f"),
        ("tiktoken.model", b""),
        ("tiktoken.model", b"IQ== 0\nIQ==\n"),
        ("tiktoken.model", b"!!! 0\n"),
        ("tiktoken.model", b"IQ== zero\n"),
        ("tiktoken.model", b"IQ== 5\n"),
        ("tiktoken.model", b"IQ== 0\nIg== 0\n"),
        ("tiktoken.model", b"IQ== 0\n"),
        ("tiktoken.model", b"=== 0\n"),
    ],
)
def test_broken_file(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TokenizerError) as caught:
        load_tokenizer(tmp_path)
    message = str(caught.value)
    assert message.removeprefix(f"{tmp_path}/").startswith(name) and "\n" not in message and len(message) < 300


@pytest.mark.parametrize(
    "config",
    [
        "{",
        "7",
        '{"add_bos_token": "yes"}',
        '{"bos_token": 3}',
        '{"bos_token": {"content": ""}}',
        '{"added_tokens_decoder": []}',
        '{"added_tokens_decoder": {"-1": {"content": "x"}}}',
        '{"added_tokens_decoder": {"99999999999": {"content": "x"}}}',
        '{"added_tokens_decoder": {"600": {}}}',
        '{"added_tokens_decoder": {"600": {"content": "x\\ud800"}}}',
        '{"eos_token": "\\ud800"}',
        '{"pad_token": {"content": "\\udfff"}}',
        '{"added_tokens_decoder": {"3": {"content": "<x>"}}}',
    ],
)
def test_broken_config(kimi_directory: Path, tmp_path: Path, config: str) -> None:
    (tmp_path / "tiktoken.model").write_bytes((kimi_directory / "tiktoken.model").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(config)
    with pytest.raises(TokenizerError, match="tokenizer_config") as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)


def test_file_that_is_too_large(tmp_path: Path) -> None:
    with (tmp_path / "tokenizer_config.json").open("wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(TokenizerError, match="larger than 16 MiB"):
        load_tokenizer(tmp_path)


def test_saved_padding_and_truncation_are_not_obeyed(llama_json_directory: Path, tmp_path: Path) -> None:
    data = json.loads((llama_json_directory / "tokenizer.json").read_text())
    data["truncation"] = {"max_length": 3, "strategy": "LongestFirst", "direction": "Right", "stride": 0}
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer is not None
    assert len(tokenizer.encode("The cat sat on the mat and the dog sat on the cat")) > 3


def test_import_is_light() -> None:
    check = "import sys, deepzig.text; print({'tokenizers', 'sentencepiece', 'jinja2', 'numpy'} & set(sys.modules))"
    answer = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "set()"
