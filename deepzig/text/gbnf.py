"""GBNF, the grammars of llama.cpp, as llguidance's Lark.

Called by `constraint`. llguidance's lexer takes the longest lexeme that fits, and never goes back: were `[ \\t\\n]*`
one lexeme, no line break could follow it. So a grammar without recursion becomes a single lexeme. In others each lexeme
is one character, and the rest is left to the parser, which follows all readings at once, as llama.cpp does.
"""

import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter

from deepzig.errors import RequestError, shown

_CODE = r"\\x[0-9a-fA-F]{2}|\\u[0-9a-fA-F]{4}|\\U[0-9a-fA-F]{8}"
_TOKEN = re.compile(
    rf"""(?P<space>[ \t\r\n]+|\#[^\r\n]*)
    |(?P<rule>[a-zA-Z0-9_-]+)[ \t]*::=
    |(?P<name>[a-zA-Z0-9_-]+)
    |"(?P<literal>(?:{_CODE}|\\[^xuU]|[^\\"])*)"
    |\[(?P<class>(?:{_CODE}|\\[^xuU]|[^\\\]])+)\]
    |(?P<repeat>[*+?]|\{{\s*\d+\s*(?:,\s*\d*\s*)?\}})
    |(?P<mark>[.()|])""",
    re.VERBOSE | re.DOTALL,
)
_CHARACTER = re.compile(rf"{_CODE}|\\?.", re.DOTALL)
_CONTROL = {"n": "\n", "r": "\r", "t": "\t"}
_ANY_CHARACTER = "/(?s:.)/"

_Part = tuple[str, str]  # group of _TOKEN, its text


def as_lark(grammar: str) -> str:
    """The same grammar in Lark. Raises RequestError if it is none."""
    rules = _rules(grammar)
    if "root" not in rules:
        raise RequestError("the GBNF grammar has no rule root, with which an answer begins; add one")
    kind = "rule" if _has_recursion(rules) else "TERMINAL"
    names = {name: f"{kind}_{index}" for index, name in enumerate(rules)}
    lines = [f"{names[name]}: {' '.join(_body(parts, names))}" for name, parts in rules.items()]
    return "\n".join([f"start: {names['root']}", *lines])


def _has_recursion(rules: Mapping[str, Sequence[_Part]]) -> bool:
    """Whether a rule leads back to itself."""
    try:
        TopologicalSorter({name: [text for kind, text in rules[name] if kind == "name"] for name in rules}).prepare()
    except CycleError:
        return True
    return False


def _rules(grammar: str) -> dict[str, list[_Part]]:
    """Name -> what it stands for; the last rule of a name counts."""
    rules: dict[str, list[_Part]] = {}
    parts: list[_Part] = []
    position = 0
    while position < len(grammar):
        match = _TOKEN.match(grammar, position)
        if match is None or match.lastgroup is None or (match.lastgroup not in ("rule", "space") and not rules):
            here = shown(grammar[position : position + 30])
            raise RequestError(f"the GBNF grammar cannot be read at {here}; mend it")
        position = match.end()
        if match.lastgroup == "rule":
            parts = rules[match["rule"]] = []
        elif match.lastgroup != "space":
            parts.append((match.lastgroup, match[match.lastgroup]))
    return rules


def _body(parts: Iterable[_Part], names: Mapping[str, str]) -> Iterator[str]:
    """The Lark expression of a rule, in pieces."""
    is_empty = True  # the alternative so far
    n_open = 0
    for kind, text in parts:
        if is_empty and text in ("|", ")") and kind == "mark":
            yield '""'
        is_empty = kind == "mark" and text in ("|", "(")
        n_open += {"(": 1, ")": -1}.get(text, 0) if kind == "mark" else 0
        if n_open < 0:
            break
        yield _PIECES[kind](text) if kind != "name" else _name(text, names)
    if n_open:
        raise RequestError("the GBNF grammar has parentheses without their counterpart; mend it")
    if is_empty:
        yield '""'


def _name(name: str, names: Mapping[str, str]) -> str:
    if name not in names:
        raise RequestError(f"the GBNF grammar has no rule {shown(name)}, though another refers to it; add it")
    return names[name]


def _literal(text: str) -> str:
    characters = [json.dumps(character) for character in map(_character, _CHARACTER.findall(text))]
    return f"({' '.join(characters)})" if characters else '""'


def _class(text: str) -> str:
    """A class as a regex of one character, all of it escaped."""
    is_negated = text[0] == "^"
    written = _CHARACTER.findall(text[is_negated:])[::-1]
    ranges = []
    while written:
        first = last = _character(written.pop())
        if len(written) > 1 and written[-1] == "-":
            last = _character(written[-2])
            del written[-2:]
        if last < first:
            raise RequestError(f"the GBNF grammar has a range from {shown(first)} down to {shown(last)}; turn it round")
        ranges.append(f"\\x{{{ord(first):x}}}-\\x{{{ord(last):x}}}")
    return f"/[{'^' * is_negated}{''.join(ranges)}]/" if ranges else _ANY_CHARACTER


def _character(written: str) -> str:
    """The character that is written so."""
    if written[0] != "\\" or len(written) == 1:
        return written
    code = written[2:]
    if not code and (written[1] in _CONTROL or not written[1].isalnum()):
        return _CONTROL.get(written[1], written[1])
    if not code or int(code, 16) > sys.maxunicode or 0xD800 <= int(code, 16) < 0xE000:
        raise RequestError(f"the GBNF grammar has {shown(written)}, which is no character; write another")
    return chr(int(code, 16))


def _repeat(text: str) -> str:
    if text[0] != "{":
        return text
    first, comma, last = text.strip("{}").partition(",")
    return f"{{{first.strip()},{last.strip() if comma else first.strip()}}}"


_PIECES: Mapping[str, Callable[[str], str]] = {
    "literal": _literal,
    "class": _class,
    "repeat": _repeat,
    "mark": lambda mark: _ANY_CHARACTER if mark == "." else mark,
}
