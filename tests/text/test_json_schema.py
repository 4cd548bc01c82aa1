"""Schemas as llguidance takes them: everyday ones pass, and nothing is dropped that stands for itself."""

import json
from typing import Any

import pytest
from llguidance import LLMatcher

from deepzig.text.json_schema import FORMATS, MAX_NAME_PATTERNS, json_expression, simplified

UNIQUE = {"type": "array", "items": {"type": "string"}, "uniqueItems": True}
NAMES = {"type": "object", "propertyNames": {"type": "string", "maxLength": 3}}
LOOKING = {"type": "string", "pattern": r"^(?!\.)[a-z.]+$", "format": "email"}


def is_supported(schema: dict[str, Any], strict: bool) -> bool:
    return is_usable(json_expression(schema, strict=strict))


def is_usable(expression: str) -> bool:
    return not LLMatcher.validate_grammar(LLMatcher.grammar_from_lark(f"start: {expression}"))


@pytest.mark.parametrize(
    ("schema", "strict_too"),
    [
        ({"type": "string", "format": "cuid"}, True),
        ({"type": "object", "propertyNames": {"type": "string"}, "additionalProperties": {"type": "integer"}}, True),
        ({"$defs": {"a": {"anyOf": [{"type": "string", "format": "x"}]}}, "items": {"$ref": "#/$defs/a"}}, True),
        ({"properties": {"a": {"additionalProperties": {"type": "string", "format": "x"}}}}, True),
        (UNIQUE, False),
        (NAMES, False),
        (LOOKING, False),
        ({"properties": {"a": LOOKING}}, False),
        ({"patternProperties": {"^(?!x)": {"type": "string"}}, "additionalProperties": False}, False),
        ({"oneOf": [{"type": "string"}, {"type": "string", "minLength": 1}]}, False),
        ({"type": "string", "pattern": r"\bfoo\b"}, False),
        ({"type": "string", "pattern": r"^(a)\1$"}, False),
        ({"type": "string", "pattern": "^a{,3}$"}, False),
        ({"type": "string", "pattern": r"^[[\]]+$"}, True),
        ({"type": "string", "pattern": "^[^]+$"}, True),
        ({"patternProperties": {"^[[]": {"type": "string"}}}, True),
        ({"patternProperties": {"^a.*b": True, "^.*ab": True}}, False),
        ({"$schema": "https://example.com/x", "type": "integer"}, False),
        ({"$schema": "draft-07", "items": [{"type": "string"}]}, False),
        ({"items": {"$ref": "#/$defs/a", "nullable": True}, "$defs": {"a": {"type": "null", "nullable": True}}}, True),
    ],
)
def test_what_is_no_constraint_is_accepted_and_what_is_one_only_if_not_strict(
    schema: dict[str, Any], strict_too: bool
) -> None:
    assert is_supported(schema, strict=False)
    assert is_supported(schema, strict=True) is strict_too


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (r"^[[\]]+$", r"^[\[\]]+$"),
        ("[a-z&&b]&&", r"[a-z\&\&b]&&"),
        (r"[^~~][^]\[[]]", r"[^\~\~][\s\S]\[[^\s\S]]"),
        ("^[+--]$", r"^[+-\-]$"),
        ("^[!--]$", r"^[!-\-]$"),
        ("^[--a]$", r"^[\--a]$"),
        (r"^[\w--.]$", r"^[\w\-\-.]$"),
        ("^[a-z--]$", r"^[a-z\-\-]$"),
        (r"^[\x41-\x5A\]-_]$", r"^[\x41-\x5A\]-_]$"),
    ],
)
def test_classes_are_ecmas(written: str, read: str) -> None:
    for strict in (True, False):
        schema = {"type": "string", "pattern": written}
        assert simplified(schema, strict=strict).get("pattern", read) == read


@pytest.mark.parametrize("strict", [True, False])
def test_openapis_nullable_allows_null(strict: bool) -> None:
    for schema, with_null in (
        ({"type": "string"}, {"type": ["string", "null"]}),
        ({"type": "string", "enum": ["a"]}, {"anyOf": [{"type": "string", "enum": ["a"]}, {"type": "null"}]}),
        ({"$ref": "#/$defs/a"}, {"anyOf": [{"$ref": "#/$defs/a"}, {"type": "null"}]}),
    ):
        assert simplified({**schema, "nullable": True}, strict=strict) == with_null
        assert simplified({**schema, "nullable": False}, strict=strict) == schema
    for name in ("$defs", "definitions"):
        for kind in ({"$ref": f"#/{name}/a"}, {"type": "object", "properties": {"b": {"$ref": f"#/{name}/a"}}}):
            document = {"$schema": "https://json-schema.org/draft/2020-12/schema", name: {"a": {"type": "string"}}}
            assert is_supported({**document, **kind, "nullable": True}, strict=strict)
    assert simplified({"properties": {"nullable": {}}}, strict=strict) == {"properties": {"nullable": {}}}


def test_large_divisors_are_left_out_unless_strict() -> None:
    """Their automata take seconds; round ones are small."""
    for divisor, is_kept in ((99999989, False), (123450, False), (0.0123457, False), (1_000_000, True), (0.01, True)):
        schema = {"type": "number", "multipleOf": divisor}
        assert simplified(schema, strict=True) == schema
        assert ("multipleOf" in simplified(schema, strict=False)) is is_kept


def test_many_patterns_of_names_are_left_out_unless_strict() -> None:
    """The time that llguidance takes to compare them explodes."""
    for n_patterns, is_kept in ((MAX_NAME_PATTERNS, True), (MAX_NAME_PATTERNS + 1, False)):
        names = {f"^{i}_": True for i in range(n_patterns)}
        schema = {"type": "object", "patternProperties": names, "additionalProperties": False}
        assert simplified(schema, strict=True) == schema
        assert simplified(schema, strict=False) == (schema if is_kept else {"type": "object"})


def test_formats_that_llguidance_knows() -> None:
    """One that it does not know would be refused; one that it knows must not be left out."""
    candidates = FORMATS | {"idn-email", "iri", "uri-reference", "regex", "json-pointer", "byte", "url", "cuid"}
    written = {name: "%json " + json.dumps({"type": "string", "format": name}) for name in candidates}
    assert {name for name, expression in written.items() if is_usable(expression)} == FORMATS


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"format": {"type": "string"}, "pattern": {"const": "(?=a)"}, "propertyNames": True}},
        {"type": "string", "pattern": r"\(?=[a-z]", "format": "date"},
        {"enum": [{"format": "cuid"}], "default": {"format": "cuid"}},
        {"format": 1, "pattern": 2, "items": True, "properties": [], "anyOf": {}},
    ],
)
def test_nothing_else_is_left_out(schema: dict[str, Any], strict: bool) -> None:
    assert simplified(schema, strict=strict) == schema
