"""Linear layers whose weights lie in memory in the order in which a CPU reads them.

A forward over a few tokens reads every weight once, so its time is that of memory. torch's product of a few
bfloat16 rows with a large matrix reaches about half the bandwidth of a core; with weights that oneDNN has
packed, which torch's own compiler does for constants, it is nearer to all of it.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Sequence
from types import TracebackType

import torch
from torch import Tensor, nn

from polydraft.compat import can_pack, pack_weight, packed_product

FEW_TOKENS = 8
"""What weights are packed for; products with other numbers of rows are right as well."""

_numbers = itertools.count()
_packed: dict[int, Tensor] = {}
"""Packed weights, which no compiled program can hold, by their numbers, which one can."""

SIGNATURE = "(Tensor x, Tensor number, Tensor? bias, int rows) -> Tensor"


def _packed_linear(x: Tensor, number: Tensor, bias: Tensor | None, rows: int) -> Tensor:  # noqa: ARG001
    """x (..., K) -> x W^T + bias (..., rows), W (rows, K) packed under `number`."""
    return packed_product(x, _packed[int(number)], bias)


def _packed_linear_shape(x: Tensor, number: Tensor, bias: Tensor | None, rows: int) -> Tensor:  # noqa: ARG001
    return x.new_empty(*x.shape[:-1], rows)


torch.library.define("polydraft::packed_linear", SIGNATURE)
torch.library.impl("polydraft::packed_linear", "CPU", _packed_linear)
torch.library.register_fake("polydraft::packed_linear", _packed_linear_shape)


class PackedLinear(nn.Linear):
    """What `Packed` makes of the linear layers for as long as it is entered; forward only."""

    number: Tensor

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name that nn.Linear gives it
        """x W^T + b by the packed weights; with gradients, by the plain ones."""
        if torch.is_grad_enabled() or input.dtype != self.weight.dtype:
            return super().forward(input)
        out: Tensor = torch.ops.polydraft.packed_linear(input, self.number, self.bias, self.out_features)
        return out


class Packed:
    """Context manager: inside, the linear layers of some modules use packed copies of their weights.

    The copies take as much memory as the weights again. Weights that change afterwards are packed again when
    it is entered. Layers that are not in bfloat16 or not on the CPU stay as they are, and so do all where
    oneDNN has no such products.
    """

    def __init__(self, *modules: nn.Module) -> None:
        found = dict.fromkeys(layer for module in modules for layer in module.modules())
        self._layers = [layer for layer in found if isinstance(layer, nn.Linear) and _fits(layer)]
        self._keys: list[object] = []
        self._copies: list[int] = []
        self._depth = 0
        self._refresh()

    def _refresh(self) -> None:
        keys: list[object] = [(layer.weight.data_ptr(), layer.weight._version) for layer in self._layers]
        if keys != self._keys:
            _forget(self._copies)
            self._keys, self._copies = keys, [_pack(layer.weight) for layer in self._layers]
            weakref.finalize(self, _forget, self._copies)

    def __enter__(self) -> Packed:
        self._depth += 1
        if self._depth > 1:
            return self
        self._refresh()
        for layer, number in zip(self._layers, self._copies, strict=True):
            layer.register_buffer("number", torch.tensor([number]), persistent=False)
            layer.__class__ = PackedLinear
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._depth -= 1
        if self._depth:
            return
        for layer in self._layers:
            layer.__class__ = nn.Linear
            del layer.number


def _fits(layer: nn.Linear) -> bool:
    weight = layer.weight
    return (
        type(layer) is nn.Linear
        and weight.dtype == torch.bfloat16
        and weight.device.type == "cpu"
        and can_pack()
    )


def _pack(weight: Tensor) -> int:
    """Pack a copy of W (N, K); its number."""
    number = next(_numbers)
    _packed[number] = pack_weight(weight, FEW_TOKENS)
    return number


def _forget(numbers: Sequence[int]) -> None:
    for number in numbers:
        _packed.pop(number, None)
