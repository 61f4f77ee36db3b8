"""A request on its way: its choices, what became of them so far, and where that is sent."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from polydraft.decoding.statistics import DecodingStatistics
from polydraft.serving.batch import Row, Trace
from polydraft.serving.errors import ApiError
from polydraft.serving.tokens import Detokenizer, StopStrings, Vocabulary


@dataclass(frozen=True)
class Token:
    """A token of a choice and the text it adds; `trace` where one is kept."""

    id: int
    text: str
    trace: Trace | None


@dataclass(frozen=True)
class Piece:
    """What one cycle adds to choice `index`: tokens, and the text that can be said now.

    `echoed` are the tokens of the prompt, whose text comes first; the first one has no trace.
    """

    index: int
    text: str
    tokens: list[Token]
    finish_reason: str | None
    echoed: Sequence[Token] = ()


@dataclass(frozen=True)
class Echo:
    """A prompt that its answer begins with; (token id, the text it adds), where likelihoods are asked for."""

    text: str
    tokens: Sequence[tuple[int, str]] = ()


class Choice:
    """One text of a request.

    Attributes:
        taken: tokens read from the row; those after the end of a stop string never are.
    """

    def __init__(
        self,
        row: Row,
        *,
        index: int,
        vocabulary: Vocabulary,
        stops: Sequence[str],
        traced: bool,
        echo: Echo | None = None,
    ) -> None:
        self.row = row
        self.index = index
        self.taken = 0
        self.finish_reason: str | None = None
        self._text = Detokenizer(vocabulary)
        self._stops = StopStrings(stops)
        self._traced = traced
        self._echo = echo

    def take(self) -> Piece | None:
        """What the row has grown by since the last call; None if by nothing."""
        tokens: list[Token] = []
        said = ""
        generated, traces = self.row.generated, self.row.trace
        while self.taken < len(generated) and not self._stops.found:
            token = generated[self.taken]
            trace = traces[self.taken] if self._traced else None
            self.taken += 1
            added = self._text.push(token)
            if self.row.finished and self.taken == len(generated):
                added += self._text.flush()
            said += self._stops.push(added)
            tokens.append(Token(token, added, trace))
        if not (tokens or (self.row.finished and self.finish_reason is None)):
            return None
        if self._stops.found:
            self.finish_reason = "stop"
        elif self.row.finished:
            said += self._stops.flush()
            self.finish_reason = "stop" if self.row.ended else "length"
        echoed: list[Token] = []
        if self._echo is not None:
            said = self._echo.text + said
            read = [None, *self.row.prompt_trace]
            echoed = [
                Token(token, text, trace)
                for (token, text), trace in zip(self._echo.tokens, read, strict=bool(self._echo.tokens))
            ]
            self._echo = None
        return Piece(self.index, said, tokens, self.finish_reason, echoed)


@dataclass(eq=False)
class Job:
    """A request that was taken.

    Attributes:
        choices: in the order of their indices. prompt_tokens: of all prompts together.
        events: pieces as they come, or the error that ends the request; read by the loop that made the job.
        arrived, admitted, spoke, finished: seconds of `time.perf_counter`; when its first choice got a row,
            said its first token, and its last choice its last one.
        cancelled: nobody waits for it any more.
    """

    choices: list[Choice]
    prompt_tokens: int
    loop: asyncio.AbstractEventLoop
    events: asyncio.Queue[Piece | ApiError] = field(default_factory=asyncio.Queue)
    arrived: float = field(default_factory=time.perf_counter)
    admitted: float | None = None
    spoke: float | None = None
    finished: float | None = None
    cancelled: bool = False

    def put(self, event: Piece | ApiError) -> None:
        """Send an event, from any thread."""
        self.loop.call_soon_threadsafe(self.events.put_nowait, event)

    @property
    def done(self) -> bool:
        """Whether every choice has ended."""
        return all(choice.finish_reason is not None for choice in self.choices)

    @property
    def completion_tokens(self) -> int:
        """Tokens said so far, end tokens included."""
        return sum(choice.taken for choice in self.choices)

    def statistics(self) -> DecodingStatistics:
        """Return the statistics of all choices together."""
        return DecodingStatistics.merged(choice.row.statistics for choice in self.choices)
