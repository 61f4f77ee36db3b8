"""What answers of /v1/chat/completions look like."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from polydraft.serving import replies
from polydraft.serving.requests import Piece, Token
from polydraft.serving.schemas import ChatRequest
from polydraft.serving.shapes import BaseShape, finite


class ChatShape(BaseShape):
    """Messages; in a stream, what is added to them."""

    prefix = "chatcmpl"
    body: ChatRequest

    def opening(self, index: int) -> replies.Reply:
        """The role, before any text."""
        return self._chunk(
            replies.ChatDelta(
                index=index,
                delta=replies.ChatMessage(role="assistant", content=""),
                logprobs=None,
                finish_reason=None,
            )
        )

    def chunk(self, piece: Piece) -> replies.Reply:
        """Text that is added."""
        return self._chunk(
            replies.ChatDelta(
                index=piece.index,
                delta=replies.ChatMessage(content=piece.text),
                logprobs=self._logprobs(piece.tokens),
                finish_reason=piece.finish_reason,
                **self.extension(piece.tokens),
            )
        )

    def closing(self, usage: replies.Usage) -> replies.Reply:
        """The usage alone."""
        return replies.ChatChunk(
            object="chat.completion.chunk", choices=[], **(self.common | {"usage": usage})
        )

    def whole(self, pieces: Sequence[Piece], usage: replies.Usage) -> replies.Reply:
        """Every message."""
        choices = [
            replies.ChatChoice(
                index=piece.index,
                message=replies.ChatMessage(role="assistant", content=piece.text),
                logprobs=self._logprobs(piece.tokens),
                finish_reason=piece.finish_reason,
                **self.extension(piece.tokens),
            )
            for piece in pieces
        ]
        return replies.ChatCompletion(
            object="chat.completion", choices=choices, **(self.common | {"usage": usage})
        )

    def _chunk(self, delta: replies.ChatDelta) -> replies.Reply:
        return replies.ChatChunk(object="chat.completion.chunk", choices=[delta], **self.common)

    def _logprobs(self, tokens: Sequence[Token]) -> replies.ChatLogprobs | None:
        named = self.body.named
        if named is None:
            return None
        content = []
        for token in tokens:
            assert token.trace is not None
            content.append(
                replies.ChatToken(
                    **self._top(token.id, token.trace.log_prob),
                    top_logprobs=[replies.ChatTop(**self._top(*one)) for one in token.trace.top[:named]],
                )
            )
        return replies.ChatLogprobs(content=content)

    def _top(self, token: int, log_prob: float) -> dict[str, Any]:
        return {
            "token": self.words.name(token),
            "logprob": finite(log_prob),
            "bytes": self.words.bytes(token),
        }
