"""Request: what was asked for. Branch: one sequence that is being continued for it.

A request begins as one branch; once its prompt is prefilled it forks into `n`, which share the prompt's pages. The
branches of a beam search are its beams: new ones at each step, which share the pages of those they continue. Made
and moved along by `engine`, `scheduler` and `step_sampling`, ended by `ledger`; its events are read by `generation`.
Knows token ids, nothing of text.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from deepzig.engine.beam_search import BeamSearch
from deepzig.engine.ngrams import NgramIndex
from deepzig.engine.sampling import Sampler, SamplingParams, TokenLogprob


@dataclass(slots=True)
class TokenEvent:
    """A token that the engine has sampled for a branch."""

    index: int  # of the branch
    token: int
    logprob: TokenLogprob | None
    finish_reason: str | None  # "stop" or "length": this was the branch's last token
    time: float  # time.perf_counter when it was sampled
    score: float | None = None  # of the whole answer, if a beam search found it


@dataclass(eq=False)
class Drafting:
    """How a branch drafts, and how well its drafts did."""

    ngrams: NgramIndex | None  # None: the MTP layer drafts
    n_drafted: list[int]  # by depth: draft tokens whose predecessors were all accepted
    n_accepted: list[int]  # by depth: drafts that the model accepted
    pending: np.ndarray | None = None  # f32 (m, D) of the last m computed positions, which the MTP layer has yet to see

    @property
    def uses_mtp(self) -> bool:
        """Whether the MTP layer drafts."""
        return self.ngrams is None


@dataclass(eq=False)
class Branch:
    """State of one sequence. `tokens` grow; `pages` hold the latents of the first `n_computed` of them."""

    request: "Request"
    index: int  # which of n
    tokens: list[int]  # prompt, then answer
    sampler: Sampler
    pages: list[int] = field(default_factory=list)
    n_computed: int = 0
    form: str = "expanded"  # of attention, in prefill; fixed on admission
    drafting: Drafting | None = None  # None: no speculation
    is_finished: bool = False
    logits: np.ndarray | None = None  # f32 (vocab_size,) of a beam that waits for the others of its request
    n_dropped: int = 0  # tokens that gave way to others when the context was full
    is_shifted: bool = False  # rows of its pages have seen tokens that are dropped

    @property
    def length(self) -> int:
        """Tokens of prompt and answer, including those that were dropped."""
        return len(self.tokens) + self.n_dropped

    @property
    def is_prefilling(self) -> bool:
        """Whether more than its last token waits to be computed: the prompt, or all of it after a preemption."""
        return self.n_computed < len(self.tokens) - 1 or self.length == self.request.n_prompt

    def reset(self) -> None:
        """Forget what was computed; what was learned about its drafts stays."""
        self.pages, self.n_computed, self.is_shifted = [], 0, False
        if self.drafting is not None:
            self.drafting.pending = None


@dataclass(eq=False)
class Request:
    """What was asked for, and what became of it. Times are those of `time.perf_counter`."""

    n_prompt: int
    params: SamplingParams  # resolved: temperature, top_k and top_p are numbers
    max_length: int  # tokens of prompt and answer together
    tenant: str
    priority: int  # higher ones are served first
    on_update: Callable[[], None] | None = None  # called after a step that changed it; neither blocks nor raises
    number: int = 0  # order of arrival
    branches: list[Branch] = field(default_factory=list)
    beam_search: BeamSearch | None = None
    events: deque[TokenEvent] = field(default_factory=deque)
    n_prompt_dropped: int = 0  # tokens of the prompt, not in n_prompt, for which the context had no place
    n_prefilled: int = 0  # tokens of the prompt that are computed
    n_cached: int = 0  # tokens of the prompt that were taken from the prefix tree
    started: float | None = None  # when it left the queue
    first_token: float | None = None
    n_drafted: int = 0  # draft tokens proposed
    n_accepted: int = 0  # draft tokens that the model accepted
    speculation_s: float = 0.0  # in steps with draft tokens
    plain_s: float = 0.0  # that the tokens of those steps would have taken without drafts
    finish_reason: str | None = None  # of the branch that ended last, or "cancelled" or "error"
    error: BaseException | None = None

    @property
    def n_dropped(self) -> int:
        """Tokens of the prompt and of a branch that were dropped because the context was full."""
        return self.n_prompt_dropped + max(branch.n_dropped for branch in self.branches)

    @property
    def max_branches(self) -> int:
        """The most branches that it can have."""
        return self.params.n if self.beam_search is None else self.params.num_beams

    @property
    def is_finished(self) -> bool:
        """Whether nothing more will be computed for it."""
        return self.finish_reason is not None
