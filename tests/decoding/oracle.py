"""A head that knows the text: it drafts the model's own continuation, with mistakes where it is told to."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from polydraft.heads import DraftConfig, DraftHead
from polydraft.heads.fingerprint import describe_base
from polydraft.hidden import HiddenTap
from polydraft.joint import Independent, JointDistribution, LatentMixture

SURE = 50.0
"""Logit of the token it drafts; the others have 0."""


class OracleHead(DraftHead):
    """Finds the place in a known text by its hidden state and drafts what follows.

    Its k-th draft is right for exactly `pattern[k % len(pattern)]` positions, the others are wrong.
    """

    def know(self, text: Tensor, hidden: Tensor, pattern: list[int]) -> OracleHead:
        """Learn `text` (1, L) and the hidden states (L, d) the model has on it."""
        self._text, self._hidden, self._pattern, self._calls = text[0], hidden, pattern, 0
        return self

    def forward(self, hidden: Tensor, next_tokens: Tensor) -> JointDistribution:
        place = int((self._hidden - hidden).square().sum(-1).argmin()) + 2  # the token after x[t+1]
        right = self._pattern[self._calls % len(self._pattern)]
        self._calls += 1
        logits = torch.zeros(1, self.config.horizon, 1, self.config.draft_vocab_size)
        for s in range(self.config.horizon):
            known = int(self._text[place + s]) if place + s < len(self._text) else 0
            index = int(self.draft_index(torch.tensor(known)))
            logits[0, s, 0, index if s < right else index - 1] = SURE
        return LatentMixture(Independent(1, self.config.horizon), logits)


def oracle(
    model: PreTrainedModel, text: Tensor, *, horizon: int = 4, pattern: list[int] | None = None
) -> OracleHead:
    """An oracle of `text` (1, L) over shuffled draft ids.

    Args:
        pattern: numbers of right drafts, cycle by cycle; every one from 0 to `horizon` if None.
    """
    sizes = model.config.get_text_config()
    config = DraftConfig(
        hidden_size=sizes.hidden_size,
        vocab_size=sizes.vocab_size,
        draft_vocab_size=sizes.vocab_size,
        horizon=horizon,
        rank=1,
        features="fused",
        feature_size=2,
        map_rank=2,
        base_model=describe_base(model, None),
    )
    head = OracleHead(config)
    head.draft_ids.copy_(torch.randperm(sizes.vocab_size, generator=torch.Generator().manual_seed(0)))
    with torch.no_grad(), HiddenTap(model) as tap:
        cast(Any, model)(input_ids=text)
        hidden = tap.hidden[0]
    head.attach(model)
    return head.know(text, hidden, list(range(horizon + 1)) if pattern is None else pattern)
