"""Fields of OpenAI's and vLLM's APIs that are not answered: which are ignored, which refused by name."""

from __future__ import annotations

from typing import Any

from polydraft.serving.errors import refused

IGNORED = {
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key",
    "prompt_cache_retention", "parallel_tool_calls", "prediction",
}  # fmt: skip
"""They change no text: labels, accounts, and hints about speed."""

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "web_search_options": (),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
    "suffix": ("",),
    "echo": (False,),
    "best_of": (),
    "use_beam_search": (False,),
    "stop_token_ids": ([],),
    "min_tokens": (0,),
    "length_penalty": (1, 1.0),
    "bad_words": ([],),
    "prompt_logprobs": (),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "structured_outputs": (),
    "skip_special_tokens": (True,),
    "include_stop_str_in_output": (False,),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "truncate_prompt_tokens": (),
    "logits_processors": ([],),
}
"""What is not supported, with the values that ask for nothing."""

IN_MESSAGES = ("tool_calls", "function_call", "audio")


def known_fields(given: dict[Any, Any]) -> dict[Any, Any]:
    """A body without its nulls, and without what is ignored or asks for nothing.

    Raises:
        ApiError: something that is not supported; names it.
    """
    kept = {name: value for name, value in given.items() if value is not None and name not in IGNORED}
    for name in [name for name in kept if name in NEUTRAL]:
        value = kept.pop(name)
        same_as_n = name == "best_of" and value == given.get("n", 1)
        if not same_as_n and not any(type(value) is type(one) and value == one for one in NEUTRAL[name]):
            raise refused(f"{name} is not supported", param=name, code="unsupported_parameter")
    return kept


def check_text(text: str) -> str:
    """Text as it is.

    Raises:
        ValueError: half of a surrogate pair, which JSON can write and no encoding can.
    """
    if not text.isascii():
        text.encode()
    return text


def check_message(given: dict[Any, Any]) -> dict[Any, Any]:
    """A message as it is.

    Raises:
        ApiError: it belongs to a call of a tool, or to sound.
    """
    for name in IN_MESSAGES:
        if given.get(name):
            raise refused(f"{name} in messages is not supported", param="messages", code="unsupported_value")
    if given.get("role") in ("tool", "function"):
        raise refused(
            f"messages of role {given['role']} are not supported", param="messages", code="unsupported_value"
        )
    return given
