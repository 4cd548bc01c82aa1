"""The Containerfile, as far as it can be tested without a container engine: what it copies, sets, checks and is."""

import functools
import http.server
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest
from click.testing import CliRunner

from deepzig.cli import main
from deepzig.cli.command import settable, variables_of
from deepzig.cli.serve import serve

ROOT = Path(__file__).resolve().parent.parent


@functools.cache
def steps() -> list[tuple[str, str]]:
    """Instructions in order, each with its arguments; lines that end in a backslash are joined."""
    lines = (ROOT / "Containerfile").read_text(encoding="utf-8").splitlines()
    text = "\n".join(line for line in lines if not line.startswith("#")).replace("\\\n", "")
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in text.splitlines() if line)]


def arguments(instruction: str) -> list[str]:
    return [rest for name, rest in steps() if name == instruction]


def environment() -> dict[str, str]:
    return dict(word.split("=", 1) for rest in arguments("ENV") for word in rest.split())


def is_sent(path: str) -> bool:
    """Whether .dockerignore lets a file of the tree get to the build: the last rule that fits it decides."""
    sent = True
    for rule in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        pattern = rule.removeprefix("!").replace("**/", "*")
        if rule and not rule.startswith("#") and (fnmatch(path, pattern) or fnmatch(path, f"{pattern}/*")):
            sent = rule.startswith("!")
    return sent


def copied() -> list[str]:
    """What comes from the tree."""
    return [name for rest in arguments("COPY") if not rest.startswith("--from") for name in rest.split()[:-1]]


def test_instructions_are_known() -> None:
    known = {"ARG", "FROM", "RUN", "WORKDIR", "COPY", "ENV", "USER", "VOLUME", "EXPOSE", "STOPSIGNAL", "HEALTHCHECK",
             "ENTRYPOINT", "CMD"}  # fmt: skip
    assert {name for name, _ in steps()} == known


def test_what_is_copied_exists_and_is_sent() -> None:
    assert "deepzig" in copied()
    assert [name for name in copied() if not (ROOT / name).exists() or not is_sent(name)] == []


def test_nothing_else_is_sent() -> None:
    built = ["deepzig/_kernels/_build.json", "deepzig/_kernels/_cpuid.cpython-311-x86_64-linux-gnu.so"]
    assert not any(map(is_sent, [*built, "deepzig/cli/__pycache__/x.pyc", ".git", ".venv", "build", "tests", "dist"]))
    assert all(map(is_sent, ["deepzig/_kernels/_simd.pxd", "deepzig/bundled/stories/config.json"]))


def test_what_the_build_reads_is_copied() -> None:
    metadata = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    named = re.findall(r'^(?:readme|license-files) = \[?"([^"]+)"', metadata, re.MULTILINE)
    assert len(named) == 2
    assert {*named, "pyproject.toml", "setup.py", "MANIFEST.in"} <= set(copied())


def test_both_stages_have_one_base_and_the_last_is_no_root() -> None:
    assert [rest.split()[0] for rest in arguments("FROM")] == ["${BASE}", "${BASE}"]
    (user,) = arguments("USER")
    assert f"--uid {user.split(':')[0]} " in " ".join(arguments("RUN")) and user != "0"


def test_models_are_kept_in_the_volume() -> None:
    (volume,) = arguments("VOLUME")
    assert environment()["HF_HOME"].startswith(f"{volume}/")
    assert f"install -d -o deepzig -g deepzig {volume}" in " ".join(arguments("RUN"))


def test_variables_are_options_of_serve() -> None:
    options = {variable for option in settable(serve) for variable in variables_of(option, ("serve",))}
    assert {name for name in environment() if name.startswith("DEEPZIG_")} <= options
    assert arguments("EXPOSE") == [environment()["DEEPZIG_SERVE_PORT"]]


def test_without_a_key_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment().items():
        if name.startswith("DEEPZIG_"):
            monkeypatch.setenv(name, value)
    entry, command = (json.loads(arguments(name)[0]) for name in ("ENTRYPOINT", "CMD"))
    assert entry == ["deepzig"]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 2 and "--insecure" in result.stderr


class Health(http.server.BaseHTTPRequestHandler):
    status = 200
    paths: list[str]

    def do_GET(self) -> None:
        self.paths.append(self.path)
        self.send_response(self.status)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing on stderr."""


@pytest.fixture
def health() -> Iterator[tuple[type[Health], int]]:
    handler = type("OwnHealth", (Health,), {"paths": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield handler, server.server_port
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(("status", "is_healthy"), [(200, True), (503, False)])
def test_health_check_asks_the_server(health: tuple[type[Health], int], status: int, is_healthy: bool) -> None:
    handler, port = health
    handler.status = status
    assert (check_health(port) == 0) == is_healthy
    assert handler.paths == ["/health"]


def test_health_check_fails_where_nobody_listens() -> None:
    assert check_health(1) != 0


def check_health(port: int) -> int:
    (check,) = arguments("HEALTHCHECK")
    python, *rest = json.loads(check.partition(" CMD ")[2])
    assert python == "python3"
    variables = {"DEEPZIG_SERVE_PORT": str(port), "http_proxy": "http://127.0.0.1:9"}
    return subprocess.run([sys.executable, *rest], env=variables, capture_output=True, timeout=30).returncode
