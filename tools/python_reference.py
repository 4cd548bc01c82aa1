"""Writes docs/python.md from the docstrings of the public names, for `make docs`; tests/test_docs.py compares them.

Reads the sources without running them, so that the page is the same on every Python. A docstring may have the sections
Args, Attributes and Raises; the fields of a dataclass are explained by the comments beside them.
"""

import ast
import io
import re
import textwrap
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/python.md"
INTRODUCTION = """\
# Python
The public interface of the package, made from its docstrings by `make docs`. Names that are not here may change without
notice. Arrays are NumPy's; their dtype and shape stand beside them: `f32 (T, vocab_size)` has a row for each of T
tokens. The other letters are those of [architecture](architecture.md#names). Times are in seconds, sizes in bytes.
[Getting started](getting-started.md) has a first program; [errors](#errors) are at the end.

```python
import deepzig

with deepzig.load("stories") as llm:
    params = deepzig.SamplingParams(max_tokens=40, temperature=0.7, seed=1)
    for chunk in llm.stream("Once upon a time", params):
        print(chunk.text, end="", flush=True)
```
"""
# Name -> module: what `deepzig` offers, then what an LLM gives access to.
PUBLIC = {
    "load": "engine.loading", "load_distributed": "distributed.loading",
    "LLM": "engine.llm", "SamplingParams": "engine.sampling",
    "GenerationResult": "engine.results", "Choice": "engine.results", "StreamChunk": "engine.results",
    "Timings": "engine.results", "TokenLogprob": "engine.sampling", "Generation": "engine.generation",
    "Progress": "engine.results", "EngineStats": "engine.results", "Trace": "engine.trace",
    "TokenConstraint": "engine.sampling", "ModelConfig": "config",
    "StreamingWarning": "engine.memory_need", "ExtraTensorsWarning": "checkpoint.loader",
}  # fmt: skip
REACHED = {
    "RopeParameters": "config", "Tokenizer": "text.tokenizer", "ChatTemplate": "text.chat",
    "GenerationDefaults": "engine.defaults", "ExpertCounter": "engine.expert_counter",
}  # fmt: skip
INTERNAL = {  # take or give what is not public
    "ChatTemplate.from_directory", "ChatTemplate.telling_tools", "GenerationDefaults.from_directory",
    "GenerationDefaults.resolve", "ExpertCounter.observe", "LLM.model",
}  # fmt: skip
SECTIONS = ("Args", "Attributes", "Raises")


@dataclass(frozen=True)
class Docstring:
    """A docstring in parts."""

    paragraphs: list[str]
    sections: dict[str, dict[str, str]]  # "Args" -> name -> text

    @classmethod
    def of(cls, node: ast.AST) -> "Docstring":
        text = ast.get_docstring(node) or ""  # type: ignore[arg-type]
        head, *rest = re.split(rf"^({'|'.join(SECTIONS)}):\n", text, flags=re.MULTILINE)
        sections = {}
        for name, body in zip(rest[::2], rest[1::2], strict=True):
            entries = re.findall(r"^(\S.*?): (.*(?:\n[ \n].*)*)", textwrap.dedent(body), re.MULTILINE)
            sections[name] = {entry: _joined(meaning) for entry, meaning in entries}
        paragraphs = [part for part in head.split("\n\n") if part.strip()]
        return cls([_joined(part) for part in paragraphs], sections)

    def lines(self) -> Iterator[str]:
        for paragraph in self.paragraphs:
            yield from ("", _wrapped(paragraph))
        for name, entries in self.sections.items():
            yield from ("", f"{'Arguments' if name == 'Args' else name}:", "")
            for entry, meaning in entries.items():
                names = ", ".join(f"`{part}`" for part in entry.split(", "))
                yield _wrapped(f"- {names}: {meaning}", "  ")


class Source:
    """A module's text and what stands in it."""

    def __init__(self, module: str) -> None:
        self.text = (ROOT / "deepzig" / (module.replace(".", "/") + ".py")).read_text(encoding="utf-8")
        self.tree = ast.parse(self.text)
        self._comments: dict[int, str] = {}
        self._lone: set[int] = set()  # lines that are nothing but a comment
        for token in tokenize.generate_tokens(io.StringIO(self.text).readline):
            if token.type == tokenize.COMMENT:
                self._comments[token.start[0]] = token.string.lstrip("# ")
                if not token.line[: token.start[1]].strip():
                    self._lone.add(token.start[0])

    def find(self, name: str) -> ast.ClassDef | ast.FunctionDef:
        """The class or function of that name."""
        found = [n for n in self.tree.body if isinstance(n, ast.ClassDef | ast.FunctionDef) and n.name == name]
        return found[0]

    def comment(self, node: ast.stmt) -> str:
        """What is said beside a field, and below it in lines of their own."""
        lines = range(node.lineno, (node.end_lineno or node.lineno) + 1)
        parts = [self._comments[line] for line in lines if line in self._comments]
        below = lines.stop
        while below in self._lone:
            parts.append(self._comments[below])
            below += 1
        return " ".join(parts)


