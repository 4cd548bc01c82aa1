"""The process that compiles a grammar for trial, so that a hostile one cannot stop the main process.

Started for `grammar_trial` by `worker_process`, which has Python call `main`. Reads one JSON object a line from stdin,
writes one a line to stdout: first {"n_vocab", "eos", "special", "cpu_s"}, then per grammar {"grammar"}, which is
llguidance's, or {"rules"}: name -> a Lark expression or {"schema", "strict"}. The answer is the {"grammar"} to compile,
or {"error", "message"}. Says {"ready"} before the first. Ends when stdin does.

llguidance calls itself once for each rule within a rule, and for each schema within a schema, references followed; and
some keywords make automata as large as their numbers. Its own limits see neither, those of `worker_limits` do.
"""

import json
import sys
import threading
from collections.abc import Mapping
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

from deepzig.text.json_schema import json_expression
from deepzig.text.worker_limits import forbid_core_dumps, limit_cpu, limit_memory

MEMORY_BYTES = 256 << 20
STACK_BYTES = 1 << 20  # less than any thread of the main process has: what passes here passes there


def main() -> None:
    """Answers requests until stdin ends."""
    forbid_core_dumps()
    limit_memory(MEMORY_BYTES)
    threading.stack_size(STACK_BYTES)
    thread = threading.Thread(target=_answer_all)
    thread.start()
    thread.join()


def parser_limits() -> LLParserLimits:
    """What llguidance itself is to bound, here and in the main process."""
    return LLParserLimits(
        max_grammar_size=100_000,
        initial_lexer_fuel=1_000_000,
        step_max_items=200_000,  # 0.15 s
        max_items_in_row=10_000,  # four for each property that an object may have
    )


def _answer_all() -> None:
    _say({"ready": ""})
    setup = json.loads(sys.stdin.buffer.readline())
    tokenizer = _tokenizer(setup)
    for line in sys.stdin.buffer:
        limit_cpu(setup["cpu_s"])
        answer = _tried(json.loads(line), tokenizer)
        limit_cpu(0)
        _say(answer)


def _tried(request: Mapping[str, Any], tokenizer: LLTokenizer) -> dict[str, str]:
    try:
        grammar = request["grammar"] if "grammar" in request else _written(request["rules"])
    except (TypeError, ValueError, ArithmeticError, RecursionError) as error:
        return {"error": "schema", "message": str(error)}
    LLMatcher(tokenizer, grammar, log_level=0, limits=parser_limits())
    return {"grammar": grammar}


def _written(rules: Mapping[str, Any]) -> str:
    lines = [f"{name}: {rule if isinstance(rule, str) else json_expression(**rule)}" for name, rule in rules.items()]
    return LLMatcher.grammar_from_lark("\n".join(lines))


def _say(answer: Mapping[str, str]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def _tokenizer(setup: Mapping[str, Any]) -> LLTokenizer:
    return LLTokenizer(TokenizerWrapper(_SpecialTokens(setup)), n_vocab=setup["n_vocab"], eos_token=setup["eos"])


class _SpecialTokens:
    """The tokens that a grammar can name. Compiling does not depend on the others, which would take long to read."""

    def __init__(self, setup: Mapping[str, Any]) -> None:
        self.eos_token_id = setup["eos"][0]
        self.bos_token_id = None
        special = {int(token): text.encode() for token, text in setup["special"].items()}
        self.special_token_ids = sorted(special)
        self.tokens = [special.get(token, b"") for token in range(setup["n_vocab"])]

    def __call__(self, text: bytes) -> list[int]:
        return []
