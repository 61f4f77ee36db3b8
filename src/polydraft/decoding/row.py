"""The growing text of one row of a generation."""

from __future__ import annotations

from typing import Any, Protocol, cast

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


class CommonEnd:
    """Where the rows of a batch without an end token end: all of them where the last one is stopped.

    Plain decoding pads a row that was stopped where it knows an end token, and otherwise writes on in it.
    Rows that accept more drafts get ahead of the others; what they wrote beyond the common end is cut off.

    Args:
        rows: B.
    """

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._stops: list[int] = []

    def stop(self, tokens: int) -> None:
        """A criterion stops one more row, after `tokens` new tokens."""
        self._stops.append(tokens)

    @property
    def tokens(self) -> int | None:
        """New tokens of every row; None while some row has not been stopped."""
        return max(self._stops) if len(self._stops) == self._rows else None


class Row:
    """Emits tokens one by one and knows when to stop.

    Args:
        input_ids: (1, L), the prompt as `generate` was given it, padding included. index: in the batch.
        processors: its own, in place of those of the generation, which `Engine` else puts here.
        drafted: False decodes it plainly.
        tracer: writes down how its tokens come about.
        common_end: where it goes on until others have stopped too.
        scored: show the criteria the processed rows so far, which the engine keeps in `scores`.

    Attributes:
        ids: (1, L) prompt and tokens so far. origins: s >= 1 for drafts at position s, else 0.
        prompt_length: tokens of `input_ids`. end_tokens: any of these ends the text.
        drafting: those of the processors that are shown its drafts; None before the first.
        failed: a processor or criterion of this row has raised, which ended it.
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
        common_end: CommonEnd | None = None,
        scored: bool = False,
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
        self.failed = False
        self.end_tokens = _end_tokens(criteria)
        self._criteria = criteria
        self._streamer = streamer
        self._common_end = common_end
        self._scored = scored
        self._stopped = False

    @property
    def room(self) -> int | None:
        """Tokens left up to the length limit, or up to a common end that is known; None without any."""
        limit, end = self._criteria.max_length, self._end
        left = [] if limit is None else [limit - self.ids.shape[1]]
        left += [] if end is None else [end - len(self.origins)]
        return max(min(left), 0) if left else None

    @property
    def _end(self) -> int | None:
        return None if self._common_end is None else self._common_end.tokens

    @property
    def finished(self) -> bool:
        """Whether nothing more is to be written."""
        return self._stopped and (self._common_end is None or self.room == 0)

    @property
    def generated(self) -> list[int]:
        """The tokens so far, without the prompt."""
        count = len(self.origins)
        return [] if not count else cast(list[int], self.ids[0, -count:].tolist())

    @property
    def trace(self) -> list[TokenTrace]:
        """How they came about; nothing without a tracer."""
        return [] if self.tracer is None else self.tracer.tokens[: len(self.origins)]

    @property
    def prompt_trace(self) -> list[TokenTrace]:
        """What the model says of the prompt's tokens but the first; nothing where that was not asked for."""
        return [] if self.tracer is None else list(self.tracer.prompt or ())

    @property
    def traces_prompt(self) -> bool:
        """Whether the prompt is to be read with a row of logits for each token."""
        return self.tracer is not None and self.tracer.prompt is not None

    def end(self) -> None:
        """Nothing is to be written, or nothing more."""
        self._stopped = True

    def emit(self, token: int, origin: int) -> bool:
        """Append `token`; whether nothing more is to be written."""
        new = self.ids.new_tensor([token])
        self.ids = torch.cat([self.ids, new[None]], dim=-1)
        self.origins.append(origin)
        if self._streamer is not None:
            self._streamer.put(new.cpu())
        self._look()
        return self.finished

    def _look(self) -> None:
        """Ask the criteria, until they have stopped this row."""
        if self._stopped:
            return
        scores = tuple(row[None] for row in self.scores[: len(self.origins)]) if self._scored else None
        self._stopped = bool(self._criteria(self.ids, cast(Any, scores)).all())
        if self._stopped and self._common_end is not None:
            self._common_end.stop(len(self.origins))

    def cut(self) -> None:
        """Drop what was written beyond the common end, if there is one."""
        beyond = 0 if self._end is None else len(self.origins) - self._end
        if beyond > 0:
            self.ids, self.origins = self.ids[:, :-beyond], self.origins[:-beyond]


def _end_tokens(criteria: StoppingCriteriaList) -> frozenset[int]:
    """The tokens that end a text whatever came before."""
    ends = (one.eos_token_id for one in criteria if type(one) is EosTokenCriteria)
    return frozenset(int(token) for tokens in ends for token in tokens)
