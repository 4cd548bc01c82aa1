"""Splitting answers into thoughts, content and calls: the formats of the families, however the text is cut."""

# ruff: noqa: RUF001

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepzig.text.answer_format import DEEPSEEK_V3, DEEPSEEK_V31, KIMI_K2, AnswerFormat
from deepzig.text.answer_parser import AnswerParser, CallArguments, CallStart, Content, Part, Reasoning

V3 = AnswerFormat(has_thinking=False, tools=DEEPSEEK_V3)
R1 = AnswerFormat(has_thinking=True, tools=DEEPSEEK_V3)
V31 = AnswerFormat(has_thinking=True, tools=DEEPSEEK_V31)
K2 = AnswerFormat(has_thinking=True, tools=KIMI_K2)

V3_CALLS = (
    "Let me look.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n"
    '```json\n{"city": "Paris"}\n```<｜tool▁call▁end｜>\n'
    '<｜tool▁call▁begin｜>function<｜tool▁sep｜>time\n```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>'
)
V31_CALLS = (
    '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{"city": "Paris"}<｜tool▁call▁end｜>'
    "<｜tool▁call▁begin｜>time<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
)
K2_CALLS = (
    "<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:2<|tool_call_argument_begin|>"
    '{"city": "Paris"}<|tool_call_end|>\n<|tool_call_begin|> time:3 <|tool_call_argument_begin|>{}<|tool_call_end|>'
    "<|tool_calls_section_end|>"
)
TWO_CALLS: list[Part] = [
    CallStart(0, "get_weather"),
    CallArguments(0, '{"city": "Paris"}'),
    CallStart(1, "time"),
    CallArguments(1, "{}"),
]

TWO_NUMBERED_CALLS: list[Part] = [
    CallStart(0, "get_weather", "functions.get_weather:2"),
    CallArguments(0, '{"city": "Paris"}'),
    CallStart(1, "time", "time:3"),
    CallArguments(1, "{}"),
]
LOOK_AND_CALLS = [Content("Let me look."), *TWO_CALLS]


def parsed(parser: AnswerParser, pieces: Sequence[str]) -> list[Part]:
    """The parts of an answer that comes in pieces, neighbours of a kind joined."""
    parts = [part for piece in pieces for part in parser.push(piece)] + parser.finish()
    joined: list[Part] = []
    for part in parts:
        last = joined[-1] if joined else None
        same_call = isinstance(part, CallArguments) and isinstance(last, CallArguments) and part.index == last.index
        if same_call:
            joined[-1] = CallArguments(part.index, last.text + part.text)
        elif type(part) is type(last) and isinstance(part, Reasoning | Content):
            joined[-1] = type(part)(last.text + part.text)
        else:
            joined.append(part)
    return joined


