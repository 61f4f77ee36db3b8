"""From pieces of text to OpenAI's objects: what the shapes of both calls have in common."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from typing import Any, Protocol

from polydraft.serving import replies
from polydraft.serving.model import Served
from polydraft.serving.requests import Job, Piece, Token
from polydraft.serving.schemas import Sampling

LEAST = -9999.0
"""What a likelihood of zero is called, since JSON has no infinities; OpenAI's figure."""


class Shape(Protocol):
    """How the answers of one call look."""

    def opening(self, index: int) -> replies.Reply | None:
        """What a stream begins choice `index` with."""

    def chunk(self, piece: Piece) -> replies.Reply:
        """A part of a choice."""

    def closing(self, usage: replies.Usage) -> replies.Reply:
        """What a stream ends with."""

    def whole(self, pieces: Sequence[Piece], usage: replies.Usage) -> replies.Reply:
        """All choices, each in one piece, in order."""


class BaseShape:
    """What both have in common.

    Args:
        body: the request, which says what is shown.
    """

    prefix: str

    def __init__(self, body: Sampling, served: Served) -> None:
        self.body = body
        self.words = served.vocabulary
        self.common: dict[str, Any] = {
            "id": f"{self.prefix}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": served.name,
        }
        if body.stream and body.with_usage:
            self.common["usage"] = None

    def extension(self, tokens: Sequence[Token]) -> dict[str, Any]:
        """The field `polydraft` of a choice, where it was asked for."""
        count = self.body.polydraft.trace
        if count is None:
            return {}
        return {"polydraft": replies.ChoiceExtension(tokens=[self._traced(one, count) for one in tokens])}

    def _traced(self, token: Token, count: int) -> replies.TracedToken:
        trace = token.trace
        assert trace is not None
        return replies.TracedToken(
            id=token.id,
            text=token.text,
            origin=trace.origin,
            kind=trace.kind,
            step=trace.step,
            logprob=finite(trace.log_prob),
            draft_logprob=None if trace.draft_log_prob is None else finite(trace.draft_log_prob),
            top=[
                replies.TopToken(text=self.words.text([other], special=True), logprob=finite(log_prob))
                for other, log_prob in trace.top[:count]
            ],
            weights=list(trace.weights),
        )


def finite(log_prob: float) -> float:
    """A log probability as JSON can say it; of NaN, which is larger than nothing, the least."""
    return max(LEAST, log_prob)


def usage_of(job: Job) -> replies.Usage:
    """The usage of a request that has ended."""
    statistics, said = job.statistics(), job.completion_tokens
    assert job.admitted is not None
    assert job.finished is not None
    seconds = job.finished - job.admitted
    figures = statistics.to_dict()
    return replies.Usage(
        prompt_tokens=job.prompt_tokens,
        completion_tokens=said,
        total_tokens=job.prompt_tokens + said,
        completion_tokens_details=replies.TokenDetails(
            accepted_prediction_tokens=statistics.accepted_tokens,
            rejected_prediction_tokens=statistics.drafted_tokens - statistics.accepted_tokens,
        ),
        polydraft=replies.UsageExtension(
            **{name: figures[name] for name in figures if name in replies.UsageExtension.model_fields},
            seconds=seconds,
            tokens_per_second=said / seconds,
            queued_seconds=job.admitted - job.arrived,
        ),
    )
