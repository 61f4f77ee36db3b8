"""What answers of /v1/completions look like."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from polydraft.serving import replies
from polydraft.serving.model import Served
from polydraft.serving.requests import Piece
from polydraft.serving.schemas import CompletionRequest
from polydraft.serving.shapes import BaseShape, finite


class CompletionShape(BaseShape):
    """Continuations, whole or in parts."""

    prefix = "cmpl"
    body: CompletionRequest

    def __init__(self, body: CompletionRequest, served: Served) -> None:
        super().__init__(body, served)
        self._offsets: dict[int, int] = defaultdict(int)

    def opening(self, index: int) -> None:
        """Nothing."""

    def chunk(self, piece: Piece) -> replies.Reply:
        """Text that is added."""
        return replies.Completion(object="text_completion", choices=[self._choice(piece)], **self.common)

    def closing(self, usage: replies.Usage) -> replies.Reply:
        """The usage alone."""
        return replies.Completion(object="text_completion", choices=[], **(self.common | {"usage": usage}))

    def whole(self, pieces: Sequence[Piece], usage: replies.Usage) -> replies.Reply:
        """Every continuation."""
        choices = [self._choice(piece) for piece in pieces]
        return replies.Completion(
            object="text_completion", choices=choices, **(self.common | {"usage": usage})
        )

    def _choice(self, piece: Piece) -> replies.CompletionChoice:
        return replies.CompletionChoice(
            index=piece.index,
            text=piece.text,
            logprobs=self._logprobs(piece),
            finish_reason=piece.finish_reason,
            **self.extension(piece.tokens),
        )

    def _logprobs(self, piece: Piece) -> replies.CompletionLogprobs | None:
        named = self.body.named
        if named is None:
            return None
        out = replies.CompletionLogprobs(tokens=[], token_logprobs=[], top_logprobs=[], text_offset=[])
        for token in [*piece.echoed, *piece.tokens]:
            out.tokens.append(self.words.name(token.id))
            if token.trace is None:
                out.token_logprobs.append(None)
                out.top_logprobs.append(None)
            else:
                likely = [(token.id, token.trace.log_prob), *token.trace.top[:named]]
                out.token_logprobs.append(finite(token.trace.log_prob))
                out.top_logprobs.append({self.words.name(one): finite(value) for one, value in likely})
            out.text_offset.append(self._offsets[piece.index])
            self._offsets[piece.index] += len(token.text)
        return out
