"""StepSampler: the next tokens of a step's sequences, sampled from the logits.

Called by `engine`; calls `sampling`, `beams`, `speculation`, `scheduler` and `ledger`. Knows nothing of the model.
"""

import numpy as np

from deepzig.engine.beam_search import BeamSearch
from deepzig.engine.beams import advance_search, search_events
from deepzig.engine.ledger import Ledger
from deepzig.engine.logit_rows import LogitRows
from deepzig.engine.request import Branch, TokenEvent
from deepzig.engine.scheduler import Scheduler
from deepzig.engine.speculation import Speculator


class StepSampler:
    """Appends tokens to sequences, and ends sequences that have their last token."""

    def __init__(self, scheduler: Scheduler, speculator: Speculator, ledger: Ledger) -> None:
        self._scheduler, self._speculator, self._ledger = scheduler, speculator, ledger

    def sample_prefilled(self, branch: Branch, rows: LogitRows, row: int) -> None:
        """Sample the token after a prefilled sequence. Later requests may find the prompt from here on."""
        if branch.request.beam_search is not None:
            self._take_beam(branch, rows.logits[row], branch.request.beam_search, rows.time)
        else:
            self._sample_forked(branch, rows, row)
        first = branch.request.branches[0]
        if not first.is_finished:  # or all that is kept of it is there already: nothing if its logits were NaN
            self._scheduler.cache_prompt(first)

    def _sample_forked(self, branch: Branch, rows: LogitRows, row: int) -> None:
        """Fork a prompt into n, and sample a token for each."""
        branches = [branch]
        if len(branch.request.branches) < branch.request.params.n:
            try:
                branches += self._fork(branch)
            except BaseException as error:  # of a constraint: a panic of its library's Rust is no Exception
                self._ledger.fail(branch.request, error)
                return
        for each in branches:
            self._sample(each, rows, row)

    def sample_decoded(
        self,
        branches: list[Branch],
        drafts: list[list[int]],
        hidden: np.ndarray,
        rows: LogitRows,
        first: int,
        seconds: float,
    ) -> None:
        """Sample the next tokens of each branch, from the rows, `first` and on, of its last token and its draft.
        hidden: f32 (T, D) of all rows; the step has taken `seconds`."""
        for branch, draft in zip(branches, drafts, strict=True):
            if branch.drafting is not None:
                n_sampled = self._verify(branch, draft, rows, first)
                self._speculator.note_branch(branch, len(draft), n_sampled, seconds, len(branches))
                self._speculator.follow(branch, hidden[first : first + n_sampled])
            else:
                branch.n_computed += 1
                if branch.request.beam_search is not None:
                    self._take_beam(branch, rows.logits[first], branch.request.beam_search, rows.time)
                else:
                    self._sample(branch, rows, first)
            first += 1 + len(draft)

    def _verify(self, branch: Branch, draft: list[int], rows: LogitRows, first: int) -> int:
        """Sample tokens until a draft token is rejected; returns their number."""
        n_sampled = 0
        for row in range(first, first + 1 + len(draft)):
            branch.n_computed += 1
            n_sampled += 1
            token = self._sample(branch, rows, row)
            if branch.is_finished or n_sampled > len(draft) or token != draft[n_sampled - 1]:
                break
        self._ledger.note_draft(branch.request, len(draft), n_sampled - 1)
        return n_sampled

    def _sample(self, branch: Branch, rows: LogitRows, row: int) -> int | None:
        """Append the token that follows from a row of logits, and return it. An error ends only the branch's request,
        and gives None."""
        request = branch.request
        if branch.is_finished:
            return None
        try:
            token = rows.argmax(row) if branch.sampler.is_greedy else branch.sampler.sample(rows.logits[row])
            wants_logprob = request.params.logprobs is not None
            logprob = branch.sampler.logprob(rows.logits[row], token) if wants_logprob else None
            is_complete = branch.sampler.is_complete
        except BaseException as error:  # of a constraint, too: a panic of its library's Rust is no Exception
            self._ledger.fail(request, error)
            return None
        branch.tokens.append(token)
        self._ledger.answer_tokens += 1
        if request.first_token is None:
            self._ledger.note_first_token(request, rows.time)
        reason = None
        if token in branch.sampler.end_token_ids or is_complete:
            reason = "stop"
        elif branch.length >= request.max_length:
            reason = "length"
        request.events.append(TokenEvent(branch.index, token, logprob, reason, rows.time))
        self._ledger.updated.add(request)
        if reason is not None:
            self._ledger.finish(branch, reason)
        return token

    def _take_beam(self, branch: Branch, logits: np.ndarray, search: BeamSearch, now: float) -> None:
        """Keep logits f32 (vocab_size,) of a beam until all beams of its request have them; then take the next step."""
        request = branch.request
        branch.logits = logits
        if request.is_finished or any(beam.logits is None for beam in request.branches):
            return
        try:
            old, parents = advance_search(request, search)
        except Exception as error:
            self._ledger.fail(request, error)
            return
        self._ledger.note_first_token(request, now)
        self._ledger.answer_tokens += max(1, len(parents))
        if parents:
            self._scheduler.replace(old, request.branches, parents)
            return
        request.events.extend(search_events(request, search, now))
        for beam in old:
            self._ledger.finish(beam, "stop" if search.finished[0].is_stopped else "length")

    def _fork(self, branch: Branch) -> list[Branch]:
        """Add the other branches of a request whose prompt has just been prefilled."""
        request = branch.request
        copies = [
            Branch(request, index, list(branch.tokens), branch.sampler.fork(index))
            for index in range(1, request.params.n)
        ]
        for copy in copies:
            copy.drafting = self._speculator.fork(branch)
        request.branches += copies
        self._scheduler.fork(branch, copies)
        return copies