def render() -> str:
    """The page."""
    lines = [INTRODUCTION.rstrip()]
    for name, module in PUBLIC.items():
        lines += _section(name, Source(module), "deepzig.")
    lines += ["", "## Reached through an LLM", "", "What `llm.config`, `llm.tokenizer` and the like are."]
    for name, module in REACHED.items():
        lines += _section(name, Source(module), "", level=3)
    lines += _errors(Source("errors"))
    return "\n".join(lines) + "\n"


def _section(name: str, source: Source, prefix: str, level: int = 2) -> Iterator[str]:
    node = source.find(name)
    yield from ("", f"{'#' * level} {name}")
    if isinstance(node, ast.FunctionDef):
        yield from _signature(node, f"{prefix}{name}")
        yield from Docstring.of(node).lines()
        return
    yield from Docstring.of(node).lines()
    yield from _fields(node, source)
    functions = [n for n in node.body if isinstance(n, ast.FunctionDef) and not n.name.startswith("_")]
    members = [n for n in functions if f"{name}.{n.name}" not in INTERNAL]
    properties = [n for n in members if "property" in " ".join(map(ast.unparse, n.decorator_list))]
    if properties:
        yield ""
    for member in properties:
        meaning = " ".join(Docstring.of(member).paragraphs)
        yield _wrapped(f"- `{member.name}` ({_type(member.returns)}): {meaning}", "  ")
    for member in members:
        if member not in properties:
            yield from ("", f"{'#' * (level + 1)} {name}.{member.name}")
            yield from _signature(member, f"{name}.{member.name}")
            yield from Docstring.of(member).lines()


def _fields(node: ast.ClassDef, source: Source) -> Iterator[str]:
    fields = [n for n in node.body if isinstance(n, ast.AnnAssign)]
    if not fields:
        return
    defaults = [_default(field.value) for field in fields]
    has_defaults = any(defaults)
    yield from ("", _row(has_defaults, "field", "type", "default", "meaning"), _row(has_defaults, *["---"] * 4))
    for field, default in zip(fields, defaults, strict=True):
        name = f"`{ast.unparse(field.target)}`"
        yield _row(has_defaults, name, _type(field.annotation), default and f"`{default}`", source.comment(field))


def _row(has_defaults: bool, name: str, annotation: str, default: str, meaning: str) -> str:
    cells = (name, annotation, default, meaning) if has_defaults else (name, annotation, meaning)
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _errors(source: Source) -> Iterator[str]:
    yield from ("", "## Errors", "")
    yield "All are in `deepzig.errors`. The number is the exit code of the command line."
    yield from ("", "| error | is a | exit code | when |", "|---|---|---:|---|")
    codes: dict[str, str] = {}
    for node in source.tree.body:
        if isinstance(node, ast.ClassDef):
            bases = [ast.unparse(base) for base in node.bases]
            own = [ast.unparse(n.value) for n in node.body if isinstance(n, ast.Assign)]
            codes[node.name] = own[0] if own else codes[bases[0]]
            meaning = " ".join(Docstring.of(node).paragraphs)
            shown = ", ".join(f"`{base}`" for base in bases)
            yield f"| `{node.name}` | {shown} | {codes[node.name]} | {meaning} |"


def _signature(node: ast.FunctionDef, name: str) -> Iterator[str]:
    """As it is called: a line, or one for each parameter where that is too long."""
    parameters = _parameters(node)
    returns = f" -> {_unquoted(node.returns)}" if node.returns is not None else ""
    line = f"{name}({', '.join(parameters)}){returns}"
    yield from ("", "```text")
    yield from [line] if len(line) <= 110 else (f"{name}(", *(f"    {each}," for each in parameters), f"){returns}")
    yield "```"


def _parameters(node: ast.FunctionDef) -> list[str]:
    """Each parameter with its type and default."""
    given = node.args
    positional = [*given.posonlyargs, *given.args]
    defaults = [*[None] * (len(positional) - len(given.defaults)), *given.defaults]
    found = [_parameter(*pair) for pair in zip(positional, defaults, strict=True)]
    if given.posonlyargs:
        found.insert(len(given.posonlyargs), "/")
    found = found[1:] if positional and positional[0].arg in ("self", "cls") else found
    found += ["*"] if given.kwonlyargs else []
    found += [_parameter(*pair) for pair in zip(given.kwonlyargs, given.kw_defaults, strict=True)]
    return found + ([f"**{ast.unparse(given.kwarg)}"] if given.kwarg else [])


def _parameter(argument: ast.arg, default: ast.expr | None) -> str:
    return ast.unparse(argument) + (f" = {ast.unparse(default)}" if default is not None else "")


def _default(node: ast.expr | None) -> str:
    """As it is written; "" if there is none."""
    text = "" if node is None else ast.unparse(node)
    if text.startswith("field(") and "default" not in text:
        return ""
    factory = re.search(r"default_factory=(\w+)", text)
    return {"dict": "{}", "list": "[]"}[factory[1]] if factory else re.sub(r"field\(default=(\w+).*", r"\1", text)


def _type(node: ast.expr | None) -> str:
    return f"`{_unquoted(node)}`" if node is not None else ""


def _unquoted(node: ast.expr) -> str:
    """A type; one that is written as a string, without its quotes."""
    return ast.unparse(node).replace("'", "")


def _wrapped(text: str, indent: str = "") -> str:
    return textwrap.fill(text, 120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _joined(text: str) -> str:
    return " ".join(text.split())


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
