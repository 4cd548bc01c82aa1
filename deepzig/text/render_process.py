"""Asks the process that renders a chat template.

Called by `chat`; calls `worker_process`, which runs `render_worker`. Knows nothing of tokens.
"""

import json
from typing import Any

from deepzig.errors import RequestError, TokenizerError, shown
from deepzig.text.worker_process import WorkerProcess

MAX_REQUEST_BYTES = 8 << 20  # over a million tokens


class RenderProcess(WorkerProcess):
    """The worker of one template."""

    def __init__(self, template: str) -> None:
        super().__init__("deepzig.text.render_worker", "renders chat templates", "jinja2", {"template": template})

    def render(self, constants: dict[str, Any], variables: dict[str, Any], chars: str = "", stand_ins: str = "") -> str:
        """The rendered text; `chars` in strings of `variables` come back as `stand_ins` (see `guarded_text`).

        Raises TokenizerError if the template fails or exceeds its time, memory or output; RequestError if it refuses
        the messages or they are too long; ResourceError if the worker cannot be started or is killed.
        """
        request = {"constants": constants, "variables": variables, "chars": chars, "stand_ins": stand_ins}
        line = json.dumps(request, ensure_ascii=False).encode() + b"\n"
        if len(line) > MAX_REQUEST_BYTES:
            raise RequestError(f"the messages are larger than {MAX_REQUEST_BYTES >> 20} MiB; shorten them")
        answer = self.ask(line)
        if answer["error"] is not None:
            raise _error(answer)
        text: str = answer["text"]
        return text


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
