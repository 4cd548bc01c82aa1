"""The code in a document, and a walk through it: every snippet is run, in order, in one folder, as a reader would.

Called by tests/test_docs_commands.py and tools/readme_in_empty_venv.py; calls a shell. Knows how documents are written:
indented code is shell, other code is fenced with its language; a `console` shows commands after `$ ` and their output.
Where a document names a large model, the bundled one stands in for it under that name.
"""

import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

ROOT = Path(__file__).resolve().parent.parent
BUNDLED = ROOT / "deepzig/bundled/stories"
STAND_IN_FOLDERS = ("DeepSeek-V2-Lite-Chat", "DeepSeek-V3", "v2-lite-int8")  # as in `-m ./DeepSeek-V3`
STAND_IN_TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
STAND_IN_TEXTS = {"article.txt": "Once upon a time there was a little cat. The cat liked to sit in the sun.\n"}
STAND_IN_REPOSITORIES = re.compile(r"deepseek-ai/[\w.-]+")
DEFAULT_PORT = 8000
_ADDRESS = re.compile(r"127\.0\.0\.1:(\d+)")

InProcess = Callable[[list[str], bytes], "subprocess.CompletedProcess[str]"]  # words after `deepzig`, stdin


@dataclass(frozen=True)
class Command:
    """A line for the shell."""

    line: int
    text: str  # as written; lines that end in a backslash are one
    expected: str | None = None  # stdout, where the document shows it

    @property
    def plain(self) -> str:
        """Without a comment."""
        return re.sub(r"\s+# .*", "", self.text, flags=re.DOTALL)

    @property
    def program(self) -> str:
        """Its first word that is no variable."""
        return next((word for word in self.plain.split() if not re.match(r"[A-Z_]+=", word)), "")


