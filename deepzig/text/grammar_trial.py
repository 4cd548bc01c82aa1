"""Refuses grammars that would take the time, the memory or the stack of the main process when they are compiled.

Called by `constraint`; calls `worker_process`, which runs `grammar_worker`. Knows nothing of what a grammar says.
"""

import json
from collections.abc import Mapping, Sequence

from deepzig.errors import RequestError
from deepzig.text.grammar_worker import MEMORY_BYTES
from deepzig.text.worker_process import WorkerProcess

CPU_S = 2.0  # real grammars take milliseconds


class GrammarTrial(WorkerProcess):
    """The worker of one model."""

    def __init__(self, n_vocab: int, eos_token_ids: Sequence[int], special_tokens: Mapping[int, str]) -> None:
        """special_tokens: id -> text of those that a grammar can name."""
        setup = {"n_vocab": n_vocab, "eos": list(eos_token_ids), "special": dict(special_tokens), "cpu_s": CPU_S}
        super().__init__("deepzig.text.grammar_worker", "tries grammars", "llguidance", setup)

    def run(self, grammar: str) -> None:
        """Compile `grammar` there; whether it is right is for the main process to find.

        Raises RequestError if a limit ends the worker, ResourceError if it cannot be started or is killed.
        """
        if self.ask(json.dumps({"grammar": grammar}).encode() + b"\n")["error"]:
            raise RequestError(
                f"the schema or grammar nests too deeply, or takes more than {CPU_S:g} s or {MEMORY_BYTES >> 20} MB "
                "to compile; simplify it"
            )
