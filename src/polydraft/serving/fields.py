"""Fields of OpenAI's and vLLM's APIs that are not answered: which are ignored, which refused by name."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from pydantic_core import PydanticCustomError

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


def known_fields(given: dict[Any, Any], known: Collection[str]) -> dict[Any, Any]:
    """A body without its nulls, and without what is ignored or asks for nothing.

    Raises:
        ApiError: the first field that is not `known`, or not supported; names it.
    """
    kept = {}
    for name, value in given.items():
        if value is None or name in IGNORED:
            continue
        if name in NEUTRAL:
            same_as_n = name == "best_of" and value == given.get("n", 1)
            if not same_as_n and not any(type(value) is type(one) and value == one for one in NEUTRAL[name]):
                raise refused(f"{name} is not supported", param=name, code="unsupported_parameter")
            continue
        if name not in known:
            raise refused(f"unrecognized field: {name}", param=name, code="unknown_parameter")
        kept[name] = value
    return kept


def check_names(given: dict[Any, Any], known: Collection[str]) -> dict[Any, Any]:
    """The fields of an inner object as they are.

    Raises:
        PydanticCustomError: the first that is not `known`, alone: one error for each would take long.
    """
    for name in given:
        if name not in known:
            raise PydanticCustomError("unknown_field", "unrecognized field: {name}", {"name": name})
    return given


def at_most(most: int) -> Callable[[Any], Any]:
    """A check that comes before those of the entries of an object, which fails first where there are more.

    Pydantic looks at the length of a list before it looks at its items, and of an object afterwards.
    """

    def check(given: Any) -> Any:
        if isinstance(given, dict) and len(given) > most:
            raise PydanticCustomError(
                "too_long", "Object should have at most {most} entries, not {count}",
                {"most": most, "count": len(given)},
            )  # fmt: skip
        return given

    return check


def check_message(given: dict[Any, Any]) -> dict[Any, Any]:
    """A message as it is; of an assistant that says nothing the empty text.

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
    if given.get("role") == "assistant" and given.get("content") is None:
        return given | {"content": ""}
    return given
