"""Which process of a run this is, as `torchrun` and `accelerate launch` tell it; 0 of 1 without them."""

from __future__ import annotations

import os


def rank() -> int:
    """Number of this process; 0 is the one that writes and speaks."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """Number of this process on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def world_size() -> int:
    """Processes of the run."""
    return int(os.environ.get("WORLD_SIZE", "1"))
