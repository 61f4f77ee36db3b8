"""The layers of a model, compiled: one program for all layers that are built alike, whatever the width.

A layer is compiled as a function of itself, so that its weights are arguments, and what is compiled for the
first layer serves all others: seconds where the whole model would take minutes. New tokens, context and rows
are symbols of the program, not constants.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from polydraft.compat import mark_size_dynamic, tensors_within
from polydraft.slots import SlotCache

SLOTS = "<slots>"
"""Stands for the cache among the arguments of a layer."""
VARIANTS = 64
"""Programs of one model, at most: kinds of layer times one or more tokens."""


class SlotView:
    """What a layer sees of its cache inside the program: its own slots, and where the new tokens lie."""

    is_compileable = True

    def __init__(self, keys: Tensor, values: Tensor, rows: Tensor, places: Tensor, end: int) -> None:
        self._keys, self._values = keys, values
        self._rows, self._places, self._end = rows, places, end

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write keys and values as `SlotLayer.update` does."""
        self._keys.transpose(1, 2)[self._rows, self._places] = key_states.transpose(1, 2)
        self._values.transpose(1, 2)[self._rows, self._places] = value_states.transpose(1, 2)
        return self._keys[:, :, : self._end], self._values[:, :, : self._end]


def layer_forward(
    layer: nn.Module,
    states: tuple[Tensor, Tensor],
    where: tuple[Tensor, Tensor],
    mask: Tensor,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """The forward of `layer`, with a `SlotView` for the cache; this is what is compiled.

    Args:
        states: keys and values (B, H, S, D), written in place. where: rows (B, 1), slots (B, w).
        mask: (B, 1, w, S'), of the first S' slots.
    """
    view = SlotView(*states, *where, mask.shape[-1])

    def filled(given: Any) -> Any:
        return view if isinstance(given, str) and given == SLOTS else given

    forward: Any = type(layer).forward
    return forward(layer, *map(filled, args), **{name: filled(given) for name, given in kwargs.items()})


class CompiledLayers:
    """Context manager: inside, forwards of a model with a `SlotCache` and a mask run its layers compiled.

    Args:
        layers: those of the model, in the order of the cache, which must have been written to.

    Attributes:
        symbols: of a warm-up: what of the next forwards is to become symbols.
    """

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        self._layers = list(layers)
        self._program = torch.compile(layer_forward)
        self.symbols: Symbols | None = None

    def __enter__(self) -> CompiledLayers:
        for index, layer in enumerate(self._layers):
            layer.__dict__["forward"] = _Forward(self, layer, index)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for layer in self._layers:
            del layer.__dict__["forward"]

    def run(self, layer: nn.Module, index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The forward of the layer at `index`."""
        given = [*args, *kwargs.values()]
        slots = next(one for one in given if isinstance(one, SlotCache))
        mask = next(one for one in given if isinstance(one, Tensor) and one.dim() == 4)
        states = slots.room(index, mask.shape[-2])
        where = slots.places(mask.shape[-2], device=mask.device)
        args = tuple(SLOTS if one is slots else one for one in args)
        kwargs = {name: SLOTS if one is slots else one for name, one in kwargs.items()}
        if self.symbols is not None:
            self.symbols.mark((states, where, mask, args, kwargs))
        return self._program(layer, states, where, mask, args, kwargs)


class _Forward:
    """The forward of one layer, while `CompiledLayers` is entered."""

    def __init__(self, owner: CompiledLayers, layer: nn.Module, index: int) -> None:
        self._owner, self._layer, self._index = owner, layer, index

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._owner.run(self._layer, self._index, args, kwargs)


class Symbols(NamedTuple):
    """Sizes that stand for others, of the forward that a program is made from.

    Attributes:
        rows: B, the first size of a tensor. sizes: tokens, context and slots, further ones.
    """

    rows: int
    sizes: frozenset[int]

    def mark(self, given: Any) -> None:
        """Tell the compiler, for all tensors within `given`; sizes of 1 stay constants."""
        for tensor in tensors_within(given):
            for dim, size in enumerate(tensor.shape):
                if size > 1 and (size in self.sizes if dim else size == self.rows):
                    mark_size_dynamic(tensor, dim)
