"""Grammars that an answer must fit, as the engine's TokenConstraint, through the llguidance library.

Made by the server; asked by the engine's sampler for every token. Three layers: `Grammars` compiles for one tokenizer,
`GrammarConstraint` follows one answer, `AfterReasoning` lets a model think first. Schemas and grammars come from
strangers: what it costs to read and compile one is tried in another process, what it costs to follow it llguidance
limits.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from enum import Enum, auto
from functools import cached_property
from typing import Any, Self

import numpy as np
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper
from llguidance.gbnf_to_lark import gbnf_to_lark

from deepzig.errors import RequestError
from deepzig.text.answer_format import ThinkIds, ToolFormat
from deepzig.text.grammar_trial import GrammarTrial
from deepzig.text.grammar_worker import parser_limits
from deepzig.text.tokenizer import Tokenizer

ANY_OBJECT: Mapping[str, Any] = {"type": "object"}
Grammar = Mapping[str, Any]  # as `grammar_worker` takes it
Rule = str | Mapping[str, Any]  # a Lark expression, or JSON as `json_rule` has it


class Grammars:
    """Compiles grammars for one model. Safe to use from several threads."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_token_ids: Iterable[int]) -> None:
        """vocab_size: rows of the model's head, more than the tokenizer has tokens."""
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._eos_token_ids = sorted(eos_token_ids)

    def compile(self, grammar: Grammar) -> "GrammarConstraint":
        """A constraint from a grammar as the functions of this module give it.

        Raises RequestError if it is none or too costly, ResourceError if that cannot be found out.
        """
        matcher = LLMatcher(self._engine, self._trial.run(grammar), log_level=0, limits=parser_limits())
        _check(matcher)
        return GrammarConstraint(matcher, self._vocab_size)

    def marks(self, text: str) -> str:
        """A Lark expression for `text` in which the model's control tokens are single tokens."""
        pieces = self._tokenizer.control_tokens.split(text)
        return " ".join(f"<[{token}]>" if token is not None else json.dumps(piece) for piece, token in pieces)

    @cached_property
    def _trial(self) -> GrammarTrial:
        vocabulary = self._vocabulary
        special = {token: vocabulary.tokens[token].decode(errors="replace") for token in vocabulary.special_token_ids}
        return GrammarTrial(self._vocab_size, self._eos_token_ids, special)

    @cached_property
    def _engine(self) -> LLTokenizer:
        return LLTokenizer(
            TokenizerWrapper(self._vocabulary), n_vocab=self._vocab_size, eos_token=self._eos_token_ids
        )

    @cached_property
    def _vocabulary(self) -> "_Vocabulary":
        if not self._eos_token_ids:
            raise RequestError("this model has no end-of-sequence token, so its answers cannot be constrained")
        return _Vocabulary(self._tokenizer, self._eos_token_ids[0])


