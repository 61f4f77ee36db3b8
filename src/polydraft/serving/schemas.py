"""What requests may say: the fields of OpenAI's API that are answered, and vLLM's extra ones."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from polydraft.serving.fields import at_most, check_message, check_names, known_fields
from polydraft.serving.settings import MOST_BIASES, MOST_CHOICES, MOST_STOPS, MOST_TOP

Count = Annotated[int, Field(ge=1)]
Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
Bias = Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]
Biases = Annotated[dict[str, Bias], Field(max_length=MOST_BIASES), BeforeValidator(at_most(MOST_BIASES))]
StopText = Annotated[str, Field(min_length=1)]
StopTexts = Annotated[list[StopText], Field(max_length=MOST_STOPS, fail_fast=True)]
Top = Annotated[int, Field(ge=0, le=MOST_TOP)]
TokenIds = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1, fail_fast=True)]
Prompts = Field(min_length=1, max_length=MOST_CHOICES, fail_fast=True)
Seed = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]


class Exact(BaseModel):
    """No field but the known ones, and no value of another type taken for its own."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _known(cls, given: Any) -> Any:
        return check_names(given, cls.model_fields) if isinstance(given, dict) else given


class Extension(Exact):
    """What is polydraft's own.

    Attributes:
        drafted: False decodes this request plainly. trace: how many likely tokens to name with each token,
            which also says how each came about; None for no trace.
    """

    drafted: bool = True
    trace: Top | None = None


class StreamOptions(Exact):
    """How to stream. `include_obfuscation` is ignored: nothing is padded."""

    include_usage: bool = False
    include_obfuscation: bool = False


class Sampling(Exact):
    """Fields of both calls. `repetition_penalty`, `top_k`, `min_p` and `ignore_eos` are vLLM's."""

    model: str | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] = 1
    seed: Seed | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = 1.0
    top_k: Annotated[int, Field(ge=-1)] = 0
    min_p: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 0.0
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100, allow_inf_nan=False)] = 1.0
    frequency_penalty: Penalty = 0.0
    presence_penalty: Penalty = 0.0
    logit_bias: Biases | None = None
    stop: StopText | StopTexts | None = None
    ignore_eos: bool = False
    max_tokens: Count | None = None
    polydraft: Extension = Extension()

    @model_validator(mode="before")
    @classmethod
    def _known(cls, given: Any) -> Any:
        """Refuse by name what is not supported; a field that is null was not given."""
        return known_fields(given, cls.model_fields) if isinstance(given, dict) else given

    @property
    def stops(self) -> tuple[str, ...]:
        """Every stop string."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def top(self) -> int | None:
        """How many likely tokens a token comes with; None where no likelihoods are asked for."""
        asked = [count for count in (self.named, self.polydraft.trace) if count is not None]
        return max(asked, default=None)

    @property
    def named(self) -> int | None:
        """How many of them `logprobs` names; None without it."""
        raise NotImplementedError

    @property
    def with_usage(self) -> bool:
        """Whether a stream ends with its usage."""
        asked = self.stream_options is not None and self.stream_options.include_usage
        return asked or self.polydraft.trace is not None


class TextPart(Exact):
    """A part of a message; text is the only kind."""

    type: Literal["text"]
    text: str


class Message(BaseModel):
    """A message of a chat; parts are joined by line breaks. An assistant may have said nothing."""

    model_config = ConfigDict(extra="ignore", strict=True)

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(fail_fast=True)]

    @model_validator(mode="before")
    @classmethod
    def _known(cls, given: Any) -> Any:
        return check_message(given) if isinstance(given, dict) else given

    def plain(self) -> dict[str, str]:
        """Return the message as chat templates take it; `developer` is the newer name of `system`."""
        parts = [self.content] if isinstance(self.content, str) else [part.text for part in self.content]
        role = "system" if self.role == "developer" else self.role
        return {"role": role, "content": "\n".join(parts)}


class ChatRequest(Sampling):
    """Body of POST /v1/chat/completions. `max_completion_tokens` goes before `max_tokens`."""

    messages: Annotated[list[Message], Field(min_length=1, fail_fast=True)]
    max_completion_tokens: Count | None = None
    logprobs: bool = False
    top_logprobs: Top | None = None

    @property
    def named(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(Sampling):
    """Body of POST /v1/completions; `prompt`: one or several texts, or token ids.

    With `echo` an answer begins with its prompt, and may end there: `max_tokens` may be 0.
    """

    prompt: str | Annotated[list[str], Prompts] | TokenIds | Annotated[list[TokenIds], Prompts]
    logprobs: Top | None = None
    echo: bool = False
    max_tokens: Annotated[int, Field(ge=0)] | None = None

    @property
    def named(self) -> int | None:
        return self.logprobs

    @property
    def prompts(self) -> list[str | list[int]]:
        """Each prompt."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [[token for token in self.prompt if isinstance(token, int)]]
        return [one for one in self.prompt if not isinstance(one, int)]
