"""Starts, asks and ends a process that does dangerous work for the main process, under limits of its own.

Called by `render_process` and `grammar_trial`. Knows the protocol only, one JSON object a line each way: the worker
says that it is ready, takes a line of setup, and answers each further line with one.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping
from typing import Any

from deepzig.errors import ResourceError

MAX_WALL_S = 20.0  # a worker's CPU limit comes long before, unless the machine is busy
# The worker finds what this process finds, but no file beside a user's script hides the standard library.
_START = "import sys; sys.path += sys.argv[1:]; from {module} import main; main()"

# The limits of the workers end them by other signals: these come from elsewhere, or after MAX_WALL_S from here.
_FROM_OUTSIDE = (-signal.SIGKILL, -signal.SIGTERM)


class WorkerProcess:
    """One worker process, started at the first question and kept: a question then takes about a millisecond.

    Safe to call from several threads, one question at a time. The worker ends with this object or the main process.
    """

    def __init__(self, module: str, task: str, library: str, setup: Mapping[str, Any]) -> None:
        """module: its `main` is the worker. task, library: for messages, "renders chat templates", "jinja2"."""
        self._module, self._task, self._library = module, task, library
        self._setup = json.dumps(setup).encode() + b"\n"
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner_pid = 0

    def ask(self, line: bytes) -> dict[str, Any]:
        """The worker's answer to a line; "error" is None if all went well, "ended" if a limit ended the worker.

        Raises ResourceError if the worker cannot be started or is killed.
        """
        with self._lock:
            return self._ask(line)

    def _ask(self, line: bytes) -> dict[str, Any]:
        try:
            process = self._started()
            answer = _exchange(process, line)
        except BaseException:  # Ctrl-C meanwhile: the answer still to come must not meet the next question
            self.close()
            raise
        if answer["error"] in ("ended", "memory"):  # out of memory, it may be too full for the next question
            self.close()
        if answer["error"] == "ended" and process.returncode in _FROM_OUTSIDE:
            raise ResourceError(
                f"the process that {self._task} was killed, for want of memory or after {MAX_WALL_S:.0f} s; "
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
                [sys.executable, "-P", "-c", _START.format(module=self._module), *_search_path()],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C in a terminal is for the main process
            )
        except OSError as error:
            raise ResourceError(
                f"the process that {self._task} cannot be started ({error.strerror}); check the process limit"
            ) from error
        self._end = weakref.finalize(self, _end_process, process, os.getpid())
        self._process, self._owner_pid = process, os.getpid()
        if _exchange(process, self._setup)["error"]:
            self.close()
            raise ResourceError(
                f"the process that {self._task} ended at its start (exit code {process.returncode}); "
                f"check that {self._library} is installed and that memory is free"
            )
        return process

    def close(self) -> None:
        """Ends the worker; the next question starts another."""
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