@dataclass(frozen=True)
class Snippet:
    """A block of code."""

    line: int  # of its first line, from 1
    language: str  # "sh", "console", "python", "json", ...; "" if the fence says none
    text: str

    def commands(self) -> list[Command]:
        """What a reader would type into a shell."""
        if self.language == "console":
            return list(self._session())
        if self.language != "sh":
            return []
        joined = re.sub(r"\\\n", lambda match: match[0].replace("\n", "\0"), self.text).splitlines()
        line, found = self.line, []
        for entry in joined:
            if entry.strip():
                found.append(Command(line, entry.replace("\0", "\n").strip()))
            line += 1 + entry.count("\0")
        return found

    def _session(self) -> Iterator[Command]:
        for match in re.finditer(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", self.text, re.MULTILINE):
            yield Command(self.line + self.text.count("\n", 0, match.start()), match[1], match[2])


def snippets_of(document: Path) -> list[Snippet]:
    """All blocks of code of a Markdown file."""
    found: list[Snippet] = []
    lines = document.read_text(encoding="utf-8").splitlines()
    at = 0
    while at < len(lines):
        if fence := re.match(r"(`{3,})(\w*)$", lines[at]):
            end = lines.index(fence[1], at + 1)
            found.append(Snippet(at + 2, fence[2], "".join(line + "\n" for line in lines[at + 1 : end])))
            at = end + 1
        elif lines[at].startswith("    ") and (at == 0 or not lines[at - 1] or lines[at - 1].startswith("#")):
            end = at
            while end < len(lines) and lines[end].startswith("    "):
                end += 1
            found.append(Snippet(at + 1, "sh", "".join(line[4:] + "\n" for line in lines[at:end])))
            at = end
        else:
            at += 1
    return found


def prepare(folder: Path, text: str) -> None:
    """Put into a folder what the document `text` takes for granted."""
    for name in STAND_IN_FOLDERS:
        is_made = re.search(rf"deepzig quantize \S+ \./{name}\b", text)
        if f"./{name}" in text and not is_made:
            shutil.copytree(BUNDLED, folder / name)
            if name.endswith("-Chat"):
                (folder / name / "chat_template.jinja").write_text(STAND_IN_TEMPLATE, encoding="utf-8")
    for name, content in STAND_IN_TEXTS.items():
        (folder / name).write_text(content, encoding="utf-8")


class Walk:
    """Runs snippets one after the other in a folder. What fails is an AssertionError that names the line."""

    def __init__(
        self,
        folder: Path,
        environment: Mapping[str, str],
        in_process: InProcess | None = None,
        any_port: bool = False,
        patience_s: float = 100,
    ) -> None:
        """in_process runs what needs no shell; any_port gives servers a free port and lets later snippets call it.

        A command that takes longer than patience_s is a subprocess.TimeoutExpired.
        """
        self._patience_s = patience_s
        self._folder, self._environment = folder, dict(environment)
        self._in_process, self._any_port = in_process, any_port
        self._servers: dict[int, subprocess.Popen[bytes]] = {}  # by the port of the document
        self._ports: dict[int, int] = {}  # the same -> where it listens

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        for port in list(self._servers):
            self._stop(port)

    def command(self, command: Command) -> None:
        """Run it to its end; a server, until it serves."""
        if re.search(r"\bdeepzig serve\b", command.plain):
            self._serve(command.plain)
            return
        text = self._addressed(command.text)
        simple = without_shell(text, self._folder) if self._in_process else None
        done = self._in_process(*simple) if self._in_process and simple else self._run("sh", "-c", text)
        _check(command.text, done)
        if command.expected is not None:
            assert done.stdout == command.expected, f"{command.text}\nprints\n{done.stdout}"

    def python(self, text: str) -> None:
        """Run a Python snippet; it must print something if it prints at all."""
        done = self._run("python", "-c", self._addressed(text))
        _check(text, done)
        assert done.stdout.strip() or "print(" not in text, f"{text}\nprints nothing"

    def _run(self, *words: str) -> "subprocess.CompletedProcess[str]":
        given = {"cwd": self._folder, "env": self._environment, "stdin": subprocess.DEVNULL}
        return subprocess.run(words, **given, capture_output=True, text=True, timeout=self._patience_s)

    def _addressed(self, text: str) -> str:
        """With servers where they listen. One that no snippet has started yet is `deepzig serve`."""
        for port in map(int, _ADDRESS.findall(text)):
            if port not in self._servers:
                self._serve(f"deepzig serve --port {port}")
        return _ADDRESS.sub(lambda match: f"127.0.0.1:{self._ports[int(match[1])]}", text)

    def _serve(self, text: str) -> None:
        match = re.search(r"--port (\d+)", text)
        port = int(match[1]) if match else DEFAULT_PORT
        if port in self._servers:
            self._stop(port)
        log = self._folder / f"server-{port}.log"
        command = f"exec env {text}" + (" --port 0" if self._any_port else "")
        with log.open("wb") as stderr:
            server = subprocess.Popen(
                ["sh", "-c", command], cwd=self._folder, env=self._environment, stdin=subprocess.DEVNULL, stderr=stderr
            )
        deadline = time.monotonic() + 60
        while not (serving := re.search(r"^Serving .* on http://[\w.\[\]:]+:(\d+)", log.read_text(), re.MULTILINE)):
            assert server.poll() is None and time.monotonic() < deadline, f"{text}\n{log.read_text()}"
            time.sleep(0.02)
        self._servers[port], self._ports[port] = server, int(serving[1])

    def _stop(self, port: int) -> None:
        server = self._servers.pop(port)
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 0, f"the server of port {port} ended with {server.returncode}"


def without_shell(text: str, folder: Path) -> tuple[list[str], bytes] | None:
    """Words after `deepzig` and stdin of a command, None if it is not deepzig's or a shell does more than `< FILE`."""
    lexer = shlex.shlex(text, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words = list(lexer)
    stdin = b""
    if "<" in words:
        at = words.index("<")
        stdin = (folder / words[at + 1]).read_bytes()
        del words[at : at + 2]
    is_simple = words[0] == "deepzig" and not any(set(word) <= set("();<>|&") for word in words if word)
    return (words[1:], stdin) if is_simple and "$" not in text else None


def _check(text: str, done: "subprocess.CompletedProcess[str]") -> None:
    assert done.returncode == 0, f"{text}\nexit code {done.returncode}\n{done.stdout}{done.stderr}"


def path_with(bin_folder: Path) -> dict[str, str]:
    """The environment with an environment's programs first, and without the user's settings of deepzig."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("DEEPZIG_", "PYTHON"))}
    return kept | {"PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}"}
