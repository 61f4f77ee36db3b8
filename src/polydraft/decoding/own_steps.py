"""What a model does around its forward when it generates, which drafted decoding does not go through."""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any

from torch import nn
from transformers import GenerationMixin, PreTrainedModel

from polydraft.compat import GENERATION_STEPS, hooks_before


def own_step(model: PreTrainedModel) -> str | None:
    """The first step of plain decoding that `model` has in a form of its own, and its home; None for none.

    Drafted decoding calls none of `GENERATION_STEPS`.

    A model of transformers may wrap transformers' own form, as those with images do, which changes nothing
    for text. What a user puts in its place, or an adapter that acts there (prefix and prompt tuning), may do
    anything.
    """
    for name in GENERATION_STEPS:
        function = _own(model, name)
        if function is not None and not _wraps(function):
            return f"{name} ({_home(function)})"
    return None


def own_generate(model: PreTrainedModel) -> str | None:
    """Where the `generate` of `model` comes from, if it is not transformers' own; it may do anything."""
    function = _own(model, "generate")
    return None if function is None else _home(function)


def told_by_hooks(model: nn.Module) -> bool:
    """Whether PEFT tells the layers of `model` about the batch by hooks: one adapter per row, or per place.

    Such hooks know the rows and places of plain decoding alone.
    """
    return any(_home(hook).startswith("peft.") for module in model.modules() for hook in hooks_before(module))


def _own(model: PreTrainedModel, name: str) -> Any:
    """The function after a method of `model` that has another form in transformers; None for that one."""
    common = getattr(GenerationMixin, name, None)
    if common is None:  # not a step of this version
        return None
    given = getattr(model, name, common)
    function = getattr(given, "__func__", given)
    return None if function is common else function


def _wraps(function: Any) -> bool:
    """Whether a function of transformers hands on to that of its base class."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    return _home(function).startswith("transformers.") and code is not None and "super" in code.co_names


def _home(function: Any) -> str:
    """The module whose code a function runs first, whatever it says of itself."""
    while isinstance(function, partial):
        function = function.func
    names = getattr(function, "__globals__", None)
    return str(type(function).__module__ if names is None else names.get("__name__", ""))
