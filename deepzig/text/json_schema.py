"""JSON schemas as llguidance takes them: without what it refuses although nothing, or little, depends on it.

Called by `constraint`. What is left out otherwise is llguidance's decision.
"""

import re
from collections.abc import Mapping
from typing import Any

FORMATS = frozenset(("date", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "time", "uri", "uuid"))
_OF_NAMES = ("$defs", "definitions", "patternProperties", "properties")  # name -> schema
_OF_SCHEMAS = ("additionalProperties", "allOf", "anyOf", "items", "oneOf", "prefixItems")  # a schema, or a list of them
_ANY_NAME: tuple[Any, ...] = (True, {}, {"type": "string"})
_LOOK_AROUND = re.compile(r"(?<!\\)(?:\\\\)*\(\?<?[=!]")


def simplified(schema: Mapping[str, Any], *, strict: bool) -> dict[str, Any]:
    """`schema` without formats that llguidance does not know, and without `propertyNames` that allow any name.

    JSON Schema calls a format an annotation. Not strict: without patterns that look around, too.
    """
    kept = {key: _inner(key, value, strict) for key, value in schema.items()}
    if isinstance(form := kept.get("format"), str) and form not in FORMATS:
        del kept["format"]
    if kept.get("propertyNames") in _ANY_NAME:
        del kept["propertyNames"]
    if not strict and isinstance(pattern := kept.get("pattern"), str) and _LOOK_AROUND.search(pattern):
        del kept["pattern"]
    names = kept.get("patternProperties")
    if not strict and isinstance(names, dict) and any(_LOOK_AROUND.search(name) for name in names):
        del kept["patternProperties"]
        kept.pop("additionalProperties", None)  # it is about the names that no pattern has
    return kept


def _inner(key: str, value: Any, strict: bool) -> Any:
    if key in _OF_NAMES and isinstance(value, dict):
        return {name: _subschema(member, strict) for name, member in value.items()}
    if key in _OF_SCHEMAS and isinstance(value, list):
        return [_subschema(member, strict) for member in value]
    return _subschema(value, strict) if key in _OF_SCHEMAS else value


def _subschema(value: Any, strict: bool) -> Any:
    return simplified(value, strict=strict) if isinstance(value, dict) else value
