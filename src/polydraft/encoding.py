"""Texts and chats to token ids: what they may hold, each refusal in one line."""

from __future__ import annotations

import re
from typing import Any, NoReturn

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from polydraft.errors import InputError, first_line
from polydraft.textfiles import check_unicode

OF_TEMPLATES = (TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
"""What the code of a chat template may raise: its own refusals, and what Python says of odd messages."""


def check_chat(row: dict[str, Any], *, where: str) -> dict[str, Any]:
    """The chat of a row, ready for `encode_chat`: its `messages` and, where there are any, its `tools`.

    A message has a text `role` and a text `content`, whose parts, where it is given in parts, are joined by
    line breaks; one that calls tools may have none. What is null counts as left out.

    Raises:
        InputError: names the message and what it lacks.
    """
    messages = row["messages"]
    if not isinstance(messages, list) or not messages:
        raise InputError(f"{where}: `messages` must be a list of messages, one at least")
    named = [f"{where}: message {number}" for number in range(1, len(messages) + 1)]
    chat: dict[str, Any] = {"messages": list(map(_message, messages, named))}
    tools = row.get("tools")
    if tools is not None and not _objects(tools):
        raise InputError(f"{where}: `tools` must be a list of objects, as JSON schemas describe functions")
    return chat | ({"tools": tools} if tools else {})


def encode_chat(
    row: dict[str, Any], tokenizer: PreTrainedTokenizerBase, *, where: str, reply: bool
) -> list[int]:
    """Token ids of the chat of a row, through the model's chat template.

    Args:
        row: as `check_chat` takes it.
        reply: end where the answer of the assistant begins; else the chat is the whole text.

    Raises:
        InputError: it is no chat, there is no template, it refuses the messages, or it would leave tools out.
    """
    chat = check_chat(row, where=where)
    check_template(chat, tokenizer, where=where)
    try:
        encoded: Any = tokenizer.apply_chat_template(
            chat["messages"], tools=chat.get("tools"), add_generation_prompt=reply, return_dict=True
        )
    except OF_TEMPLATES as error:
        raise InputError(
            f"{where}: the model's chat template refuses the messages: {first_line(error)}"
        ) from error
    return list(encoded["input_ids"])


def check_template(chat: dict[str, Any], tokenizer: PreTrainedTokenizerBase, *, where: str) -> None:
    """Refuse chats for a tokenizer without a template, and tools for a template that has no word for them.

    Raises:
        InputError: what the template would leave out without a word.
    """
    tools = chat.get("tools")
    if not tokenizer.chat_template:
        raise InputError(f"{where}: a chat, but this model has no chat template: give plain text")
    try:
        template = tokenizer.get_chat_template(tools=tools)
    except ValueError as error:  # several templates, none of which is the default
        raise InputError(f"{where}: {first_line(error)}") from error
    calls = any("tool_calls" in message for message in chat["messages"])
    for name, given in (("tools", bool(tools)), ("tool_calls", calls)):
        if given and not re.search(rf"\b{name}\b", template):
            raise InputError(
                f"{where}: `{name}`, but this model's chat template leaves them out: do the same"
            )


def encode_text(text: str, tokenizer: PreTrainedTokenizerBase, *, where: str) -> list[int]:
    """Token ids of a text, with the tokens that the tokenizer puts around one.

    Raises:
        InputError: it is no Unicode text.
    """
    return list(tokenizer(check_unicode(text, where=where))["input_ids"])


def _message(message: Any, where: str) -> dict[str, Any]:
    """A message as templates take it."""
    if not isinstance(message, dict):
        raise InputError(f"{where} must be an object with texts `role` and `content`")
    given = {name: value for name, value in message.items() if value is not None or name == "content"}
    role = given.get("role")
    if not isinstance(role, str) or not role:
        raise InputError(f"{where}: `role` must be a text, such as user, got {role!r}")
    calls = given.get("tool_calls")
    if calls is not None and not _objects(calls):
        raise InputError(f"{where}: `tool_calls` must be a list of objects")
    content = given.get("content")
    if isinstance(content, list):
        given["content"] = "\n".join(_part(part, where) for part in content)
    elif not isinstance(content, str) and not (content is None and calls):
        _no_text(content, where)
    check_unicode(given.get("content") or "", where=where)
    return given


def _part(part: Any, where: str) -> str:
    """The text of a part of a message."""
    text = part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None
    return text if isinstance(text, str) else _no_text(part, where)


def _no_text(content: Any, where: str) -> NoReturn:
    shown = repr(content)
    shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
    raise InputError(f"{where}: `content` must be a text, or parts of type text, got {shown}")


def _objects(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)
