"""MtpDrafter: draft tokens for speculative decoding by the checkpoint's first MTP layer, fed with its own output from
the second draft token on (DeepSeek-V3 report, section 2.2).

The model then verifies a draft in one pass, so a draft decides how soon tokens come, not which. The other drafter,
prompt lookup, is in `ngrams`. Called by `speculation`; calls `rows` and `model`.
"""

from collections.abc import Sequence

import numpy as np

from deepzig.engine.request import Branch
from deepzig.engine.rows import branch_rows
from deepzig.model.cache import LatentCache, Rows
from deepzig.model.deepseek import DeepseekModel


class MtpDrafter:
    """Drafts with MTP layer 0, whose latents lie in the same pages as those of the other layers.

    Row p of the layer takes the hidden state of position p and the token at p + 1. So the last row of a full page
    depends on the token after the page: where sequences share the page, the row is from the last one to draft. That may
    cost an accepted draft, never more.
    """

    def __init__(self, model: DeepseekModel, cache: LatentCache) -> None:
        self._model, self._cache = model, cache

    def follow_prompt(self, branch: Branch, first: int, hidden: np.ndarray) -> None:
        """Run the layer over a chunk of a prompt: hidden f32 (T, D) of positions from `first` on."""
        assert branch.drafting is not None
        if (pending := branch.drafting.pending) is not None:
            first, hidden = first - len(pending), np.concatenate([pending, hidden])
        n_rows = len(hidden) - 1  # the token after the last is not known yet, or is decoded
        if n_rows:
            rows = branch_rows([branch], [range(first, first + n_rows)], is_prompt=True)
            tokens = np.array(branch.tokens[first + 1 : first + 1 + n_rows], np.int32)
            self._model.mtp_forward(0, tokens, hidden[:-1], rows, self._cache)
        branch.drafting.pending = hidden[-1:].copy()

    def draft(self, branches: Sequence[Branch], counts: Sequence[int]) -> list[list[int]]:
        """counts[i] >= 1 draft tokens for branches[i]."""
        draftings = [branch.drafting for branch in branches if branch.drafting is not None]
        pending = [drafting.pending for drafting in draftings if drafting.pending is not None]
        assert len(pending) == len(branches)
        sizes = [len(hidden) for hidden in pending]
        # the rows whose next token is known since the last call, then one row a draft token
        spans = [range(branch.n_computed)[-m:] for branch, m in zip(branches, sizes, strict=True)]
        tokens = [t for branch, m in zip(branches, sizes, strict=True) for t in branch.tokens[-m:]]
        rows = branch_rows(branches, spans, is_prompt=False)
        state = self._model.mtp_forward(0, np.array(tokens, np.int32), np.concatenate(pending), rows, self._cache)
        state = state[np.cumsum(sizes) - 1]  # f32 (B, D), of the last position of each
        for drafting in draftings:
            drafting.pending = None
        drafts: list[list[int]] = [[] for _ in branches]
        going = list(range(len(branches)))
        for depth in range(max(counts)):
            if depth:
                keep = [i for i, which in enumerate(going) if counts[which] > depth]
                going = [going[i] for i in keep]
                positions = np.array([branches[i].n_computed - 1 + depth for i in going], np.int32)
                rows = Rows(positions, np.array(going, np.int32), rows.block_tables, is_prompt=False)
                last = np.array([drafts[i][-1] for i in going], np.int32)
                state = self._model.mtp_forward(0, last, state[keep], rows, self._cache)
            for which, logits in zip(going, self._model.mtp_logits(0, state), strict=True):
                drafts[which].append(branches[which].sampler.draft(logits, depth))
        return drafts
