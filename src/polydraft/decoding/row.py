"""The growing text of one row of a generation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, cast

import torch
from torch import Tensor
from transformers import LogitsProcessorList, StoppingCriteriaList

from polydraft.decoding.statistics import DecodingStatistics
from polydraft.decoding.trace import TokenTrace, Tracer


class Streamer(Protocol):
    """What transformers' streamers do."""

    def put(self, value: Tensor) -> None:
        """Take tokens."""

    def end(self) -> None:
        """Flush."""


class Row:
    """Emits tokens one by one and knows when to stop.

    Args:
        input_ids: (1, L), the prompt as `generate` was given it, padding included. index: in the batch.
        processors: its own, in place of those of the generation. drafted: False decodes it plainly.
        tracer: writes down how its tokens come about.

    Attributes:
        ids: (1, L) prompt and tokens so far. origins: s >= 1 for drafts at position s, else 0.
        statistics: of this row alone, without times.
        scores, logits: per token emitted the processed and the raw row (V,), float32, where asked for.
    """

    def __init__(
        self,
        input_ids: Tensor,
        criteria: StoppingCriteriaList,
        streamer: Streamer | None = None,
        *,
        index: int = 0,
        processors: LogitsProcessorList | None = None,
        drafted: bool = True,
        tracer: Tracer | None = None,
    ) -> None:
        self.ids = input_ids
        self.index = index
        self.processors = processors
        self.drafted = drafted
        self.tracer = tracer
        self.statistics = DecodingStatistics()
        self.origins: list[int] = []
        self.scores: list[Tensor] = []
        self.logits: list[Tensor] = []
        self.finished = False
        self._criteria = criteria
        self._streamer = streamer

    @property
    def room(self) -> int | None:
        """Tokens left up to the length limit; None without one."""
        limit = self._criteria.max_length
        return None if limit is None else max(limit - self.ids.shape[1], 0)

    @property
    def generated(self) -> list[int]:
        """The tokens so far, without the prompt."""
        count = len(self.origins)
        return [] if not count else cast(list[int], self.ids[0, -count:].tolist())

    @property
    def trace(self) -> list[TokenTrace]:
        """How they came about; nothing without a tracer."""
        return [] if self.tracer is None else self.tracer.tokens[: len(self.origins)]

    def emit(self, tokens: Sequence[int], origins: Sequence[int]) -> int:
        """Append `tokens` until a stopping criterion holds; returns how many were taken."""
        for count, (token, origin) in enumerate(zip(tokens, origins, strict=True), start=1):
            new = self.ids.new_tensor([token])
            self.ids = torch.cat([self.ids, new[None]], dim=-1)
            self.origins.append(origin)
            if self._streamer is not None:
                self._streamer.put(new.cpu())
            if bool(self._criteria(self.ids, None).all()):
                self.finished = True
                return count
        return len(tokens)
