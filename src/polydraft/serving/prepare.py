"""A request's body to rows: prompts to token ids, limits checked, one row per choice."""

from __future__ import annotations

import asyncio
import secrets
from typing import Any

from jinja2 import TemplateError

from polydraft.decoding.noise import choices_of
from polydraft.serving.errors import ApiError, refused
from polydraft.serving.model import Served
from polydraft.serving.requests import Choice, Echo, Job
from polydraft.serving.schemas import ChatRequest, CompletionRequest, Message, Sampling
from polydraft.serving.settings import MOST_CHOICES
from polydraft.serving.tokens import Detokenizer

COMPLETION_TOKENS = 16
"""Tokens of a completion that does not say how many; a chat without a limit may fill the context."""
GREEDY = 1e-5
"""Temperatures below are greedy, as in vLLM."""


def chat_job(body: ChatRequest, served: Served, *, loop: asyncio.AbstractEventLoop) -> Job:
    """The request `body`, ready for the worker.

    Raises:
        ApiError, InputError: it cannot be answered.
    """
    prompt = encode_chat(body.messages, served)
    asked = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    limit = room(len(prompt), asked, served, default=None, param="messages")
    return Job(_choices(body, prompt, limit, served), len(prompt), loop)


def completion_job(body: CompletionRequest, served: Served, *, loop: asyncio.AbstractEventLoop) -> Job:
    """The same for texts to continue; the choices of a prompt follow those of the prompt before.

    A prompt that is given twice gets further choices, as with `n`.

    Raises:
        ApiError, InputError: it cannot be answered.
    """
    if len(body.prompts) * body.n > MOST_CHOICES:
        raise refused(f"prompts times n must be at most {MOST_CHOICES}", param="prompt")
    if body.max_tokens == 0 and not body.echo:
        raise refused("max_tokens 0 needs echo: true", param="max_tokens")
    prompts: list[list[int]] = []
    limits: list[int] = []
    for one in body.prompts:
        if isinstance(one, str):
            prompts.append(encode(one, served, param="prompt"))
        else:
            prompts.append(check_ids(one, served, param="prompt"))
        length = len(prompts[-1])
        limits.append(room(length, body.max_tokens, served, default=COMPLETION_TOKENS, param="prompt"))
    choices: list[Choice] = []
    repeats = choices_of(prompts)
    for given, prompt, limit, repeat in zip(body.prompts, prompts, limits, repeats, strict=True):
        echo = echo_of(given, prompt, served, traced=body.named is not None) if body.echo else None
        choices += _choices(body, prompt, limit, served, first=len(choices), repeat=repeat, echo=echo)
    return Job(choices, sum(map(len, prompts)), loop)


def encode_chat(messages: list[Message], served: Served) -> list[int]:
    """Token ids of a chat, up to where the answer begins.

    Raises:
        ApiError: the model has no chat template, its template refuses these messages, or as of `encode`.
    """
    if not served.tokenizer.chat_template:
        raise refused("this model has no chat template: use /v1/completions", param="messages")
    try:
        text = served.tokenizer.apply_chat_template(
            [message.plain() for message in messages], add_generation_prompt=True, tokenize=False
        )
    except TemplateError as error:
        raise refused(f"the model's chat template refuses the messages: {error}", param="messages") from error
    assert isinstance(text, str)
    return encode(text, served, param="messages", add_special_tokens=False)


