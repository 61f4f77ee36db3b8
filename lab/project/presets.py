"""Known models and machines, with their sources; what is assumed of them is named.

Models: the sizes of the published `config.json` of meta-llama/Llama-3.2-1B, Llama-3.1-8B, Llama-3.1-70B and
HuggingFaceTB/SmolLM2-135M-Instruct.

H100 SXM: NVIDIA's data sheet of the H100 Tensor Core GPU: 80 GB of HBM3 at 3.35 TB/s, 989 TFLOP/s dense in
bfloat16, 1979 TFLOP/s dense in fp8 (both without sparsity), NVLink 900 GB/s in both directions together.
Assumed: decoding reaches 80% of the bandwidth and 60% of the arithmetic; an operation costs 2 us beside its
work, as inside a CUDA graph.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lab.project.machine import Machine
from lab.project.shapes import ModelShape
from polydraft.errors import InputError

_LLAMA = ModelShape(
    name="llama-3.1-8b",
    layers=32,
    hidden_size=4096,
    ffn=14336,
    heads=32,
    kv_heads=8,
    head_dim=128,
    vocab_size=128256,
)
MODELS = {
    model.name: model
    for model in (
        ModelShape(
            name="smollm2-135m",
            layers=30,
            hidden_size=576,
            ffn=1536,
            heads=9,
            kv_heads=3,
            head_dim=64,
            vocab_size=49152,
            tied=True,
        ),
        replace(_LLAMA, name="llama-3.2-1b", layers=16, hidden_size=2048, ffn=8192, head_dim=64, tied=True),
        _LLAMA,
        replace(_LLAMA, name="llama-3.1-70b", layers=80, hidden_size=8192, ffn=28672, heads=64),
    )
}
H100 = Machine(
    name="h100-sxm",
    bandwidth=3.35e12,
    flops=989e12,
    memory=80e9,
    link=450e9,
    bandwidth_share=0.8,
    compute_share=0.6,
    launch=2e-6,
)
MACHINES = {H100.name: H100}
FP8 = 2
"""Arithmetic in fp8 over that in bfloat16."""


def model_shape(name: str) -> ModelShape:
    """The model called `name`, of `MODELS`.

    Raises:
        InputError: there is none.
    """
    if name not in MODELS:
        raise InputError(f"unknown shape {name!r}: choose one of {', '.join(MODELS)}, or give a config.json")
    return MODELS[name]


def on_machine(name: str, *, devices: int = 1, fp8: bool = False, **chosen: float | None) -> Machine:
    """The machine called `name`, of `MACHINES`, `count` of it, and other figures than its own.

    Args:
        fp8: weights of one byte: arithmetic is `FP8` times as fast.
        chosen: fields of `Machine`; None leaves one as it is.

    Raises:
        InputError: there is none, or a figure is out of range.
    """
    if name not in MACHINES:
        raise InputError(f"unknown machine {name!r}: choose one of {', '.join(MACHINES)}")
    given: dict[str, Any] = {field: value for field, value in chosen.items() if value is not None}
    found = replace(MACHINES[name], devices=devices, **given)
    return replace(found, flops=FP8 * found.flops) if fp8 else found
