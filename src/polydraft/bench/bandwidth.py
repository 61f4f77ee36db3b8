"""How fast a device moves memory, and how much of it a forward must read: the limit of plain decoding."""

from __future__ import annotations

from typing import Any, cast

import torch
from transformers import PreTrainedModel

from polydraft.decoding.measuring import shortest

BUFFER_BYTES = 256 * 2**20
"""Larger than caches."""
ROUNDS = 10


def memory_bandwidth(device: torch.device, *, buffer_bytes: int = BUFFER_BYTES) -> float:
    """Bytes per second, read by a sum over a buffer, or read and written by a copy: the faster of both."""
    buffer = torch.ones(buffer_bytes // 4, device=device)
    other = torch.empty_like(buffer)
    read, copied = shortest([buffer.sum, lambda: other.copy_(buffer)], device=device, least=ROUNDS)
    return max(buffer_bytes / read, 2 * buffer_bytes / copied)


def forward_bytes(model: PreTrainedModel) -> int:
    """Bytes of weights that a forward over one token reads: all but an input embedding of its own.

    A mixture of experts reads fewer: those of the experts that the token is sent to.
    """
    embedding = cast(Any, model).get_input_embeddings().weight
    output = cast(Any, model).get_output_embeddings().weight
    counted = {p.data_ptr(): p.numel() * p.element_size() for p in model.parameters()}
    if embedding.data_ptr() != output.data_ptr():
        del counted[embedding.data_ptr()]
    return sum(counted.values())
