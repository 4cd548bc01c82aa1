"""The branches of a beam search: all work on them except the search itself.

Called by `engine` and `step_sampling`; calls `beam_search`, which decides. Knows branches and their samplers, nothing
of pages or of the model.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from deepzig.engine.beam_search import BeamSearch
from deepzig.engine.request import Branch, Request, TokenEvent
from deepzig.engine.sampling import TokenConstraint, TokenLogprob, token_logprobs
from deepzig.errors import ContextLengthError, RequestError
from deepzig.model.cache import PAGE_SIZE


def new_search(branch: Branch, constraint: TokenConstraint | None, n_pages: int, vocab_size: int) -> BeamSearch:
    """The search of a new request, which begins with this branch, in a cache of n_pages.

    Raises:
        RequestError: it has a constraint, or more beams than the vocabulary can feed.
        ContextLengthError: the cache could not hold its beams.
    """
    request, params, end_token_ids = branch.request, branch.request.params, branch.sampler.end_token_ids
    if constraint is not None:
        raise RequestError("a beam search cannot be held to a schema or grammar; set num_beams to 1")
    if (1 + len(end_token_ids)) * params.num_beams > vocab_size:
        raise RequestError(f"num_beams {params.num_beams} is too large for a vocabulary of {vocab_size}")
    n_needed = params.num_beams * -(-request.max_length // PAGE_SIZE)
    if n_needed > n_pages:  # the most, if a preempted search is prefilled again and finds no prefix
        raise ContextLengthError(
            f"{params.num_beams} beams of {request.max_length} tokens may need {n_needed * PAGE_SIZE} tokens of cache, "
            f"which has {n_pages * PAGE_SIZE}; take fewer beams or max_tokens"
        )
    return BeamSearch(params, end_token_ids, request.max_length - request.n_prompt)


def advance_search(request: Request, search: BeamSearch) -> tuple[list[Branch], list[int]]:
    """Take a step with the logits of all beams. Puts those that go on into request.branches, still without pages.

    Returns the beams before the step and, for each new one, the place of its parent among them; no parents when the
    search is over, and request.branches as it was.

    Raises:
        NonFiniteLogitsError: the model gave NaN.
    """
    old = request.branches
    rows = [beam.logits for beam in old if beam.logits is not None]  # f32 (vocab_size,), all are there
    scores = [beam.sampler.scores(row) for beam, row in zip(old, rows, strict=True)]
    logprobs = None if request.params.logprobs is None else _logprobs(old, rows, search.candidates(scores))
    continuations = search.advance(scores, logprobs)
    if continuations:
        request.branches = [_child(old[parent], index, token) for index, (parent, token) in enumerate(continuations)]
    return old, [continuation.parent for continuation in continuations]


def search_events(request: Request, search: BeamSearch, now: float) -> Iterator[TokenEvent]:
    """The best n answers of a search that is over, all at once: nothing was certain before."""
    for index, found in enumerate(search.finished[: request.params.n]):
        logprobs: Sequence[TokenLogprob | None] = found.logprobs or [None] * len(found.tokens)
        for place, (token, logprob) in enumerate(zip(found.tokens, logprobs, strict=True), 1):
            reason = "stop" if found.is_stopped else "length"
            last = reason if place == len(found.tokens) else None
            yield TokenEvent(index, token, logprob, last, now, found.score)


def _logprobs(beams: list[Branch], rows: list[np.ndarray], tokens: list[list[int]]) -> list[dict[int, TokenLogprob]]:
    """Log-probabilities of each beam's candidates."""
    n_top = beams[0].request.params.logprobs or 0
    return [token_logprobs(row, candidates, n_top) for row, candidates in zip(rows, tokens, strict=True)]


def _child(parent: Branch, index: int, token: int) -> Branch:
    sampler = parent.sampler.copy()
    sampler.accept(token)
    return Branch(parent.request, index, [*parent.tokens, token], sampler, form=parent.form)