CALL_MARK = "<｜tool▁call▁begin｜>"
LONE_CALL = f"{CALL_MARK}f<｜tool▁sep｜>{{}}<｜tool▁call▁end｜>"
ONE_CALL: list[Part] = [CallStart(0, "f"), CallArguments(0, "{}")]
CASES = [
    ("plain", V3, False, True, "Hello", [Content("Hello")]),
    ("calls of V3", V3, False, True, V3_CALLS, [Content("Let me look."), *TWO_CALLS]),
    ("calls of V3.1", V31, False, True, V31_CALLS, TWO_CALLS),
    ("calls of Kimi-K2", K2, False, True, f"Look.{K2_CALLS}", [Content("Look."), *TWO_NUMBERED_CALLS]),
    ("calls end thoughts", K2, True, True, f"Hm.\n{K2_CALLS}", [Reasoning("Hm."), *TWO_NUMBERED_CALLS]),
    ("calls in thoughts, no tools given", K2, True, False, f"Hm{K2_CALLS}", [Reasoning(f"Hm{K2_CALLS}")]),
    (
        "thoughts draft a call", R1, True, True, f"I could {V3_CALLS} but no.</think>\n\nNo.",
        [Reasoning(f"I could {V3_CALLS} but no."), Content("No.")],
    ),
    (
        "a colon in a name", K2, False, True,
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.a:b<|tool_call_argument_begin|>{}<|tool_call_end|>",
        [CallStart(0, "a:b", "functions.a:b"), CallArguments(0, "{}")],
    ),
    ("no tools given", V3, False, False, V31_CALLS, [Content(V31_CALLS)]),
    ("R1", R1, True, False, "Hm,\n\nyes.\n</think>\n\nIt is.", [Reasoning("Hm,\n\nyes."), Content("It is.")]),
    ("R1 calls", R1, True, True, f"So.</think>{V3_CALLS}", [Reasoning("So."), Content("Let me look."), *TWO_CALLS]),
    ("opens thoughts itself", R1, False, False, "<think>\nHm</think>Yes", [Reasoning("Hm"), Content("Yes")]),
    ("breaks before thoughts", R1, False, False, "\n\n<think>Hm</think>Yes", [Reasoning("Hm"), Content("Yes")]),
    ("does not think", V31, False, False, "\n <thin ice> Yes", [Content("\n <thin ice> Yes")]),
    ("marks later on", V31, False, False, "a <think> b", [Content("a <think> b")]),
    ("thoughts cut off", R1, True, False, "Hm, let me\n", [Reasoning("Hm, let me")]),
    ("half a mark at the end", R1, True, False, "Hm</thi", [Reasoning("Hm</thi")]),
    ("nothing", R1, True, True, "", []),
    ("only a line break", V31, False, False, "\n", []),
    (
        "arguments cut off", V31, False, True,
        '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{"a": 1',
        [CallStart(0, "f"), CallArguments(0, '{"a": 1')],
    ),
    (
        "section without a call", V31, False, True, "a<｜tool▁calls▁begin｜>b<｜tool▁calls▁end｜>",
        [Content("a<｜tool▁calls▁begin｜>b<｜tool▁calls▁end｜>")],
    ),
    (
        "call without arguments", V3, False, True, "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>x<｜tool▁call▁end｜>",
        [Content("<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>x<｜tool▁call▁end｜>")],
    ),
    (
        "second section without a call", V31, False, True,
        V31_CALLS + "<｜tool▁calls▁begin｜>b<｜tool▁calls▁end｜>c<｜tool▁calls▁begin｜>d",
        [*TWO_CALLS, Content("<｜tool▁calls▁begin｜>b<｜tool▁calls▁end｜>c<｜tool▁calls▁begin｜>d")],
    ),
    ("no end of a call of V3", V3, False, True, V3_CALLS.replace("<｜tool▁call▁end｜>", ""), LOOK_AND_CALLS),
    ("no end of a call of V3.1", V31, False, True, V31_CALLS.replace("<｜tool▁call▁end｜>", ""), TWO_CALLS),
    (
        "no end of a call of Kimi-K2", K2, False, True, K2_CALLS.replace("<|tool_call_end|>\n", "") + "Done",
        [*TWO_NUMBERED_CALLS, Content("Done")],
    ),
    ("no end of a section", V3, False, True, V3_CALLS.removesuffix("<｜tool▁calls▁end｜>"), LOOK_AND_CALLS),
    ("no end at all", V3, False, True, V3_CALLS.partition("<｜tool▁call▁end｜>")[0], LOOK_AND_CALLS[:3]),
    ("no begin of a section", V3, False, True, V3_CALLS.replace("<｜tool▁calls▁begin｜>", ""), LOOK_AND_CALLS),
    (
        "no section", K2, False, True,
        K2_CALLS.removeprefix("<|tool_calls_section_begin|>").removesuffix("<|tool_calls_section_end|>"),
        TWO_NUMBERED_CALLS,
    ),
    (
        "a name without arguments", V31, False, True, "<｜tool▁call▁begin｜>f<｜tool▁calls▁end｜>Hm",
        [Content("<｜tool▁call▁begin｜>f<｜tool▁calls▁end｜>Hm")],
    ),
    ("text after a call without a section", V31, False, True, f"{LONE_CALL}\n\nDone", [*ONE_CALL, Content("Done")]),
    (
        "text after a call of a section without an end", V31, False, True,
        f"<｜tool▁calls▁begin｜>{LONE_CALL}\n\nI called it, wait.", [*ONE_CALL, Content("I called it, wait.")],
    ),
    ("a mark in prose", V31, False, True, f"It {CALL_MARK} begins calls.", [Content(f"It {CALL_MARK} begins calls.")]),
    (
        "a mark in prose, then a call", V31, False, True, f"It {CALL_MARK} begins\n{LONE_CALL}Yes",
        [Content(f"It {CALL_MARK} begins\n"), *ONE_CALL, Content("Yes")],
    ),
    ("two marks", V31, False, True, f"{CALL_MARK}a{LONE_CALL}", [Content(f"{CALL_MARK}a"), *ONE_CALL]),
    (
        "a lone call without arguments", V31, False, True, f"{CALL_MARK}f<｜tool▁call▁end｜> Hm",
        [Content(f"{CALL_MARK}f<｜tool▁call▁end｜> Hm")],
    ),
    ("a call, then a mark", V31, False, True, f"{LONE_CALL}{CALL_MARK}Hm", [*ONE_CALL, Content(f"{CALL_MARK}Hm")]),
    ("text after calls", V31, False, True, V31_CALLS + "\nDone", [*TWO_CALLS, Content("Done")]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("answer_format", "in_reasoning", "with_tools", "text", "expected"),
    [case[1:] for case in CASES],
    ids=[case[0] for case in CASES],
)
def test_answers_are_split(
    answer_format: AnswerFormat, in_reasoning: bool, with_tools: bool, text: str, expected: list[Part]
) -> None:
    for pieces in ([text], list(text)):
        parser = AnswerParser(answer_format, in_reasoning=in_reasoning, with_tools=with_tools)
        assert parsed(parser, pieces) == expected


FRAGMENTS = st.sampled_from([
    "<think>", "</think>", "\n", "\n\n", "a", " b", "<", "</", "｜>", "function", "<｜tool▁sep｜>", "\n```json\n",
    "\n```", "<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>",
    '{"x": "</think>"}', "<|tool_calls_section_begin|>", "<|tool_call_begin|>", "<|tool_call_argument_begin|>", ":1",
    "<|tool_call_end|>", "<|tool_calls_section_end|>",
])  # fmt: skip


@pytest.mark.parametrize("n_chars", [len("<｜tool▁calls▁begin｜>"), 30, 50])
def test_a_section_that_is_cut_before_its_first_call_is_dropped(n_chars: int) -> None:
    parser = AnswerParser(V31, with_tools=True)
    assert parser.push("Look." + V31_CALLS[:n_chars]) == [Content("Look.")]
    assert parser.is_in_section and parser.finish(is_cut=True) == []


def test_what_can_be_no_call_is_kept_when_it_is_cut() -> None:
    for text, expected in (
        (f"The mark {CALL_MARK} begins a", [Content(f"The mark {CALL_MARK} begins a")]),
        (f"The mark {CALL_MARK}get", [Content("The mark ")]),
        (f"<｜tool▁calls▁begin｜>{LONE_CALL}\nI called", [*ONE_CALL, Content("I called")]),
        (f"<｜tool▁calls▁begin｜>{LONE_CALL}\n<｜tool", ONE_CALL),
    ):
        parser = AnswerParser(V31, with_tools=True)
        assert parser.push(text) + parser.finish(is_cut=True) == expected


def test_an_answer_that_cannot_open_thoughts_is_content() -> None:
    for text in ("<think>Hm</think>", "\n\nYes"):
        assert parsed(AnswerParser(R1, may_open_reasoning=False), list(text)) == [Content(text)]


@given(st.lists(FRAGMENTS, max_size=14), st.data(), st.booleans())
def test_cuts_do_not_matter(fragments: list[str], data: st.DataObject, in_reasoning: bool) -> None:
    text = "".join(fragments)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=8)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    for answer_format in (R1, V31, K2):
        whole, cut = (AnswerParser(answer_format, in_reasoning=in_reasoning, with_tools=True) for _ in range(2))
        assert parsed(whole, [text]) == parsed(cut, pieces)


