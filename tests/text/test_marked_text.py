"""Marks that a model wrote as control tokens are told from text that spells them, however late the text comes."""

# ruff: noqa: RUF001

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deepzig.text.answer_format import DEEPSEEK_V31, THINK_CLOSE, AnswerFormat
from deepzig.text.answer_parser import AnswerParser, CallArguments, CallStart, Content, Part, Reasoning
from deepzig.text.marked_text import MarkedText, plain
from deepzig.text.tokenizer import Tokenizer

shared = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
V31 = AnswerFormat(has_thinking=True, tools=DEEPSEEK_V31)
CALL = "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>"


def tokens(tokenizer: Tokenizer, text: str, *, quoted: bool) -> list[int]:
    return tokenizer.encode(text, add_bos=False, allow_special=not quoted)


def parsed(tokenizer: Tokenizer, ids: list[int], *, in_reasoning: bool = False) -> list[Part]:
    parser = AnswerParser(V31, MarkedText(tokenizer, []), in_reasoning=in_reasoning, with_tools=True)
    return parser.push(tokenizer.decode(ids), ids) + parser.finish()


def test_a_quoted_call_is_text_and_a_call_is_a_call(deepseek_tokenizer: Tokenizer) -> None:
    quoted = tokens(deepseek_tokenizer, f"They say {CALL}.", quoted=True)
    called = tokens(deepseek_tokenizer, CALL, quoted=False)
    assert parsed(deepseek_tokenizer, quoted) == [Content(f"They say {CALL}.")]
    calls = [CallStart(0, "f"), CallArguments(0, "{}")]
    assert parsed(deepseek_tokenizer, quoted + called) == [Content(f"They say {CALL}."), *calls]
    arguments = CALL.replace("{}", '{"a": "QUOTE"}').partition("QUOTE")
    ids = [token for i, each in enumerate((arguments[0], CALL, arguments[2])) for token in
           tokens(deepseek_tokenizer, each, quoted=i == 1)]  # fmt: skip
    assert parsed(deepseek_tokenizer, ids) == [CallStart(0, "f"), CallArguments(0, f'{{"a": "{CALL}"}}')]


def test_thoughts_may_quote_their_end(deepseek_tokenizer: Tokenizer) -> None:
    thoughts = "R1 ends them with </think>. Hm."
    ids = tokens(deepseek_tokenizer, thoughts, quoted=True) + tokens(deepseek_tokenizer, "</think>Yes", quoted=False)
    assert parsed(deepseek_tokenizer, ids, in_reasoning=True) == [Reasoning(thoughts), Content("Yes")]
    quoted = tokens(deepseek_tokenizer, "<think> is a tag.", quoted=True)
    assert parsed(deepseek_tokenizer, quoted) == [Content("<think> is a tag.")]


def test_marks_that_are_no_tokens_are_found_as_text(kimi_tokenizer: Tokenizer) -> None:
    ids = tokens(kimi_tokenizer, f"Hm</think>Yes{CALL}", quoted=True)
    expected = [Reasoning("Hm"), Content("Yes"), CallStart(0, "f"), CallArguments(0, "{}")]
    assert parsed(kimi_tokenizer, ids, in_reasoning=True) == expected


def test_text_may_lag_behind_its_tokens(deepseek_tokenizer: Tokenizer) -> None:
    """As with stop strings, which hold it back."""
    marked = MarkedText(deepseek_tokenizer, [])
    mark, quote = (tokens(deepseek_tokenizer, THINK_CLOSE, quoted=quoted) for quoted in (False, True))
    assert marked.push("", [*quote, *mark]) == ""
    assert marked.push("</think", quote) == "</think"
    assert marked.push("></thi", mark) == ">" + marked.spelling(THINK_CLOSE)[:5]
    assert marked.push("nk></think>", []) == "nk></think>", "cut by a stop string"


@pytest.mark.parametrize("kind", ["deepseek", "kimi", "sentencepiece"])
@shared
@given(data=st.data())
def test_each_control_token_is_marked_and_nothing_else(
    kind: str, data: st.DataObject, request: pytest.FixtureRequest
) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(f"{kind}_tokenizer")
    control = [i for text, i in tokenizer.control_tokens.ids.items() if text[0] == "<" and not tokenizer.is_special(i)]
    anything = st.one_of(st.integers(0, 300), st.integers(0, tokenizer.vocab_size + 3), st.sampled_from(control))
    ids = data.draw(st.lists(anything, max_size=20))
    text = tokenizer.decode(filter(tokenizer.has_token, ids))
    cut, n_read = data.draw(st.integers(0, len(text))), data.draw(st.integers(0, len(ids)))
    marked = MarkedText(tokenizer, [])
    known = tokenizer.decode(filter(tokenizer.has_token, ids[:n_read]))
    cut = min(cut, len(known.rstrip("\ufffd")))  # text comes no earlier than its tokens
    whole = marked.push(text[:cut], ids[:n_read]) + marked.push(text[cut:], ids[n_read:])
    assert plain(whole) == text
    assert len([char for char in whole if "\ud800" <= char <= "\udfff"]) == sum(i in control for i in ids)
