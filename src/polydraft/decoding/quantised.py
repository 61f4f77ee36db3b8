"""Layers that quantise activations by what the whole forward holds: a token's numbers depend on the others.

Drafts are part of the forward that verifies them, so with such layers the text would depend on what was
drafted. Scales per token, or fixed beforehand, are no hindrance.
"""

from __future__ import annotations

from typing import Any

from torch import nn

TOGETHER = ("torch.ao.nn.quantized.dynamic", "torch.ao.nn.intrinsic.quantized.dynamic")
"""Packages of layers with one scale for all of their input."""


def quantised_together(model: nn.Module) -> str | None:
    """The first layer of `model` that quantises all tokens of a forward together, by name; None for none."""
    for name, module in model.named_modules():
        if _together(module) or any(_weight_asks(weight) for weight in module.parameters(recurse=False)):
            return f"{name} ({type(module).__module__}.{type(module).__name__})"
    return None


def _together(module: Any) -> bool:
    """Torch's dynamic layers; LLM.int8, whose outliers are columns of the whole input; compressed-tensors."""
    if any(kind.__module__.startswith(TOGETHER) for kind in type(module).__mro__):
        return True
    if type(module).__name__ == "Linear8bitLt":
        return float(module.state.threshold) > 0
    inputs = getattr(getattr(module, "quantization_scheme", None), "input_activations", None)
    return inputs is not None and inputs.dynamic is True and inputs.strategy == "tensor"


def _weight_asks(weight: Any) -> bool:
    """Whether a weight of torchao has its input quantised by one scale that is found at each forward."""
    asked = getattr(weight, "act_quant_kwargs", None)
    fixed = getattr(weight, "act_quant_scale", None) is not None
    return asked is not None and not fixed and type(asked.granularity).__name__ == "PerTensor"
