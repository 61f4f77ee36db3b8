"""The machine that figures were taken on: what it moves and multiplies, and the sizes of the trunk."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from transformers import PreTrainedModel

from lab.project.shapes import shape_of
from polydraft.bench.bandwidth import forward_bytes, memory_bandwidth
from polydraft.decoding.costs import device_name
from polydraft.decoding.measuring import shortest
from polydraft.errors import InputError

SIDE = {"cpu": 1024, "cuda": 8192}
"""Of the square matrices that are multiplied."""
ROUNDS = 8


def matmul_flops(device: torch.device, dtype: torch.dtype, *, side: int | None = None) -> float:
    """Multiplications and additions per second of a product of square matrices, the best of several."""
    size = side or SIDE.get(device.type, SIDE["cpu"])
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    (seconds,) = shortest([lambda: a @ b], device=device, least=ROUNDS)
    return 2 * size**3 / seconds


def describe_machine(model: PreTrainedModel) -> dict[str, Any]:
    """Bandwidth (bytes per second) and arithmetic (FLOP/s) as measured now, and what a forward reads.

    `shape` is that of the trunk, None where it has none that a roofline knows.
    """
    try:
        shape: dict[str, Any] | None = asdict(
            shape_of(model.config, weight_bytes=float(model.dtype.itemsize))
        )
    except InputError:  # experts: nothing to project, everything to measure
        shape = None
    return {
        "device": device_name(model.device),
        "threads": torch.get_num_threads(),
        "dtype": str(model.dtype).removeprefix("torch."),
        "bandwidth": memory_bandwidth(model.device),
        "flops": matmul_flops(model.device, model.dtype),
        "forward_bytes": forward_bytes(model),
        "shape": shape,
    }
