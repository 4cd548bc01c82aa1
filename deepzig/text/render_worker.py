"""The process that renders one chat template, so that a hostile one cannot take the time or memory of the main process.

Started for `render_process` by `worker_process`, which has Python call `main`; calls `template_sandbox`. Reads one JSON
object a line from stdin, writes one a line to stdout: first {"template"}, then per render {"constants", "variables",
"chars", "stand_ins"}, answered by {"text"} or {"error", "message"}. Says {"ready"} before the first. Ends when stdin
does.

Limits of the operating system (`worker_limits`) end a template whatever it does. Python code could not do it:
`'x' * 10**9` is one call.
"""

import json
import sys
from typing import Any

import jinja2

from deepzig.text.guarded_text import Guard
from deepzig.text.template_sandbox import MessagesRefusedError, TemplateSandbox, render
from deepzig.text.worker_limits import forbid_core_dumps, limit_cpu, limit_memory

CPU_S = 2.0
MEMORY_BYTES = 128 << 20
MAX_OUTPUT_CHARS = 8 << 20


class OutputSizeError(Exception):
    """The template writes more than MAX_OUTPUT_CHARS."""


def main() -> None:
    """Answers requests until stdin ends."""
    forbid_core_dumps()
    limit_memory(MEMORY_BYTES)
    _write({"ready": ""})
    template: jinja2.Template | None = None
    source = json.loads(sys.stdin.buffer.readline())["template"]
    for line in sys.stdin.buffer:
        limit_cpu(CPU_S)
        try:
            template = template or TemplateSandbox().from_string(source)
            answer = {"text": _render(template, json.loads(line))}
        except Exception as error:  # whatever a template raises is the answer
            answer = {"error": _kind(error), "message": _describe(error)}
        limit_cpu(0)
        _write(answer)


def _write(answer: dict[str, str]) -> None:
    # A template can make a lone surrogate; it becomes "?".
    sys.stdout.buffer.write(json.dumps(answer, ensure_ascii=False).encode(errors="replace") + b"\n")
    sys.stdout.buffer.flush()


def _render(template: jinja2.Template, request: dict[str, Any]) -> str:
    guard = Guard(request["chars"], request["stand_ins"])
    parts: list[str] = []
    n_chars = 0
    for part in render(template, request["constants"], request["variables"], guard):
        n_chars += len(part)
        if n_chars > MAX_OUTPUT_CHARS:
            raise OutputSizeError
        parts.append(part)
    return "".join(parts)


def _kind(error: Exception) -> str:
    if isinstance(error, MessagesRefusedError):
        return "refused"
    if isinstance(error, MemoryError):
        return "memory"
    return "output" if isinstance(error, OutputSizeError) else "failed"


def _describe(error: Exception) -> str:
    if isinstance(error, MessagesRefusedError):
        return str(error)[:1000]
    line = f"line {error.lineno}: " if isinstance(error, jinja2.TemplateSyntaxError) else ""
    return f"{line}{type(error).__name__}: {error}"[:1000]