def encode(text: str, served: Served, *, param: str, add_special_tokens: bool = True) -> list[int]:
    """Token ids of a text, with the tokens that the model's tokenizer puts around one if asked for.

    Raises:
        ApiError: there are none, there must be too many, or as of `check_ids`.
    """
    least = served.least_tokens(text)
    if least > served.max_model_len:
        raise _too_long(f"at least {least}", None, served, param=param)
    ids = list(served.tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"])
    if not ids:
        raise refused("the prompt is empty", param=param)
    return check_ids(ids, served, param=param)


def check_ids(ids: list[int], served: Served, *, param: str) -> list[int]:
    """Token ids as they are.

    Raises:
        ApiError: the model has no embedding for one of them; names it.
    """
    worst = max(ids)
    if worst < served.vocab_size:
        return ids
    name = served.tokenizer.convert_ids_to_tokens(worst) if worst < len(served.tokenizer) else None
    said = f"{worst}" if name is None else f"{worst} ({name!r})"
    raise refused(
        f"token ids must be below {served.vocab_size}, got {said}: the model has no embedding for more",
        param=param,
    )


def echo_of(given: str | list[int], prompt: list[int], served: Served, *, traced: bool) -> Echo:
    """The prompt as its answer begins with it: a text as it was given, of token ids all that they say.

    What the tokenizer puts before a text is among the tokens, but not in the text.
    """
    if isinstance(given, str) and not traced:
        return Echo(given)
    detokenizer = Detokenizer(served.vocabulary, special=True)
    parts = [detokenizer.push(token) for token in prompt]
    parts[-1] += detokenizer.flush()
    added = 0 if not isinstance(given, str) else max(len("".join(parts)) - len(given), 0)
    tokens = []
    for token, part in zip(prompt, parts, strict=True):
        tokens.append((token, part[added:]))
        added = max(added - len(part), 0)
    text = given if isinstance(given, str) else "".join(parts)
    return Echo(text, tokens if traced else ())


def room(prompt: int, asked: int | None, served: Served, *, default: int | None, param: str) -> int:
    """Tokens that may be generated after `prompt` tokens; without `asked` at most `default`.

    Raises:
        ApiError: the context is too short for the prompt, or for both.
    """
    left = served.max_model_len - prompt
    if left < (1 if asked is None else asked):
        raise _too_long(f"{prompt}", None if asked is None else (prompt, asked), served, param=param)
    return min(left, default or left) if asked is None else asked


def _too_long(prompt: str, both: tuple[int, int] | None, served: Served, *, param: str) -> ApiError:
    """The context is too short for a prompt of this length, or for `both` it and the answer asked for."""
    wanted = "" if both is None else f" and {both[1]} of the answer, {sum(both)} together"
    return refused(
        f"This model's maximum context length is {served.max_model_len} tokens. However, you requested "
        f"{prompt} tokens of the prompt{wanted}. Please reduce the length of either.",
        param=param,
        code="context_length_exceeded",
    )


def biases(body: Sampling, served: Served) -> dict[int, float]:
    """`logit_bias` by token id.

    Raises:
        ApiError: a key is no token id.
    """
    out = {}
    for key, bias in (body.logit_bias or {}).items():
        if not (key.isascii() and key.isdigit() and len(key) < 10 and int(key) < served.vocab_size):
            raise refused(
                f"logit_bias: keys are token ids below {served.vocab_size}, got {key!r}", param="logit_bias"
            )
        out[int(key)] = bias
    return out


def _choices(
    body: Sampling,
    prompt: list[int],
    limit: int,
    served: Served,
    *,
    first: int = 0,
    repeat: int = 0,
    echo: Echo | None = None,
) -> list[Choice]:
    """`body.n` rows, drawn independently from one seed.

    Args:
        first: the index of the first. repeat: how often the same prompt has come before.
        echo: what each begins with.
    """
    traces_prompt = echo is not None and (body.named is not None or not limit)
    check_logprobs(body)
    seed = secrets.randbits(62) if body.seed is None else body.seed
    options: dict[str, Any] = {
        "max_new_tokens": limit,
        "end_tokens": () if body.ignore_eos else served.end_tokens,
        "temperature": body.temperature if body.temperature >= GREEDY else 0.0,
        "top_p": body.top_p,
        "top_k": max(body.top_k, 0),
        "min_p": body.min_p,
        "repetition_penalty": body.repetition_penalty,
        "frequency_penalty": body.frequency_penalty,
        "presence_penalty": body.presence_penalty,
        "logit_bias": biases(body, served),
        "drafted": body.polydraft.drafted,
        "trace": (body.top or 0) if traces_prompt else body.top,
        "trace_prompt": traces_prompt,
    }
    return [
        Choice(
            served.new_row(prompt, seed=seed, choice=repeat * body.n + index, **options),
            index=first + index,
            vocabulary=served.vocabulary,
            stops=body.stops,
            traced=body.top is not None,
            echo=echo,
        )
        for index in range(body.n)
    ]


def check_logprobs(body: Sampling) -> None:
    """Refuse options that mean nothing without another.

    Raises:
        ApiError: names both.
    """
    if isinstance(body, ChatRequest) and body.top_logprobs is not None and not body.logprobs:
        raise refused("top_logprobs needs logprobs: true", param="top_logprobs")
    if body.stream_options is not None and not body.stream:
        raise refused("stream_options needs stream: true", param="stream_options")


def check_model(name: str | None, served: Served) -> None:
    """Refuse another model than the one there is.

    Raises:
        ApiError: 404, as OpenAI answers.
    """
    if name is not None and name != served.name:
        raise ApiError(
            404,
            f"the model {name!r} does not exist: use {served.name!r}",
            param="model",
            code="model_not_found",
        )
