"""Grammars that would end or stop the server are refused, soon, and the next one is compiled."""

from collections.abc import Callable
from typing import Any

import pytest

from deepzig.errors import RequestError
from deepzig.text.constraint import Grammar, Grammars, from_regex, from_rules, from_text, json_rule
from deepzig.text.json_schema import MAX_NAME_PATTERNS
from deepzig.text.tokenizer import Tokenizer

INTEGER = {"type": "integer"}
INTERSECTION = "A{0}: A{1} & /.*[a-c]{{{0}}}.*/"


@pytest.fixture(scope="module")
def grammars(stories_tokenizer: Tokenizer) -> Grammars:
    assert stories_tokenizer.eos_token_id is not None
    return Grammars(stories_tokenizer, stories_tokenizer.vocab_size, [stories_tokenizer.eos_token_id])


def schema_grammar(schema: dict[str, Any]) -> Grammar:
    return from_rules(json_rule(schema, strict=False))


def chain(n_levels: int, link: Callable[[dict[str, str]], dict[str, Any]]) -> Grammar:
    """A schema whose definitions refer one to the next."""
    links = {f"a{i}": link({"$ref": f"#/$defs/a{i + 1}"}) for i in range(n_levels)}
    return schema_grammar({"$defs": {**links, f"a{n_levels}": INTEGER}, "$ref": "#/$defs/a0"})


def nested(n_levels: int, schema: dict[str, Any]) -> dict[str, Any]:
    for _ in range(n_levels):
        schema = {"items": schema}
    return schema


def deep_definitions(n: int) -> Grammar:
    """So many definitions, each of 25 levels, refer one to the next."""
    definitions = {f"{i}": nested(25, {"$ref": f"#/$defs/{i + 1}"}) for i in range(n)}
    return schema_grammar({"$defs": {**definitions, f"{n}": {}}, "$ref": "#/$defs/0"})


def rules(n: int, name: str, body: str) -> Grammar:
    """Lark rules that refer one to the next."""
    return from_text("\n".join([f"start: {name}0", *(body.format(i, i + 1) for i in range(n)), f'{name}{n}: "x"']))


HOSTILE = {
    "definitions": deep_definitions(81),
    "any of": chain(1200, lambda ref: {"anyOf": [ref, {"type": "null"}]}),
    "rules": rules(4000, "a", "a{0}: a{1}"),
    "terminals": rules(4000, "A", "A{0}: A{1}"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_nests_too_deeply_is_refused(grammars: Grammars, name: str) -> None:
    with pytest.raises(RequestError, match="nests too deeply") as caught:
        grammars.compile(HOSTILE[name])
    assert "\n" not in str(caught.value)
    grammars.compile(from_regex("yes|no"))


@pytest.mark.parametrize(
    "grammar",
    [
        deep_definitions(2),
        chain(80, lambda ref: {"type": "object", "properties": {"x": ref}}),
        rules(200, "a", 'a{0}: "b" a{1}'),
        rules(200, "A", 'A{0}: "b" A{1}'),
        schema_grammar({"$defs": {"n": {"properties": {"next": {"$ref": "#/$defs/n"}}}}, "$ref": "#/$defs/n"}),
    ],
)
def test_what_real_schemas_nest_is_not(grammars: Grammars, grammar: Grammar) -> None:
    grammars.compile(grammar)


def test_a_divisor_that_is_no_number_is_refused(grammars: Grammars) -> None:
    for divisor in (True, "2"):
        with pytest.raises(RequestError, match="cannot be used"):
            grammars.compile(schema_grammar({"type": "integer", "multipleOf": divisor}))


def test_an_object_may_have_many_properties(grammars: Grammars, stories_tokenizer: Tokenizer) -> None:
    schema = {"type": "object", "properties": {f"property_{i}": INTEGER for i in range(1500)}}
    constraint = grammars.compile(schema_grammar(schema))
    for token in stories_tokenizer.encode('{"property_1499":1', add_bos=False):
        assert constraint.allowed()[token]
        constraint.accept(token)


def test_special_tokens_may_be_named(grammars: Grammars, stories_tokenizer: Tokenizer) -> None:
    (name, token), *_ = stories_tokenizer.special_tokens.items()
    for grammar in (f"start: <[{token}]>", f"start: {name}" if name.startswith("<") else 'start: "a"'):
        assert grammars.compile(from_text(grammar)).allowed().any()


def test_what_computes_too_long_is_refused(stories_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deepzig.text.grammar_trial.CPU_S", 0.1)
    grammars = Grammars(stories_tokenizer, stories_tokenizer.vocab_size, [0])
    multiples = from_rules(json_rule({"type": "integer", "multipleOf": 99999989}, strict=True))
    names = {f"^a{i}[a-z]*b$": True for i in range(MAX_NAME_PATTERNS)}
    patterns = schema_grammar({"$defs": {f"{i}": {"patternProperties": names} for i in range(60)}})  # none is used
    for hostile in (multiples, patterns, rules(70, "A", INTERSECTION)):
        with pytest.raises(RequestError, match=r"more than 0\.1 s"):
            grammars.compile(hostile)
    grammars.compile(from_regex("yes|no"))
