"""How a server ends: requests may finish for a while, then they are cut with an error; a second signal is at once."""

import json
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from click.testing import CliRunner
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from deepzig.cli import main
from deepzig.cli.messages import NOTE
from deepzig.cli.serve import _announce
from deepzig.cli.signals import orderly_end
from deepzig.engine.llm import LLM
from deepzig.server.listen import bind
from deepzig.server.served_model import ServedModel
from deepzig.server.service import Service
from deepzig.server.settings import ServerSettings
from tests.server.conftest import serving, wait_for

STORY = "Once upon a time"
LONG = {"model": "", "prompt": STORY, "max_tokens": 1000, "stream": True, "extra_body": {"ignore_eos": True}}


def begun(client: openai.OpenAI, **options: Any) -> Any:
    """A stream that has given its first token."""
    stream = iter(client.completions.create(**{**LONG, **options}))
    next(stream)
    return stream


def test_what_runs_may_finish(stories: LLM) -> None:
    with serving(stories, shutdown_timeout=60) as running, running.openai() as client:
        stream = begun(client, max_tokens=300)
        running.server.stop()
        wait_for(lambda: running.service.is_draining)
        with pytest.raises(openai.APIConnectionError):
            client.models.list()
        assert list(stream)[-1].choices[0].finish_reason == "length"


def test_what_takes_too_long_is_cut_with_an_error(stories: LLM) -> None:
    with serving(stories, shutdown_timeout=0.1) as running, running.openai() as client:
        stream = begun(client, n=8)
        running.server.stop()
        with pytest.raises(openai.APIError, match="shutting down"):
            list(stream)


def test_second_signal_ends_at_once(stories: LLM) -> None:
    with serving(stories, shutdown_timeout=600) as running, running.openai() as client:
        stream = begun(client, n=8)
        running.server.handle_exit(signal.SIGTERM, None)
        running.server.handle_exit(signal.SIGTERM, None)
        with pytest.raises(openai.APIError, match="shutting down"):
            list(stream)


def test_websocket_may_finish_and_is_told(stories: LLM) -> None:
    with serving(stories, shutdown_timeout=60) as running, connect(f"ws://127.0.0.1:{running.port}/v1/ws") as socket:
        socket.send(json.dumps({"messages": [{"role": "user", "content": "One"}], "max_tokens": 60}))
        frames = [json.loads(socket.recv(timeout=60)) for _ in range(3)]
        running.server.stop()
        while "type" not in frames[-1] or frames[-1]["type"] == "ready":
            frames.append(json.loads(socket.recv(timeout=60)))
        assert frames[-1] == {"type": "done"}
        with pytest.raises(ConnectionClosed) as caught:
            socket.recv(timeout=60)
        assert caught.value.rcvd is not None and caught.value.rcvd.code == 1012


def test_websocket_without_a_key_is_told_of_the_shutdown(stories: LLM) -> None:
    with serving(stories, api_keys=("a-key-of-the-tests",)) as running:
        with connect(f"ws://127.0.0.1:{running.port}/v1/ws") as socket:
            running.server.stop()
            with pytest.raises(ConnectionClosed) as caught:
                socket.recv(timeout=60)
        assert caught.value.rcvd is not None and caught.value.rcvd.code == 1012


