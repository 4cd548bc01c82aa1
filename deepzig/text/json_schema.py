"""JSON schemas as llguidance takes them: without what it refuses although nothing, or little, depends on it.

Called by `grammar_worker`, under its limits: whether a pattern can be used may take long to find out. What is left out
otherwise is llguidance's decision.
"""

import json
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from llguidance import LLMatcher

FORMATS = frozenset(("date", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "time", "uri", "uuid"))
MAX_DIVISOR = 10_000  # zeros at the end not counted: the automaton of multiples is as large, and compiles in 50 ms
MAX_NAME_PATTERNS = 50  # of patternProperties: all are compared with all
# A space, or a line break with an indentation: JSON may be pretty, but a small model must not get lost in whitespace.
_WHITESPACE = {"whitespace_flexible": True, "whitespace_pattern": r" |\n[ \t]{0,12}"}
_OF_NAMES = ("$defs", "definitions", "patternProperties", "properties")  # name -> schema
_OF_SCHEMAS = ("additionalProperties", "allOf", "anyOf", "items", "oneOf", "prefixItems")  # a schema, or a list of them
_OF_DOCUMENT = ("$schema", "$id", "$defs", "definitions")  # at its root, where references look
_ANY_NAME: tuple[Any, ...] = (True, {}, {"type": "string"})
# An escape, or a class: whether it is negated, and what is in it.
_ESCAPE_OR_CLASS = re.compile(r"\\.|\[(?P<negated>\^?)(?P<content>(?:\\.|[^\]\\])*)\]", re.DOTALL)
_CHARACTER_OR_RANGE = re.compile(r"(?P<low>\\.|.)(?:-(?P<high>\\.|.))?", re.DOTALL)
_SETS = frozenset((r"\d", r"\D", r"\s", r"\S", r"\w", r"\W"))


def json_expression(schema: Mapping[str, Any], *, strict: bool) -> str:
    """A Lark expression for JSON that fits `schema`; strict as `constraint.json_rule` has it."""
    guidance = {**_WHITESPACE, "lenient": not strict}
    return "%json " + json.dumps({**simplified(schema, strict=strict), "x-guidance": guidance})


def simplified(schema: Mapping[str, Any], *, strict: bool) -> dict[str, Any]:
    """`schema` without formats that llguidance does not know, and without `propertyNames` that allow any name.

    JSON Schema calls a format an annotation. Patterns are written as llguidance reads them, OpenAPI's `nullable` as
    JSON Schema says it. Not strict: without patterns, large divisors and dialects that llguidance cannot use, too.
    """
    kept = {key: _inner(key, value, strict) for key, value in schema.items()}
    if isinstance(form := kept.get("format"), str) and form not in FORMATS:
        del kept["format"]
    if kept.get("propertyNames") in _ANY_NAME:
        del kept["propertyNames"]
    if isinstance(pattern := kept.get("pattern"), str):
        kept["pattern"] = _as_rust_reads(pattern)
    if isinstance(names := kept.get("patternProperties"), dict):
        kept["patternProperties"] = {_as_rust_reads(name): member for name, member in names.items()}
    if not strict:
        _leave_out_unusable(kept)
    return _with_null(kept) if kept.pop("nullable", None) is True else kept


def _leave_out_unusable(schema: dict[str, Any]) -> None:
    if isinstance(pattern := schema.get("pattern"), str) and not _is_usable({"type": "string", "pattern": pattern}):
        del schema["pattern"]
    names = schema.get("patternProperties")
    if isinstance(names, dict) and not _are_usable(names):
        del schema["patternProperties"]
        schema.pop("additionalProperties", None)  # it is about the names that no pattern has
    if "$schema" in schema and not _is_usable({"$schema": schema["$schema"]}):
        del schema["$schema"]
    if _is_large(schema.get("multipleOf")):
        del schema["multipleOf"]


def _are_usable(names: Mapping[str, Any]) -> bool:
    return len(names) <= MAX_NAME_PATTERNS and _is_usable({"patternProperties": dict.fromkeys(names, True)})


def _is_usable(schema: Mapping[str, Any]) -> bool:
    return not LLMatcher.validate_grammar(LLMatcher.grammar_from_json_schema(dict(schema)))


def _is_large(divisor: object) -> bool:
    if not isinstance(divisor, int | float) or isinstance(divisor, bool):
        return False
    digits = Decimal(str(divisor)).normalize().as_tuple().digits
    return int("".join(map(str, digits))) > MAX_DIVISOR


def _as_rust_reads(pattern: str) -> str:
    """`pattern` with classes in which [, &&, ~~ and -- are themselves, as ECMA has it; for Rust they are operations."""
    return _ESCAPE_OR_CLASS.sub(_class, pattern)


def _class(match: re.Match[str]) -> str:
    if match["content"] is None:
        return match[0]
    if not match["content"]:  # [^] and [], which Rust does not know
        return r"[\s\S]" if match["negated"] else r"[^\s\S]"
    return f"[{match['negated']}{_CHARACTER_OR_RANGE.sub(_character_or_range, match['content'])}]"


def _character_or_range(match: re.Match[str]) -> str:
    low, high = (re.sub(r"^[\[&~-]", r"\\\g<0>", match[name] or "") for name in ("low", "high"))
    if not high:
        return low
    dash = r"\-" if low in _SETS or high in _SETS else "-"  # beside a set it is no range
    return f"{low}{dash}{high}"


def _with_null(schema: dict[str, Any]) -> dict[str, Any]:
    if isinstance(kind := schema.get("type"), str) and not {"const", "enum"} & schema.keys():
        return schema | {"type": [kind, "null"]}
    outside = {key: schema.pop(key) for key in _OF_DOCUMENT if key in schema}
    return outside | {"anyOf": [schema, {"type": "null"}]}


def _inner(key: str, value: Any, strict: bool) -> Any:
    if key in _OF_NAMES and isinstance(value, dict):
        return {name: _subschema(member, strict) for name, member in value.items()}
    if key in _OF_SCHEMAS and isinstance(value, list):
        return [_subschema(member, strict) for member in value]
    return _subschema(value, strict) if key in _OF_SCHEMAS else value


def _subschema(value: Any, strict: bool) -> Any:
    return simplified(value, strict=strict) if isinstance(value, dict) else value
