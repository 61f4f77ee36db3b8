"""What answers look like: OpenAI's objects, and polydraft's own part of them.

A field is sent where it was given a value, null included; what was not set is left out.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel


class TopToken(BaseModel):
    """A likely token."""

    text: str
    logprob: float


class TracedToken(BaseModel):
    """How a token came about; `polydraft.decoding.live.TokenTrace` explains the fields."""

    id: int
    text: str
    origin: int
    kind: str
    step: int
    logprob: float
    draft_logprob: float | None
    top: list[TopToken]
    weights: list[float]


class ChoiceExtension(BaseModel):
    """The trace of a choice, or of the chunk's part of it."""

    tokens: list[TracedToken]


class UsageExtension(BaseModel):
    """How drafting went, over all choices of a request. Times in seconds."""

    steps: int
    drafted_tokens: int
    accepted_tokens: int
    mean_acceptance_length: float
    draft_acceptance_rate: float
    acceptance_histogram: list[int]
    acceptance_per_position: list[float]
    seconds: float
    tokens_per_second: float
    queued_seconds: float


class TokenDetails(BaseModel):
    """Drafted tokens that were kept, and that were not."""

    accepted_prediction_tokens: int
    rejected_prediction_tokens: int


class Usage(BaseModel):
    """Tokens of a request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    completion_tokens_details: TokenDetails
    polydraft: UsageExtension


class ChatTop(BaseModel):
    """A likely token of a chat."""

    token: str
    logprob: float
    bytes: list[int]


class ChatToken(ChatTop):
    """A token of a chat and the likely ones in its place."""

    top_logprobs: list[ChatTop]


class ChatLogprobs(BaseModel):
    """One entry per token."""

    content: list[ChatToken]


class ChatMessage(BaseModel):
    """An answer; in a stream, what a chunk adds to it."""

    role: Literal["assistant"] = "assistant"
    content: str = ""


class ChatChoice(BaseModel):
    """A whole answer."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: str | None
    polydraft: ChoiceExtension | None = None


class ChatDelta(BaseModel):
    """A chunk of one answer."""

    index: int
    delta: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: str | None
    polydraft: ChoiceExtension | None = None


class CompletionLogprobs(BaseModel):
    """Lists over tokens, null for the first one of an echoed prompt; `text_offset`: where a token begins."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(BaseModel):
    """A continuation, or a chunk of one."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: str | None
    polydraft: ChoiceExtension | None = None


class Reply(BaseModel):
    """What every answer carries."""

    id: str
    created: int
    model: str
    usage: Usage | None = None


class ChatCompletion(Reply):
    """A whole answer to a chat."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]


class ChatChunk(Reply):
    """A part of one; the last of a stream may hold the usage alone."""

    object: Literal["chat.completion.chunk"]
    choices: list[ChatDelta]


class Completion(Reply):
    """A whole answer to a prompt, or a part of one."""

    object: Literal["text_completion"]
    choices: list[CompletionChoice]


class Model(BaseModel):
    """The model that is served."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    max_model_len: int
    polydraft: dict[str, Any]


class Models(BaseModel):
    """All that are: one."""

    object: Literal["list"] = "list"
    data: list[Model]


class Version(BaseModel):
    """Answers GET /version."""

    version: str


class Problem(BaseModel):
    """What was wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorReply(BaseModel):
    """Any error."""

    error: Problem


def said(reply: BaseModel) -> str:
    """A reply as JSON."""
    return reply.model_dump_json(exclude_unset=True)