class GrammarConstraint:
    """Follows one answer through a grammar (`engine.sampling.TokenConstraint`)."""

    def __init__(self, matcher: LLMatcher, vocab_size: int) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size

    @property
    def is_complete(self) -> bool:
        """Nothing may follow."""
        return self._matcher.is_stopped()

    def allowed(self) -> np.ndarray:
        """bool (vocab_size,). Raises RequestError if the grammar has become too complex."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        _check(self._matcher)
        return np.unpackbits(bits, count=self._vocab_size, bitorder="little").view(bool)

    def accept(self, token: int) -> None:
        """Take the chosen token. Raises RequestError as `allowed`."""
        self._matcher.consume_token(token)
        _check(self._matcher)

    def copy(self) -> Self:
        """An independent one in the same state."""
        return type(self)(self._matcher.deep_copy(), self._vocab_size)


class _Phase(Enum):
    BEFORE = auto()  # no token yet: reasoning may begin
    REASONING = auto()
    AFTER = auto()


class AfterReasoning:
    """Free until the reasoning is closed, at the latest after `budget` tokens; then as the inner constraint says.

    A section of tool calls ends reasoning too in some formats, if the inner constraint allows one.
    """

    def __init__(
        self,
        think_ids: ThinkIds,
        eos_token_ids: Iterable[int],
        vocab_size: int,
        inner: GrammarConstraint | None,
        budget: int | None,
        *,
        is_open: bool,
        section_id: int | None,
    ) -> None:
        """inner None: free afterwards too. is_open: in the prompt; if not, the answer may begin with <think>.

        section_id: the token that opens a section of tool calls; None: there are none, or they do not end reasoning.
        """
        self._think_ids, self._eos_token_ids = think_ids, list(eos_token_ids)
        self._vocab_size = vocab_size
        self._inner, self._left = inner, budget
        self._section_id = section_id
        self._phase = _Phase.REASONING if is_open else _Phase.BEFORE

    @property
    def is_complete(self) -> bool:
        """Nothing may follow."""
        return self._phase is not _Phase.REASONING and self._inner is not None and self._inner.is_complete

    def allowed(self) -> np.ndarray:
        """bool (vocab_size,)."""
        if self._phase is _Phase.REASONING:
            return self._allowed_in_reasoning()
        if self._inner is None:
            allowed = np.ones(self._vocab_size, bool)
            allowed[self._think_ids.opened] = False  # behind a blank it would open reasoning that nobody counts
        else:
            allowed = self._inner.allowed()
        if self._phase is _Phase.BEFORE:
            allowed[self._think_ids.opened] = True
        return allowed

    def _allowed_in_reasoning(self) -> np.ndarray:
        if self._left is not None and self._left <= 0:  # the reasoning must end now
            return np.arange(self._vocab_size) == self._think_ids.closed
        allowed = np.ones(self._vocab_size, bool)
        allowed[self._eos_token_ids] = False
        if self._section_id is not None:
            allowed[self._section_id] = self._may_begin_with_calls
        return allowed

    @cached_property
    def _may_begin_with_calls(self) -> bool:
        return self._inner is None or bool(self._inner.allowed()[self._section_id])

    def accept(self, token: int) -> None:
        """Take the chosen token."""
        before = self._phase
        if before is _Phase.REASONING and self._left is not None:
            self._left -= 1
        if before is _Phase.BEFORE and token == self._think_ids.opened:
            self._phase = _Phase.REASONING
        elif before is _Phase.REASONING and token == self._think_ids.closed:
            self._phase = _Phase.AFTER
        elif before is not _Phase.REASONING or token == self._section_id:
            self._phase = _Phase.AFTER
            if self._inner is not None:
                self._inner.accept(token)

    def copy(self) -> Self:
        """An independent one in the same state."""
        other = copy(self)
        other._inner = None if self._inner is None else self._inner.copy()
        return other


def json_rule(schema: Mapping[str, Any], *, strict: bool) -> Rule:
    """A rule for JSON that fits `schema`.

    strict: to the letter, or compiling fails; if not, what llguidance does not support is left out.
    """
    return {"schema": schema, "strict": strict}


def from_rules(start: Rule, rules: Mapping[str, Rule] | None = None) -> Grammar:
    """A grammar of rules."""
    return {"rules": {"start": start, **(rules or {})}}


def from_regex(regex: str) -> Grammar:
    """A grammar of a regular expression (Rust's dialect, without look-around)."""
    return {"grammar": LLMatcher.grammar_from_regex(regex)}


def from_text(grammar: str) -> Grammar:
    """A grammar as users write it: GBNF, which has `::=`, or llguidance's Lark. Raises RequestError."""
    if "::=" in grammar:
        try:
            grammar = gbnf_to_lark(grammar)
        except Exception as error:  # the library raises Exception itself for a rule that is missing or there twice
            raise RequestError(f"the GBNF grammar cannot be read: {_short(str(error))}") from error
    return {"grammar": LLMatcher.grammar_from_lark(grammar)}


def call_rules(
    tools: ToolFormat, functions: Sequence[tuple[str, Rule]], grammars: Grammars, *, several: bool
) -> tuple[str, dict[str, Rule]]:
    """(expression, rules) for a section with calls of `functions`: (name, rule for the arguments)."""
    marks = grammars.marks
    choices = []
    rules: dict[str, Rule] = {}
    for index, (name, arguments) in enumerate(functions):
        rules[f"arguments_{index}"] = arguments
        number = '":" /[0-9]{1,4}/ ' if tools.is_numbered else ""
        choices.append(f"{json.dumps(name)} {number}{marks(tools.name_close)} arguments_{index}")
    head = marks(tools.call_open + tools.head)
    rules["call"] = f"{head} ({' | '.join(choices)}) {marks(tools.arguments_close + tools.call_close)}"
    more = f" ({marks(tools.between_calls)} call)*" if several and tools.between_calls else " call*" if several else ""
    return f"{marks(tools.section_open)} call{more} {marks(tools.section_close)}", rules


def _check(matcher: LLMatcher) -> None:
    if matcher.is_error():
        raise RequestError(f"the schema or grammar cannot be used: {_short(matcher.get_error())}")


def _short(message: str) -> str:
    """llguidance's message as one line, without the excerpt of the grammar or its own state that follow."""
    reason = " ".join(re.split(r"\n\s*1 \| |\n<state>\n", message)[0].split())[:300]
    return "no text fits it" if reason == "NoExtensionBias" else reason


class _Vocabulary:
    """What llguidance asks of a tokenizer."""

    def __init__(self, tokenizer: Tokenizer, eos_token_id: int) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id = eos_token_id
        self.bos_token_id = tokenizer.bos_token_id
        self.special_token_ids = sorted(tokenizer.control_tokens.id_set | set(tokenizer.special_tokens.values()))
        self.tokens = [tokenizer.bytes_or_none(token) or b"" for token in range(tokenizer.vocab_size)]

    def __call__(self, text: bytes) -> list[int]:
        return self._tokenizer.encode(text.decode(errors="replace"), add_bos=False, allow_special=False)
