"""The base model's own rows over the draft vocabulary, made when they are asked for."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Teacher(NamedTuple):
    """log p of Q positions of the text, from hidden states or from logits.

    Attributes:
        log_normaliser: (Q,) float32, logsumexp of the logits over the whole vocabulary.
        hidden: (Q, d), with `rows` (V', d), the base model's unembedding of the draft vocabulary.
        logits: (Q, V), with `draft_ids` (V',); for models that change their logits after the unembedding.
    """

    log_normaliser: Tensor
    hidden: Tensor | None = None
    rows: Tensor | None = None
    logits: Tensor | None = None
    draft_ids: Tensor | None = None

    @torch.no_grad()
    def log_rows(self, index: Tensor) -> Tensor:
        """log p of the draft vocabulary at the positions `index` (C,); (C, V') float32.

        A row sums to at most 1; what is missing are the tokens that cannot be drafted.
        """
        if self.logits is not None and self.draft_ids is not None:
            scores = self.logits[index][:, self.draft_ids]
        else:
            assert self.hidden is not None and self.rows is not None
            scores = self.hidden[index].to(self.rows.dtype) @ self.rows.T
        return scores.float().sub_(self.log_normaliser[index][:, None])
