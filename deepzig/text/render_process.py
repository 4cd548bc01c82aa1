"""Starts, asks and ends the process that renders a chat template.

Called by `chat`; runs `render_worker`. Knows nothing of tokens.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import weakref
from typing import Any

from deepzig.errors import RequestError, ResourceError, TokenizerError, shown

MAX_REQUEST_BYTES = 8 << 20  # over a million tokens
MAX_WALL_S = 20.0  # the worker's CPU limit comes long before, unless the machine is busy
# The worker finds what this process finds, but no file beside a user's script hides the standard library.
_START = "import sys; sys.path += sys.argv[1:]; from deepzig.text.render_worker import main; main()"

# The limits of `render_worker` end it by other signals: these come from elsewhere, or after MAX_WALL_S from here.
_FROM_OUTSIDE = (-signal.SIGKILL, -signal.SIGTERM)


class RenderProcess:
    """One worker process, started at the first render and kept: a render then takes about a millisecond.

    Safe to call from several threads, one render at a time. The worker ends with this object or with the main process.
    """

    def __init__(self, template: str) -> None:
        self._template = template
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner_pid = 0

    def render(self, constants: dict[str, Any], variables: dict[str, Any], chars: str = "", stand_ins: str = "") -> str:
        """The rendered text; `chars` in strings of `variables` come back as `stand_ins` (see `guarded_text`).

        Raises TokenizerError if the template fails or exceeds its time, memory or output; RequestError if it refuses
        the messages or they are too long; ResourceError if the worker cannot be started or is killed.
        """
        request = {"constants": constants, "variables": variables, "chars": chars, "stand_ins": stand_ins}
        line = json.dumps(request, ensure_ascii=False).encode() + b"\n"
        if len(line) > MAX_REQUEST_BYTES:
            raise RequestError(f"the messages are larger than {MAX_REQUEST_BYTES >> 20} MiB; shorten them")
        with self._lock:
            answer = self._ask(line)
        if answer["error"] is not None:
            raise _error(answer)
        text: str = answer["text"]
        return text

    def _ask(self, line: bytes) -> dict[str, Any]:
        process = self._started()
        try:
            answer = _exchange(process, line)
        except BaseException:  # Ctrl-C while waiting: the answer still to come must not meet the next question
            self.close()
            raise
        if answer["error"] in ("ended", "memory"):  # out of memory, it may be too full for the next render
            self.close()
        if answer["error"] == "ended" and process.returncode in _FROM_OUTSIDE:
            raise ResourceError(
                f"the process that renders chat templates was killed, for want of memory or after {MAX_WALL_S:.0f} s; "
                "try again, or free memory"
            )
        return answer

    def _started(self) -> subprocess.Popen[bytes]:
        # A fork of the main process shares the pipes; its answers must not mix with ours.
        if self._process is not None and self._owner_pid == os.getpid() and self._process.poll() is None:
            return self._process
        if self._process is not None and self._owner_pid == os.getpid():
            self.close()
        try:
            process = subprocess.Popen(
                [sys.executable, "-P", "-c", _START, *_search_path()],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C in a terminal is for the main process
            )
        except OSError as error:
            raise ResourceError(
                f"the process that renders chat templates cannot be started ({error.strerror}); check the process limit"
            ) from error
        self._process, self._owner_pid = process, os.getpid()
        self._end = weakref.finalize(self, _end_process, process, os.getpid())
        if _exchange(process, json.dumps({"template": self._template}).encode() + b"\n")["error"]:
            self.close()
            raise ResourceError(
                f"the process that renders chat templates ended at its start (exit code {process.returncode}); "
                "check that jinja2 is installed and that memory is free"
            )
        return process

    def close(self) -> None:
        """Ends the worker; the next render starts another."""
        if self._process is not None:
            self._end()
            self._process = None


def _search_path() -> list[str]:
    """sys.path for a process that may start elsewhere; without what is relative to a folder that is gone."""
    try:
        here = os.getcwd()
    except OSError:
        return [entry for entry in sys.path if os.path.isabs(entry)]
    return [os.path.join(here, entry) for entry in sys.path]


def _exchange(process: subprocess.Popen[bytes], line: bytes) -> dict[str, Any]:
    """The worker's answer to `line`: "error" is None if all went well, "ended" if there is no whole answer."""
    assert process.stdin is not None and process.stdout is not None
    timer = threading.Timer(MAX_WALL_S, process.kill)
    timer.daemon = True
    timer.start()
    try:
        process.stdin.write(line)
        process.stdin.flush()
        reply = process.stdout.readline()
    except OSError:
        reply = b""
    finally:
        timer.cancel()
    if not reply.endswith(b"\n"):
        return {"error": "ended", "message": ""}
    answer: dict[str, Any] = {"error": None} | json.loads(reply)
    return answer


def _end_process(process: subprocess.Popen[bytes], owner_pid: int) -> None:
    if owner_pid != os.getpid():
        return
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            try:
                pipe.close()
            except BrokenPipeError:  # what was not written to a dead worker no longer matters
                continue


def _error(answer: dict[str, Any]) -> TokenizerError | RequestError:
    message = shown(answer["message"], 200)
    if answer["error"] == "refused":
        return RequestError(f"the chat template refuses the messages: {message}")
    reason = {
        "ended": "takes too much time or memory",
        "memory": "takes too much memory",
        "output": "writes too much text",
    }.get(answer["error"], f"fails: {message}")
    return TokenizerError(f"the chat template {reason}; use another template, or a prompt without one")
