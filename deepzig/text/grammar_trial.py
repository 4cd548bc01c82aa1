"""Refuses grammars that would take the time, the memory or the stack of the main process when they are compiled.

Called by `constraint`; calls `worker_process`, which runs `grammar_worker`. Knows nothing of what a grammar says.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from deepzig.errors import RequestError, shown
from deepzig.text.grammar_worker import MEMORY_BYTES
from deepzig.text.worker_process import WorkerProcess

CPU_S = 2.0  # real grammars take milliseconds


class GrammarTrial(WorkerProcess):
    """The worker of one model."""

    def __init__(self, n_vocab: int, eos_token_ids: Sequence[int], special_tokens: Mapping[int, str]) -> None:
        """special_tokens: id -> text of those that a grammar can name."""
        setup = {"n_vocab": n_vocab, "eos": list(eos_token_ids), "special": dict(special_tokens), "cpu_s": CPU_S}
        super().__init__("deepzig.text.grammar_worker", "tries grammars", "llguidance", setup)

    def run(self, grammar: Mapping[str, Any]) -> str:
        """`grammar` as llguidance takes it, compiled there; whether it is right is for the main process to find.

        Raises RequestError if a schema cannot be read or a limit ends the worker, ResourceError if the worker cannot be
        started or is killed.
        """
        answer = self.ask(json.dumps(grammar).encode() + b"\n")
        if answer["error"] == "schema":
            raise RequestError(f"the JSON schema cannot be read: {shown(answer['message'], 200)}")
        if answer["error"]:
            raise RequestError(
                f"the schema or grammar nests too deeply, or takes more than {CPU_S:g} s or {MEMORY_BYTES >> 20} MB "
                "to compile; simplify it"
            )
        written: str = answer["grammar"]
        return written
