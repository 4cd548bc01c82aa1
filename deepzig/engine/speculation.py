"""Speculator: who drafts tokens, how many, and whether it pays.

`auto` weighs, before each step, the tokens that k drafts are expected to bring against the time that the step takes
with them. It measures both as it goes: acceptance for each branch, starting from that of all; times for each number of
rows. Called by `engine` and `step_sampling`; calls `drafting` and `ngrams`.
"""

import time
from collections import deque
from collections.abc import Sequence

import numpy as np

from deepzig.engine.drafting import MtpDrafter
from deepzig.engine.ngrams import NgramIndex
from deepzig.engine.request import Branch, Drafting, Request
from deepzig.engine.sampling import MAX_DRAFT_TOKENS
from deepzig.errors import RequestError
from deepzig.model.cache import LatentCache
from deepzig.model.deepseek import DeepseekModel, HiddenStates

PRIOR_ACCEPTANCE = 0.75  # of a draft token, before anything is known
PRIOR_WEIGHT = 8  # the prior counts as this many draft tokens
TRUSTED = 3  # measurements of a time before it is believed
MAX_PENDING = 32  # positions that the MTP layer may fall behind while drafting does not pay
MAX_SEQUENCES = 8  # decoded together, beyond which auto does not draft: their rows leave no arithmetic idle
RETRIED = 32  # where the MTP layer has lost time, one request in this many tries it again

_Chunk = tuple[Branch, list[int], range]  # the pages that the branch had, which tell a preemption, and the positions


