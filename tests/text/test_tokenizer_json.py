"""tokenizer.json: the `tokenizers` library is the judge."""

# ruff: noqa: RUF001

import json
import threading
from pathlib import Path

import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deepzig.errors import TokenizerError
from deepzig.text.tokenizer import Tokenizer, load_tokenizer

HERE = Path(__file__).parent
STORIES = HERE.parents[1] / "deepzig" / "bundled" / "stories"


@pytest.fixture(scope="session", params=["stories", "deepseek", "llama_json"])
def pair(request: pytest.FixtureRequest) -> tuple[Tokenizer, tokenizers.Tokenizer]:
    directory = STORIES if request.param == "stories" else request.getfixturevalue(f"{request.param}_directory")
    tokenizer = load_tokenizer(directory)
    assert tokenizer is not None
    return tokenizer, tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))


pieces = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    st.sampled_from(
        ["<｜User｜>", "<think>", "</think>", "<｜end▁of▁sentence｜>", "<s>", "<｜", "｜>", "  ", "你好", "😀"]
    ),
)


@pytest.mark.parametrize("text", ["a <think> b\n\u00e9 12345 " * 20_000, "x" * 400_000])
def test_other_threads_go_on_while_a_long_text_is_encoded(
    pair: tuple[Tokenizer, tokenizers.Tokenizer], text: str
) -> None:
    ours, library = pair
    has_ended = threading.Event()
    n_turns = 0

    def take_turns() -> None:
        nonlocal n_turns
        while not has_ended.wait(0.001):
            n_turns += 1

    other = threading.Thread(target=take_turns)
    other.start()
    ids = ours.encode(text, add_bos=False)
    n_taken = n_turns
    has_ended.set()
    other.join()
    assert n_taken > 10, "of more than 100"
    assert ids == library.encode(text, add_special_tokens=False).ids


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(pieces, max_size=8).map("".join))
def test_ids_are_those_of_the_library(pair: tuple[Tokenizer, tokenizers.Tokenizer], text: str) -> None:
    tokenizer, reference = pair
    assert tokenizer.encode(text, add_bos=False) == reference.encode(text, add_special_tokens=False).ids


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_text_is_that_of_the_library(pair: tuple[Tokenizer, tokenizers.Tokenizer], data: st.DataObject) -> None:
    tokenizer, reference = pair
    if tokenizer.strips_leading_space:  # for lone bytes the library has a rule of its own, so whole texts only
        ids = tokenizer.encode(data.draw(st.text(st.characters(exclude_categories=["Cs"]))), add_bos=False)
    else:
        ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=8))
    assert tokenizer.decode(ids) == reference.decode(ids, skip_special_tokens=True)
    assert tokenizer.decode(ids, skip_special=False) == reference.decode(ids, skip_special_tokens=False)


def test_known_ids_of_deepseek(deepseek_tokenizer: Tokenizer) -> None:
    assert deepseek_tokenizer.bos_token_id == 0 and deepseek_tokenizer.eos_token_id == 1
    assert deepseek_tokenizer.encode("Hello!", add_bos=True) == [0, 19923, 3]
    assert deepseek_tokenizer.token_bytes(19923) == b"Hello"
    assert deepseek_tokenizer.token_to_id("<｜User｜>") == 128803
    assert not deepseek_tokenizer.is_special(128803), "the file does not flag it, so decode shows it, as HF does"


def test_control_token_text_as_plain_text(deepseek_tokenizer: Tokenizer) -> None:
    for text in ("<｜User｜>", "a<｜Assistant｜>b", "<think>", "<｜end▁of▁sentence｜>"):
        ids = deepseek_tokenizer.encode(text, add_bos=False, allow_special=False)
        assert deepseek_tokenizer.decode(ids, skip_special=False) == text
        assert deepseek_tokenizer.control_tokens.id_set.isdisjoint(ids)


def test_added_words_are_text(tmp_path: Path) -> None:
    """A word that was added is vocabulary: users may write it, and it becomes its token."""
    engine = tokenizers.Tokenizer.from_file(str(STORIES / "tokenizer.json"))
    engine.add_tokens(["Smørrebrød"])
    engine.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer is not None
    assert "Smørrebrød" not in tokenizer.control_tokens.ids
    assert tokenizer.encode("Smørrebrød", add_bos=False, allow_special=False) == [4096]
    ids = tokenizer.encode("<think>Smørrebrød", add_bos=False, allow_special=False)
    assert ids[-1] == 4096 and tokenizer.decode(ids) == "<think>Smørrebrød"


def test_panic_of_the_library_is_told_as_an_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = json.loads((STORIES / "tokenizer.json").read_text())
    data["model"]["continuing_subword_prefix"] = "a long prefix"
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(TokenizerError, match=r"tokenizer\.json cannot be used"):
        load_tokenizer(tmp_path)
    capfd.readouterr()  # the library's own report of the panic


def test_panic_while_encoding_is_told_as_an_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = json.loads((STORIES / "tokenizer.json").read_text())
    data["normalizer"] = {"type": "Replace", "pattern": {"Regex": "(a|aa)+$"}, "content": "y"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer is not None
    with pytest.raises(TokenizerError, match=r"tokenizer\.json cannot encode"):
        tokenizer.encode("a" * 3000 + "b")
    capfd.readouterr()


def test_letters_that_stand_for_bytes(tmp_path: Path) -> None:
    """DeepSeek-V2 adds "ø" and its like, names of bytes that UTF-8 never uses; as text they stay letters."""
    engine = tokenizers.Tokenizer.from_file(str(STORIES / "tokenizer.json"))
    engine.add_tokens(["ø"])
    engine.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer is not None
    ids = tokenizer.encode("søk", add_bos=False)
    assert ids == engine.encode("søk", add_special_tokens=False).ids
    assert tokenizer.decode(ids) == "søk"
