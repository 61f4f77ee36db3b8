"""Which versions a figure or a head was made with."""

from __future__ import annotations

import platform
from importlib import metadata

RECORDED = ("torch", "transformers", "safetensors", "tokenizers")


def versions() -> dict[str, str]:
    """Versions of Python, polydraft and the packages that decide what is computed."""
    own = {"python": platform.python_version(), "polydraft": metadata.version("polydraft")}
    return own | {name: metadata.version(name).split("+")[0] for name in RECORDED}