class Speculator:
    """Drafts for all branches of an engine."""

    def __init__(self, model: DeepseekModel, cache: LatentCache, n_context: int) -> None:
        self._n_context = n_context
        self._mtp = MtpDrafter(model, cache) if model.mtp_layers else None
        self._unread: deque[tuple[list[_Chunk], HiddenStates]] = deque()  # in the order of their calls
        self._steps = _Times()  # time of a step by the rows that it decodes
        self._drafts = _Times()  # time by the number of calls of the MTP layer, for one branch or several
        # by whether it was the MTP layer, and depth
        self._drafted = {uses_mtp: [0] * MAX_DRAFT_TOKENS for uses_mtp in (True, False)}
        self._accepted = {uses_mtp: [0] * MAX_DRAFT_TOKENS for uses_mtp in (True, False)}

    def check(self, speculation: str) -> None:
        """Raise RequestError if the checkpoint cannot draft in the way that is asked for."""
        if speculation == "mtp" and self._mtp is None:
            raise RequestError("speculation 'mtp' needs an MTP layer, which this checkpoint lacks; use ngram or auto")

    def begin(self, request: Request) -> Drafting | None:
        """How the request's branches will draft; those of a beam search do not."""
        kind = request.params.speculation
        if kind == "off" or request.beam_search is not None:
            return None
        uses_mtp = self._mtp is not None and kind != "ngram"
        if kind == "auto" and uses_mtp and request.number % RETRIED and self._loses(request):
            return None
        n = request.params.draft_tokens
        return Drafting(None if uses_mtp else NgramIndex(), [0] * n, [0] * n)

    def fork(self, branch: Branch) -> Drafting | None:
        """How a copy of a branch will draft: as the branch does, from the same positions on, with nothing learned."""
        if (old := branch.drafting) is None:
            return None
        n = branch.request.params.draft_tokens
        return Drafting(None if old.uses_mtp else NgramIndex(), [0] * n, [0] * n, old.pending)

    def reads_prompt(self, branch: Branch) -> bool:
        """Whether `follow_prompts` has a use for the hidden states of the branch."""
        return self._mtp is not None and branch.drafting is not None and branch.drafting.uses_mtp

    def follow_prompts(self, chunks: Sequence[tuple[Branch, range]], hidden: HiddenStates, n_ahead: int) -> None:
        """Note that positions of prompts have been prefilled in one call, with these hidden states.

        n_ahead: this many calls may be left for later, since to ask for their hidden states is to wait for them.
        """
        if not any(self.reads_prompt(branch) for branch, _ in chunks):
            return
        self._unread.append(([(branch, branch.pages, span) for branch, span in chunks], hidden))
        while len(self._unread) > n_ahead:
            self._read(*self._unread.popleft())

    def follow(self, branch: Branch, hidden: np.ndarray) -> None:
        """Note that a branch has gone on by the positions of hidden f32 (m, D), and knows the token after each."""
        drafting = branch.drafting
        if drafting is not None and drafting.uses_mtp and not branch.is_finished:
            seen = drafting.pending
            drafting.pending = hidden.copy() if seen is None else np.concatenate([seen, hidden])

    def length(self, branch: Branch, n_decoding: int) -> int:
        """Draft tokens for a branch in a step that decodes n_decoding branches. A branch whose MTP rows lag MAX_PENDING
        positions stops drafting for good. None past the context: there the oldest tokens must go first."""
        drafting, params = branch.drafting, branch.request.params
        if drafting is None or (drafting.uses_mtp and drafting.pending is None):
            return 0
        n_tokens = len(branch.tokens)
        most = min(params.draft_tokens, branch.request.max_length - n_tokens - 1, self._n_context - n_tokens)
        if params.speculation != "auto" or most <= 0:
            return max(0, most)
        best = self._best_length(drafting, most, n_decoding) if n_decoding <= MAX_SEQUENCES else 0
        if best == 0 and drafting.pending is not None and len(drafting.pending) >= MAX_PENDING:
            branch.drafting = None
        return best

    def draft(self, branches: Sequence[Branch], counts: Sequence[int]) -> list[list[int]]:
        """At most counts[i] draft tokens for branches[i]."""
        drafts: list[list[int]] = [[] for _ in branches]
        by_mtp = []
        for i, branch in enumerate(branches):
            if counts[i] and branch.drafting is not None:
                if branch.drafting.ngrams is None:
                    by_mtp.append(i)
                else:
                    drafts[i] = branch.drafting.ngrams.draft(branch.tokens, counts[i])
        if by_mtp and self._mtp is not None:
            started = time.perf_counter()
            drafted = self._mtp.draft([branches[i] for i in by_mtp], [counts[i] for i in by_mtp])
            self._drafts.add(max(counts[i] for i in by_mtp), time.perf_counter() - started)
            for i, draft in zip(by_mtp, drafted, strict=True):
                drafts[i] = draft
        return drafts

    def note_step(self, n_rows: int, seconds: float) -> None:
        """Note that a step without prefill has decoded n_rows, in `seconds` without drafting."""
        self._steps.add(n_rows, seconds)

    def note_branch(self, branch: Branch, n_drafted: int, n_sampled: int, seconds: float, n_decoding: int) -> None:
        """Note that in a step of `seconds` a branch has drafted n_drafted tokens and sampled n_sampled."""
        drafting, request = branch.drafting, branch.request
        if drafting is None or not n_drafted:
            return
        uses_mtp = drafting.uses_mtp
        for depth in range(min(n_drafted, n_sampled)):
            for drafted, accepted in (
                (drafting.n_drafted, drafting.n_accepted),
                (self._drafted[uses_mtp], self._accepted[uses_mtp]),
            ):
                drafted[depth] += 1
                accepted[depth] += n_sampled > depth + 1
        if plain := self._steps.mean(n_decoding):
            request.speculation_s += seconds
            request.plain_s += n_sampled * plain

    def _read(self, chunks: list[_Chunk], hidden: HiddenStates) -> None:
        """Have the MTP layer follow those branches that still have their pages."""
        ends = np.cumsum([len(span) for _, _, span in chunks])
        for (branch, pages, span), end in zip(chunks, ends, strict=True):
            if self._mtp is not None and self.reads_prompt(branch) and branch.pages is pages:
                self._mtp.follow_prompt(branch, span.start, hidden()[end - len(span) : end])

    def _best_length(self, drafting: Drafting, most: int, n_decoding: int) -> int:
        """The number of draft tokens that brings most tokens a second; 0 until the time without drafts is known."""
        plain = self._steps.least(n_decoding)
        if plain is None:
            return 0
        best, best_speed = 0, 1 / plain
        expected, chance = 1.0, 1.0
        for length in range(1, most + 1):
            chance *= self._acceptance(drafting, length - 1)
            expected += chance
            seconds = self._steps.least(n_decoding * (1 + length))
            if seconds is None:  # not tried: many rows leave no idle arithmetic, few may
                seconds = plain * (1 + length) ** (0.5 if n_decoding <= 4 else 1.0)
            if drafting.uses_mtp:
                seconds += self._drafts.least(length) or 0.0
            if expected / seconds > best_speed:
                best, best_speed = length, expected / seconds
        return best

    def _acceptance(self, drafting: Drafting, depth: int) -> float:
        """Chance that a draft token at `depth` is accepted once those before it are."""
        uses_mtp = drafting.uses_mtp
        of_all = (self._accepted[uses_mtp][depth] + PRIOR_WEIGHT * PRIOR_ACCEPTANCE) / (
            self._drafted[uses_mtp][depth] + PRIOR_WEIGHT
        )
        return (drafting.n_accepted[depth] + PRIOR_WEIGHT * of_all) / (drafting.n_drafted[depth] + PRIOR_WEIGHT)

    def _loses(self, request: Request) -> bool:
        """Whether the MTP layer is known to lose time even for one sequence alone."""
        n = request.params.draft_tokens
        nothing = Drafting(None, [0] * n, [0] * n)
        return self._steps.least(1) is not None and self._best_length(nothing, n, 1) == 0


class _Times:
    """How long something took lately, by its size."""

    def __init__(self) -> None:
        self._least: dict[int, float] = {}
        self._mean: dict[int, float] = {}
        self._count: dict[int, int] = {}

    def add(self, size: int, seconds: float) -> None:
        """One measurement."""
        self._least[size] = min(seconds, 1.02 * self._least.get(size, seconds))
        mean = self._mean.get(size, seconds)
        self._mean[size] = mean + 0.1 * (seconds - mean)
        self._count[size] = self._count.get(size, 0) + 1

    def least(self, size: int) -> float | None:
        """The least, forgotten slowly, since others use the machine too. None before TRUSTED measurements."""
        return self._least[size] if self._count.get(size, 0) >= TRUSTED else None

    def mean(self, size: int) -> float | None:
        """The mean, to be compared with times as they were. None before TRUSTED measurements."""
        return self._mean[size] if self._count.get(size, 0) >= TRUSTED else None