@pytest.mark.parametrize(
    ("arguments", "is_whole"),
    [('{"a": {}}', True), (" {}\n", True), ('{"a": {}', False), ("", False), ("1", False), ("[" * 100_000, False)],
)
def test_a_call_without_an_end_is_whole_if_its_arguments_are(arguments: str, is_whole: bool) -> None:
    parser = AnswerParser(V31, with_tools=True)
    parser.push(f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{arguments}")
    assert parser.is_in_arguments
    parser.finish()
    assert parser.is_in_arguments is not is_whole


def test_arguments_stream_as_they_come() -> None:
    parser = AnswerParser(V31, with_tools=True)
    parser.push("<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>")
    assert parser.push('{"a"') == [CallArguments(0, '{"a"')]
    assert parser.push(": 1}") == [CallArguments(0, ": 1}")]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (None, AnswerFormat(False, None)),
        ("{{ messages }}", AnswerFormat(False, None)),
        ("<｜tool▁calls▁begin｜> ```json", AnswerFormat(False, DEEPSEEK_V3)),
        ("</think> <｜tool▁calls▁begin｜> ```json", AnswerFormat(True, DEEPSEEK_V3)),
        ("</think> <｜tool▁calls▁begin｜>", AnswerFormat(True, DEEPSEEK_V31)),
        ("<|tool_calls_section_begin|> ```json", AnswerFormat(False, KIMI_K2)),
    ],
)
def test_the_template_tells_the_format(source: str | None, expected: AnswerFormat) -> None:
    assert AnswerFormat.of_template(source) == expected
