"""BeamSearch: which beams go on with which tokens, and which answers are the best so far (HF `_beam_search`).

Each step looks at all continuations of all beams and keeps those with the greatest sum of log-probabilities. Made and
advanced by `beams`. Knows scores and token ids; nothing of pages or of the model.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from deepzig.engine.sampling import SamplingParams, TokenLogprob


class Continuation(NamedTuple):
    """A beam that goes on: an earlier beam and one more token."""

    parent: int  # its place among the beams of the last step
    token: int


@dataclass(frozen=True)
class Hypothesis:
    """An answer: a beam that has come to an end."""

    score: float  # sum of its log-probabilities / length ** length_penalty
    tokens: list[int]  # without the prompt
    logprobs: list[TokenLogprob]  # of the tokens, if they were asked for
    is_stopped: bool  # by an end-of-sequence token, not by length


@dataclass(frozen=True)
class _Beam:
    """A beam that goes on."""

    total: np.float32  # sum of log-probabilities
    tokens: list[int]
    logprobs: list[TokenLogprob]


class BeamSearch:
    """The search of one request. `finished` holds its answers, best first, at most num_beams."""

    def __init__(self, params: SamplingParams, end_token_ids: frozenset[int], max_new_tokens: int) -> None:
        self.finished: list[Hypothesis] = []
        self._num_beams = params.num_beams
        self._length_penalty = params.length_penalty
        self._early_stopping = params.early_stopping
        self._end_token_ids = end_token_ids
        self._max_new_tokens = max_new_tokens
        self._beams = [_Beam(np.float32(0), [], [])]  # best first; after the prompt there is one

    def advance(
        self, scores: Sequence[np.ndarray], logprobs: Sequence[dict[int, TokenLogprob]] | None = None
    ) -> list[Continuation]:
        """Take a step; returns the beams that go on, best first, or none when the search is over.

        Args:
            scores: f32 (vocab_size,) for each beam of the last step, in their order: log-probabilities of what follows.
            logprobs: what to report of the tokens that `candidates` names, for each beam.
        """
        length = len(self._beams[0].tokens) + 1
        is_last = length == self._max_new_tokens
        going: list[_Beam] = []
        continuations: list[Continuation] = []
        for rank, (total, (parent, token)) in enumerate(self._best(scores)):
            beam = self._beams[parent]
            reported = [] if logprobs is None else [*beam.logprobs, logprobs[parent][token]]
            tokens = [*beam.tokens, token]
            is_stopped = token in self._end_token_ids
            if is_stopped or is_last:
                if rank < self._num_beams:
                    self._finish(Hypothesis(self._score(total, length), tokens, reported, is_stopped))
            elif len(going) < self._num_beams:
                going.append(_Beam(total, tokens, reported))
                continuations.append(Continuation(parent, token))
        self._beams = going
        return continuations if self._may_improve(length) else []

    def candidates(self, scores: Sequence[np.ndarray]) -> list[list[int]]:
        """The tokens that `advance` will look at, for each beam."""
        tokens: list[list[int]] = [[] for _ in scores]
        for _, (parent, token) in self._best(scores):
            tokens[parent].append(token)
        return tokens

    def _best(self, scores: Sequence[np.ndarray]) -> list[tuple[np.float32, Continuation]]:
        """The best continuations, best first, then by place: enough that num_beams go on even if all others end."""
        vocab_size = len(scores[0])
        totals = np.concatenate([beam.total + row for beam, row in zip(self._beams, scores, strict=True)])
        n_best = min(max(2, 1 + len(self._end_token_ids)) * self._num_beams, len(totals))
        best = np.argpartition(totals, len(totals) - n_best)[len(totals) - n_best :]
        best = best[np.lexsort((best, -totals[best]))]
        return [(totals[i], Continuation(int(i) // vocab_size, int(i) % vocab_size)) for i in best]

    def _finish(self, hypothesis: Hypothesis) -> None:
        self.finished.append(hypothesis)
        self.finished.sort(key=lambda each: -each.score)  # stable: of equal ones the earlier is better
        del self.finished[self._num_beams :]

    def _may_improve(self, length: int) -> bool:
        """Whether a beam that goes on could still become one of the answers."""
        if not self._beams:
            return False
        if len(self.finished) < self._num_beams:
            return True
        if self._early_stopping is True:
            return False
        longest = self._early_stopping == "never" and self._length_penalty > 0
        best_length = self._max_new_tokens if longest else length
        return self._score(self._beams[0].total, best_length) > self.finished[-1].score

    def _score(self, total: np.float32, length: int) -> float:
        """The score of an answer, in float64: powers of lengths exceed float32."""
        return float(total) / length**self._length_penalty