def test_what_is_still_being_prepared_is_told_too(
    stories: LLM, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    begun, is_over = threading.Semaphore(0), threading.Event()

    def prepare(*_: Any) -> Any:
        begun.release()
        assert is_over.wait(60)

    monkeypatch.setattr("deepzig.server.app.prepare_completion", prepare)
    monkeypatch.setattr("deepzig.server.websocket.prepare_chat", prepare)
    with serving(stories, shutdown_timeout=0.1) as running, running.http() as http, ThreadPoolExecutor() as pool:
        with connect(f"ws://127.0.0.1:{running.port}/v1/ws") as socket:
            asked = pool.submit(http.post, "/v1/completions", json={"prompt": STORY})
            socket.send(json.dumps({"messages": [{"role": "user", "content": "One"}]}))
            assert begun.acquire(timeout=30) and begun.acquire(timeout=30)
            running.server.stop()
            reply = asked.result(60)
            assert json.loads(socket.recv(timeout=60)) == {"type": "ready"}
            assert json.loads(socket.recv(timeout=60)) == reply.json()
            with pytest.raises(ConnectionClosed) as caught:
                socket.recv(timeout=60)
        is_over.set()
    assert reply.status_code == 503 and reply.json()["error"]["code"] == "shutting_down"
    assert caught.value.rcvd is not None and caught.value.rcvd.code == 1012
    assert not any(record.exc_info for record in caplog.records)


def test_nothing_begins_after_the_cut(stories: LLM) -> None:
    with serving(stories) as running, running.http() as http:
        running.service.cut()
        reply = http.post("/v1/completions", json={"prompt": STORY})
    assert reply.status_code == 503 and reply.json()["error"]["code"] == "shutting_down"


def test_the_command_serves_and_exits_with_0_after_sigterm() -> None:
    """The command itself: the banner tells where it listens, SIGTERM lets a stream end."""
    command = [sys.executable, "-m", "deepzig", "serve", "-m", "stories", "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        assert process.stderr is not None
        watchdog = threading.Timer(100, process.kill)
        watchdog.start()
        try:
            banner = process.stderr.readline()
            found = re.search(r"on (http://127\.0\.0\.1:\d+)", banner)
            assert found, banner
            assert process.stderr.readline().startswith(f"Open {found[1]}/ in a browser, or try: curl {found[1]}/v1/")
            body = {"prompt": "One", "max_tokens": 200, "stream": True, "ignore_eos": True}
            with httpx2.stream("POST", f"{found[1]}/v1/completions", json=body, timeout=60) as reply:
                lines = reply.iter_lines()
                next(lines)
                process.send_signal(signal.SIGTERM)
                assert [line for line in lines if line][-1] == "data: [DONE]"
            assert process.wait(60) == 0
            assert "Traceback" not in process.stderr.read()
        finally:
            watchdog.cancel()
            process.kill()


def test_a_closed_terminal_lets_requests_end_and_keeps_the_prompt_cache(tmp_path: Path) -> None:
    options = ("--port", "0", "--prompt-cache", str(tmp_path))
    command = [sys.executable, "-m", "deepzig", "serve", "-m", "stories", *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        assert process.stderr is not None
        try:
            found = re.search(r"on (http://127\.0\.0\.1:\d+)", process.stderr.readline())
            assert found
            body = {"prompt": "One", "max_tokens": 1000, "stream": True, "ignore_eos": True}
            with httpx2.stream("POST", f"{found[1]}/v1/completions", json=body, timeout=60) as reply:
                lines = reply.iter_lines()
                next(lines)
                for _ in range(2):  # from the terminal, and from the shell
                    process.send_signal(signal.SIGHUP)
                    time.sleep(0.05)
                assert [line for line in lines if line][-1] == "data: [DONE]"
            assert process.wait(60) == 0
        finally:
            process.kill()
    assert list(tmp_path.iterdir())


def test_hanging_up_does_nothing_under_nohup() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with orderly_end():
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_signal_before_the_model_is_there_is_no_failure(stories: LLM, caplog: pytest.LogCaptureFixture) -> None:
    service = Service(ServerSettings())
    service.is_draining = True
    service.serve(ServedModel.of(stories))
    with caplog.at_level(NOTE, logger="deepzig"):
        _announce(service, 8000)
    assert "Serving stories" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (["--host", "0.0.0.0"], 2, "--insecure"),
        (["--api-key", "short"], 2, "'--api-key': an API key of 5 characters is too short; use one of 8 or more"),
        (["--api-key", "caf\xe9-caf\xe9"], 2, "'--api-key': an API key has characters other than printable ASCII"),
        (["-m", "/nowhere"], 3, "nowhere"),
    ],
)
def test_what_cannot_be_started(arguments: list[str], exit_code: int, message: str) -> None:
    result = CliRunner().invoke(main, ["serve", "--port", "0", *arguments])
    assert result.exit_code == exit_code
    assert message in result.stderr and "Traceback" not in result.stderr and "bundled" not in result.stderr


def test_port_that_is_taken() -> None:
    with bind("127.0.0.1", 0) as taken:
        result = CliRunner().invoke(main, ["serve", "-m", "stories", "--port", str(taken.getsockname()[1])])
    assert result.exit_code == 2 and "--port" in result.stderr


def test_no_prompts_are_kept_where_there_are_keys(tmp_path: Path) -> None:
    with bind("127.0.0.1", 0) as taken:
        options = ["--api-key", "key-of-the-tests", "--prompt-cache", str(tmp_path / "prompts")]
        result = CliRunner().invoke(main, ["serve", "-m", "stories", "--port", str(taken.getsockname()[1]), *options])
    assert "Warning: --prompt-cache keeps nothing here" in result.stderr


def test_the_variable_of_a_key_that_is_too_short_is_named() -> None:
    result = CliRunner().invoke(main, ["serve", "--port", "0"], env={"DEEPZIG_SERVE_API_KEY": "long-enough short"})
    assert result.exit_code == 2 and "DEEPZIG_SERVE_API_KEY: an API key of 5 characters" in result.stderr


def test_keys_come_from_a_file_too(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("# of the team\nfirst-key-of-all\n\n short \n")
    result = CliRunner().invoke(main, ["serve", "-m", "stories", "--port", "0", "--api-key-file", str(path)])
    assert result.exit_code == 2 and f"{path}, line 4: an API key of 5 characters is too short" in result.stderr
    path.write_bytes(b"caf\xe9-caf\xe9\n")
    result = CliRunner().invoke(main, ["serve", "-m", "stories", "--port", "0", "--api-key-file", str(path)])
    assert result.exit_code == 2 and "keys is not UTF-8 at byte 3" in result.stderr


@pytest.mark.parametrize("content", ["", "# of the team\n\n", "  # not-a-key-either\n", "\ufeff# of-an-editor\n"])
def test_a_file_without_a_key_leaves_no_server_open(tmp_path: Path, content: str) -> None:
    path = tmp_path / "keys"
    path.write_text(content)
    result = CliRunner().invoke(main, ["serve", "-m", "/nowhere", "--port", "0", "--api-key-file", str(path)])
    assert result.exit_code == 2 and f"{path} has no key; write one on a line" in result.stderr
