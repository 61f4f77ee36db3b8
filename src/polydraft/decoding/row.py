"""The growing text of one row of a generation."""

from __future__ import annotations

from typing import Protocol, cast

import torch
from torch import Tensor
from transformers import EosTokenCriteria, LogitsProcessorList, StoppingCriteriaList

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
        processors: its own, in place of those of the generation, which `Engine` else puts here.
        drafted: False decodes it plainly.
        tracer: writes down how its tokens come about.

    Attributes:
        ids: (1, L) prompt and tokens so far. origins: s >= 1 for drafts at position s, else 0.
        prompt_length: tokens of `input_ids`. end_tokens: any of these ends the text.
        drafting: those of the processors that are shown its drafts; None before the first.
        finished: a criterion holds. failed: a processor or criterion of this row has raised, which ended it.
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
        self.prompt_length = input_ids.shape[1]
        self.index = index
        self.processors = processors
        self.drafting: LogitsProcessorList | None = None
        self.drafted = drafted
        self.tracer = tracer
        self.statistics = DecodingStatistics()
        self.origins: list[int] = []
        self.scores: list[Tensor] = []
        self.logits: list[Tensor] = []
        self.finished = False
        self.failed = False
        self.end_tokens = _end_tokens(criteria)
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

    def emit(self, token: int, origin: int) -> bool:
        """Append `token`; whether a stopping criterion now holds."""
        new = self.ids.new_tensor([token])
        self.ids = torch.cat([self.ids, new[None]], dim=-1)
        self.origins.append(origin)
        if self._streamer is not None:
            self._streamer.put(new.cpu())
        self.finished = bool(self._criteria(self.ids, None).all())
        return self.finished


def _end_tokens(criteria: StoppingCriteriaList) -> frozenset[int]:
    """The tokens that end a text whatever came before."""
    ends = (one.eos_token_id for one in criteria if type(one) is EosTokenCriteria)
    return frozenset(int(token) for tokens in ends for token in tokens)
