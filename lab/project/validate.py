"""The roofline on the machine that an overhead run measured: one constant fitted, the rest predicted.

Bandwidth and arithmetic are as measured, nothing is assumed of shares. What an operation costs beside its
work (`launch`) follows from the measured forward over one token, and from no other figure:

    launch = (forward(1) - sum_op max(bytes / bandwidth, flops / flops)) / operations
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lab.project.machine import Machine
from lab.project.roofline import Load, forward_ops, project
from lab.project.shapes import COSTED, HeadShape, ModelShape
from polydraft.errors import InputError


def local_machine(content: dict[str, Any]) -> tuple[Machine, ModelShape, Load]:
    """Machine, trunk and load of an overhead run, its launch overhead fitted to the forward over one token.

    Raises:
        InputError: the trunk has no shape that the roofline knows.
    """
    found = content["machine"]
    if found["shape"] is None:
        raise InputError("the overhead run's model has no shape that the roofline knows")
    model, load = ModelShape(**found["shape"]), Load(context=content["context"])
    bare = Machine(name=found["device"], bandwidth=found["bandwidth"], flops=found["flops"])
    ops = forward_ops(model, 1, load)
    beside = content["trunk"]["forward"]["1"]["median"] - bare.total(ops)
    return replace(bare, launch=max(beside, 0.0) / sum(op.launches for op in ops)), model, load


def validate(content: dict[str, Any]) -> dict[str, Any]:
    """Forwards by width, drafting and cycles by head: measured, predicted, and the relative error.

    Of forwards and drafting in seconds, of cycles in plain steps.
    """
    machine, model, load = local_machine(content)
    forwards = [
        entry(found["median"], machine.total(forward_ops(model, int(width), load))) | {"tokens": int(width)}
        for width, found in content["trunk"]["forward"].items()
    ]
    drafts, cycles = [], []
    for cell in content["cells"]:
        if cell["joint"] not in COSTED:
            continue
        head = HeadShape(
            **{name: cell[name] for name in ("joint", "rank", "horizon", "features")},
            **content["sizes"],
            weight_bytes=model.weight_bytes,
        )
        predicted, found = project(model, head, machine, load), cell["greedy"]
        drafts.append(entry(found["draft"]["median"], predicted.drafting) | {"name": cell["name"]})
        cycles.append(entry(found["cost"]["median"], predicted.cost) | {"name": cell["name"]})
    judged = [found["error"] for found in forwards if found["tokens"] != 1]
    return {
        "launch": machine.launch,
        "bandwidth": machine.bandwidth,
        "flops": machine.flops,
        "forwards": forwards,
        "drafts": drafts,
        "cycles": cycles,
        "worst_forward": max(judged, key=abs, default=None),
        "worst_draft": max((found["error"] for found in drafts), key=abs, default=None),
        "worst_cycle": max((found["error"] for found in cycles), key=abs, default=None),
    }


def entry(measured: float, predicted: float) -> dict[str, float]:
    """Both figures, and predicted over measured less one."""
    return {"measured": measured, "predicted": predicted, "error": predicted / measured - 1}
