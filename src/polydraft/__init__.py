"""polydraft: language models generate faster without changing a word of what they say.

The names are imported when they are first used, so that the command line answers `--help` at once.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from polydraft.errors import InputError, PolydraftError

if TYPE_CHECKING:
    from polydraft.decoding import Decoder, DecodingStatistics, DraftedOutput, decoder, generate, warm_up
    from polydraft.heads import DraftConfig, DraftHead
    from polydraft.joint import Canonical, JointDistribution
    from polydraft.loading import Loaded, load

__version__ = "0.1.0"

__all__ = [
    "Canonical",
    "Decoder",
    "DecodingStatistics",
    "DraftConfig",
    "DraftHead",
    "DraftedOutput",
    "InputError",
    "JointDistribution",
    "Loaded",
    "PolydraftError",
    "decoder",
    "generate",
    "load",
    "warm_up",
]

_ROOMS = {
    "polydraft.decoding": (
        "Decoder",
        "DecodingStatistics",
        "DraftedOutput",
        "decoder",
        "generate",
        "warm_up",
    ),
    "polydraft.heads": ("DraftConfig", "DraftHead"),
    "polydraft.joint": ("Canonical", "JointDistribution"),
    "polydraft.loading": ("Loaded", "load"),
}
_HOME = {name: room for room, names in _ROOMS.items() for name in names}


def __getattr__(name: str) -> Any:
    """Import a public name from the room it lives in."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
