"""LoRA adapters inside a base model: added for training, loaded from a folder, switched off and on.

The adapter lives in the model's own modules, beside weights that it never changes: switched off, the model
is the base model to the bit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from polydraft.compat import has_adapter
from polydraft.errors import InputError, first_line
from polydraft.extras import install

ALL_LINEAR = "all-linear"
"""Every linear layer but the unembedding."""


def require_peft() -> None:
    """Check that PEFT is installed.

    Raises:
        InputError: it is not.
    """
    if find_spec("peft") is None:
        raise InputError(f"LoRA adapters need peft: {install('lora')}")


def add_adapter(model: PreTrainedModel, *, rank: int, alpha: float, targets: Sequence[str] = ()) -> None:
    """Put a new LoRA adapter into `model`, W x + (alpha / rank) B A x with B = 0, and freeze all else.

    Args:
        rank: rows of A. targets: endings of the names of the layers to adapt; none for `ALL_LINEAR`.

    Raises:
        InputError: no layer has such a name, or PEFT is missing or older than transformers asks for.
    """
    require_peft()
    from peft import LoraConfig

    config = LoraConfig(
        r=rank,
        lora_alpha=cast(Any, alpha),
        target_modules=list(targets) or ALL_LINEAR,
        task_type="CAUSAL_LM",
    )
    try:
        model.add_adapter(config)
    except ValueError as error:
        names = ", ".join(targets) or ALL_LINEAR
        raise InputError(
            f"no adapter of layers {names} in {type(model).__name__}: {first_line(error)}"
        ) from error
    for parameter in trained_parameters(model):
        parameter.data = parameter.data.float()  # PEFT makes them in the dtype of the layer they adapt


def trained_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters of `model` that want a gradient."""
    return [p for p in model.parameters() if p.requires_grad]


def load_adapter(model: PreTrainedModel, folder: Path) -> None:
    """Load an adapter into `model`, in the model's dtype, switched on and frozen.

    Raises:
        InputError: the folder holds none that fits, or PEFT is missing.
    """
    require_peft()
    if not (folder / "adapter_config.json").is_file():
        raise InputError(f"no adapter at {str(folder)!r}: give a folder with an adapter_config.json")
    try:
        found = model.load_adapter(str(folder))
    except (ValueError, RuntimeError, OSError) as error:
        raise InputError(f"cannot load the adapter {str(folder)!r}: {first_line(error)}") from error
    if wrong := sorted({*found.missing_keys, *(str(key) for key in found.mismatched_keys)}):
        raise InputError(f"the adapter {str(folder)!r} does not fit this model: {wrong[0]}")
    for value in adapter_state(model).values():
        value.data = value.data.to(model.dtype)


def read_adapter(model: PreTrainedModel, folder: Path) -> None:
    """Fill the adapter that `model` has from one of the same form, without a change of dtype."""
    from peft import set_peft_model_state_dict

    stored = load_file(folder / "adapter_model.safetensors")
    found: Any = set_peft_model_state_dict(model, stored)
    assert not found.unexpected_keys


def adapter_state(model: PreTrainedModel) -> dict[str, Tensor]:
    """The adapter's own tensors by name, none where the model has no adapter."""
    if not has_adapter(model):
        return {}
    return {name: value for name, value in model.named_parameters() if ".lora_" in name}


def adapter_fingerprint(model: PreTrainedModel) -> str | None:
    """Hash of the signs of the adapter's weights, which rounding keeps; None without an adapter."""
    if not has_adapter(model):
        return None
    digest = hashlib.sha256()
    for name, value in sorted(adapter_state(model).items()):
        digest.update(name.encode())
        digest.update(value.detach().signbit().cpu().numpy().tobytes())
    return digest.hexdigest()[:32]


class AdapterSwitch:
    """Switches a model's adapter off and on; off, the model is the base model to the bit.

    Which of its weights want a gradient is left as it is.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        require_peft()
        from peft.tuners.tuners_utils import BaseTunerLayer

        self._layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]

    def set(self, *, on: bool) -> None:
        """Switch the adapter, for good."""
        flags = [(p, p.requires_grad) for layer in self._layers for p in layer.parameters()]
        for layer in self._layers:
            layer.enable_adapters(enabled=on)
        for parameter, wanted in flags:  # PEFT trains what is switched on
            parameter.requires_grad_(wanted)

    def off(self) -> AbstractContextManager[None]:
        """Off for a while, then on."""
        return self._held(on=False)

    def on(self) -> AbstractContextManager[None]:
        """On for a while, then off."""
        return self._held(on=True)

    @contextmanager
    def _held(self, *, on: bool) -> Iterator[None]:
        self.set(on=on)
        try:
            yield
        finally:
            self.set(on=not on)
