"""What transformers calls the cache of keys and values: `cache` since 5.24, `past_key_values` before."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

from transformers.masking_utils import create_causal_mask

NAMES = ("cache", "past_key_values")


@cache
def cache_name(function: Callable[..., Any]) -> str | None:
    """The name under which `function` takes a cache; None if it takes none.

    Models of one's own may keep the older name under a newer transformers.
    """
    parameters = inspect.signature(function).parameters
    return next((name for name in NAMES if name in parameters), None)


CACHE = cache_name(create_causal_mask) or NAMES[0]
"""Of the transformers that is installed."""
