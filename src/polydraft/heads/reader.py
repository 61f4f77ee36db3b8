"""How a head follows a text that grows: the decoding loop's view of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor
from transformers import DynamicCache

from polydraft.joint import JointDistribution

if TYPE_CHECKING:
    from polydraft.heads.draft_head import DraftHead


class ContextReader:
    """Reads a text as it grows, (1, k) positions at a time, and gives the joint after the last of them.

    Every position read is one that stays: the base model has verified it, and knows the token after it.
    So what the block remembers needs no rollback.
    """

    def __init__(self, head: DraftHead) -> None:
        self._head = head
        self._cache = None if head.block is None else DynamicCache()

    def __call__(self, hidden: Tensor, next_tokens: Tensor) -> JointDistribution:
        """hidden (1, k, D), the states of the next k positions; next_tokens (1, k), the token after each."""
        if self._cache is None:
            return self._head.forward(hidden[:, -1], next_tokens[:, -1])
        features = self._head.features(hidden, next_tokens, cache=self._cache)
        return self._head.joint(features[:, -1], next_tokens[:, -1])
