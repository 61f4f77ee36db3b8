"""A device that is not there: tensors say they are elsewhere, and refuse what a GPU's tensors refuse.

Their numbers are kept on the CPU, so whole generations and training steps run, with the values they would
have there. An operation on tensors of two devices raises as CUDA's does, and every transfer that a GPU would
have to wait for is counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from transformers import PreTrainedModel

from polydraft.heads import DraftHead
from tests.tiny import tiny_head, tiny_model

DEVICE = torch.device("lazy")
"""The only kind besides "cpu" and "meta" that gradients take in a torch without CUDA."""

aten = torch.ops.aten
COPIES = {aten._to_copy.default, aten.copy_.default}
"""Between devices."""
INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._unsafe_index.Tensor}
"""Take indices from the CPU, which are copied."""
SHAPED = {
    aten.nonzero.default,
    aten.masked_select.default,
    aten.bincount.default,
    aten._unique2.default,
    aten.unique_consecutive.default,
    aten.repeat_interleave.Tensor,
}
"""Whose result has a shape that depends on values, so that the CPU waits for it."""
VALUES = {aten._local_scalar_dense.default, aten.equal.default, aten.is_nonzero.default}
"""That hand numbers to Python."""


class There(Tensor):
    """A tensor elsewhere; `inner` has its numbers."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> There:
        out = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=DEVICE,
        )
        assert isinstance(out, There)
        out.inner = inner
        return out

    def tolist(self) -> Any:
        """By way of the CPU, as on a GPU."""
        return self.cpu().tolist()

    def numpy(self, **_: Any) -> Any:
        """Refused, as on a GPU."""
        raise TypeError(f"can't convert a tensor of device {DEVICE} to numpy: copy it to the CPU first")

    def __repr__(self, **_: Any) -> str:
        return f"There({self.inner!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func} on tensors that are elsewhere, outside `Elsewhere`")


class Elsewhere(TorchDispatchMode):
    """Context in which there is such a device.

    Attributes:
        reads: how often a GPU would have to be waited for, since Python asks for a value or a shape; by
            operation.
        writes: how often numbers were copied to the device from Python or from the CPU, which waits too.
    """

    def __init__(self) -> None:
        super().__init__()
        self.reads: Counter[str] = Counter()
        self.writes: Counter[str] = Counter()

    def clear(self) -> None:
        """Count from zero."""
        self.reads.clear()
        self.writes.clear()

    def __enter__(self) -> Elsewhere:
        self._lifting = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)  # what `torch.tensor` makes then comes here to be moved
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        torch._C._set_only_lift_cpu_tensors(self._lifting)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        to = kwargs.get("device")
        if to is None:
            ends_there = _any_there((args, kwargs))
        else:
            ends_there = torch.device(to).type == DEVICE.type
            kwargs["device"] = torch.device("cpu") if ends_there else to
        if ends_there:
            _check_generator(func, (args, kwargs))
        if func in COPIES:
            target = isinstance(args[0], There) if func is aten.copy_.default else ends_there
            self._count_copy(func, target=target, source=_any_there(args[1:] or args))
        elif _any_there((args, kwargs)):
            _check_devices(func, args, kwargs)
            self._count_waits(func, args)
        plain = tree_map(lambda leaf: leaf.inner if isinstance(leaf, There) else leaf, (args, kwargs))
        found = func(*plain[0], **plain[1])
        if not ends_there or func in VALUES:
            return found
        out = tree_map(lambda leaf: There(leaf) if isinstance(leaf, Tensor) else leaf, found)
        return _written(func, args, kwargs, out)

    def _count_copy(self, func: Any, *, target: bool, source: bool) -> None:
        if source != target:
            (self.writes if target else self.reads)[_name(func)] += 1

    def _count_waits(self, func: Any, args: Any) -> None:
        if func in SHAPED | VALUES:
            self.reads[_name(func)] += 1
        if func in INDEXED:
            for index in _tensors(args[1]):
                if not isinstance(index, There):
                    self.writes[f"{_name(func)}, its index"] += 1
                elif index.dtype == torch.bool:
                    self.reads[f"{_name(func)} by a mask"] += 1


def _name(func: Any) -> str:
    return str(func).removeprefix("aten.")


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _any_there(tree: Any) -> bool:
    return any(isinstance(tensor, There) for tensor in _tensors(tree))


def _check_generator(func: Any, given: Any) -> None:
    """A generator belongs to one device, and makes no numbers for another."""
    for leaf in tree_leaves(given):
        if isinstance(leaf, torch.Generator):
            raise RuntimeError(f"{func}: expected a generator of {DEVICE}, not of {leaf.device}")  # noqa: TRY004


def _check_devices(func: Any, args: Any, kwargs: Any) -> None:
    """All tensors on the device, but for single numbers, and for indices into a tensor that is."""
    rest = (args[0], args[2:]) if func in INDEXED else (args, kwargs)
    strays = [tensor for tensor in _tensors(rest) if not isinstance(tensor, There) and tensor.dim()]
    if strays:
        raise RuntimeError(
            f"{func}: expected all tensors on {DEVICE}, found {[(tuple(t.shape), t.device) for t in strays]}"
        )


def _written(func: Any, args: Any, kwargs: Any, out: Any) -> Any:
    """`out`, but the very tensors that an operation in place was given."""
    returns = func._schema.returns
    if not any(part.alias_info is not None and part.alias_info.is_write for part in returns):
        return out
    names = {argument.name: argument for argument in func._schema.arguments}
    given = dict(zip(names, args, strict=False)) | kwargs
    written = [
        given[name]
        for name, argument in names.items()
        if argument.alias_info is not None and argument.alias_info.is_write
    ]
    return written[0] if len(returns) == 1 else tuple(written)


class Drafter(NamedTuple):
    """A model, and a head attached to it."""

    model: PreTrainedModel
    head: DraftHead


def pair(kind: str = "llama", *, model: dict[str, Any] | None = None, **head: Any) -> tuple[Drafter, Drafter]:
    """The same tiny model and head twice: on the CPU, and elsewhere.

    Args:
        model: of `tiny_model`. head: of `tiny_head`.
    """
    models = [tiny_model(kind, **model or {}) for _ in range(2)]
    here, moved = (Drafter(one, tiny_head(one, **head)) for one in models)
    with Elsewhere():
        cast(Any, moved.model).to(DEVICE)
        moved.head.attach(moved.model)
    return here, moved


def there(tensor: Tensor) -> Tensor:
    """Moved to the device; inside `Elsewhere`."""
    return tensor.to(DEVICE)


def back(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Moved to the CPU; inside `Elsewhere`. All must have been on the device."""
    assert all(isinstance(tensor, There) for tensor in tensors)
    return [tensor.cpu() for tensor in tensors]
