"""A cache in which every row of a batch has its own length, and a draft is taken back by not counting it.

The token at position p of a row lies in slot p of that row: prompts are padded on the right, never on the
left. A forward over w tokens writes the w slots after each row's length; what is kept of them counts, the
rest is overwritten by the next forward. So rows may accept different numbers of drafts, nothing is ever
cropped, and a sliding window is a matter of the mask.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicLayer, DynamicSlidingWindowLayer

from polydraft.compat import CACHE
from polydraft.errors import InputError

GROWTH = 256
"""Slots are added in multiples of this."""
SHARING = "DummyLayer"
"""The class of layers without states, which not every supported transformers has."""


class SlotLayer(CacheLayerMixin):
    """Keys and values of one layer, (B, H, S, D) each; `window` is the layer's sliding window or None."""

    def __init__(self, slots: SlotCache, window: int | None = None) -> None:
        super().__init__()
        self._slots = slots
        self.window = window
        self.is_sliding = window is not None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Make room for the first forward; zeros, since what is masked must still be finite."""
        size = self._slots.capacity
        self.keys = key_states.new_zeros(*key_states.shape[:2], size, key_states.shape[-1])
        self.values = value_states.new_zeros(*value_states.shape[:2], size, value_states.shape[-1])
        self.is_initialized = True

    def open_like(self, other: SlotLayer, *, rows: int) -> None:
        """Make room as in another layer, if nothing has been written yet."""
        if not self.is_initialized:
            assert other.keys is not None and other.values is not None
            nothing = (states[:1, :, :0].expand(rows, -1, -1, -1) for states in (other.keys, other.values))
            self.lazy_initialization(*nothing)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write (B, H, w, D) after each row's length; all slots up to the longest row's last one."""
        width = key_states.shape[-2]
        end = self._slots.reserve(width)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.grow()
        assert self.keys is not None and self.values is not None
        start = self._slots.shared_length
        if start is not None:
            self.keys[:, :, start:end] = key_states
            self.values[:, :, start:end] = value_states
        else:
            rows, places = self._slots.places(width, device=self.keys.device)
            self.keys.transpose(1, 2)[rows, places] = key_states.transpose(1, 2)
            self.values.transpose(1, 2)[rows, places] = value_states.transpose(1, 2)
        return self.keys[:, :, :end], self.values[:, :, :end]

    def grow(self) -> None:
        """Make the room that the cache has reserved."""
        assert self.keys is not None and self.values is not None
        if self.keys.shape[-2] < self._slots.capacity:
            self.keys, self.values = (_longer(x, self._slots.capacity) for x in (self.keys, self.values))

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the sizes of a cache without a window; the mask leaves out what lies beyond it."""
        return max(self._slots.lengths) + query_length, 0

    def get_seq_length(self) -> int:
        """Return the length of the longest row."""
        return max(self._slots.lengths)

    def get_max_length(self) -> int:
        """None."""
        return -1


class SlotCache(Cache):
    """Slots for B rows.

    Args:
        windows: per layer its sliding window, None for full attention.
        rows: B.

    Attributes:
        lengths: per row how many tokens it holds.
    """

    def __init__(self, windows: Sequence[int | None], *, rows: int) -> None:
        self.lengths = [0] * rows
        self.capacity = 0
        self._places: tuple[Any, tuple[Tensor, Tensor]] | None = None
        itself = cast(SlotCache, weakref.proxy(self))  # no cycle: the states go with the last reference
        self._own = [SlotLayer(itself, window) for window in windows]
        super().__init__(layers=cast(Any, self._own))

    @property
    def shared_length(self) -> int | None:
        """The length of all rows, None if they differ."""
        return self.lengths[0] if len(set(self.lengths)) == 1 else None

    def reserve(self, width: int) -> int:
        """Make room for a forward over `width` tokens; the end of the slots it may use."""
        end = max(self.lengths) + width
        if end >= self.capacity:  # never all of it: compiled programs tell the two sizes apart
            wanted = max(end + 1, 2 * self.capacity)
            self.capacity = (wanted + GROWTH - 1) // GROWTH * GROWTH
        return end

    def places(self, width: int, *, device: torch.device) -> tuple[Tensor, Tensor]:
        """Index of the slots a forward writes: rows (B, 1), slots (B, width)."""
        key = (tuple(self.lengths), width, device)
        if self._places is None or self._places[0] != key:
            starts = torch.tensor(self.lengths, device=device)[:, None]
            rows = torch.arange(len(self.lengths), device=device)[:, None]
            self._places = (key, (rows, starts + torch.arange(width, device=device)))
        return self._places[1]

    def room(self, index: int, width: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer that has been written to, with room for `width` tokens more."""
        self.reserve(width)
        layer = self._own[index]
        layer.grow()
        assert layer.keys is not None and layer.values is not None
        return layer.keys, layer.values

    def keep(self, paths: Sequence[Sequence[int]]) -> None:
        """Count what stays of the last forward.

        Args:
            paths: per row the indices of the tokens that stay, ascending; they are moved together.
        """
        rows, sources, targets = [], [], []
        for row, (length, path) in enumerate(zip(self.lengths, paths, strict=True)):
            for target, source in enumerate(path):
                if source != target:
                    rows.append(row)
                    sources.append(length + source)
                    targets.append(length + target)
        if rows:
            self._move(torch.tensor([rows, sources, targets]))
        self.lengths = [length + len(path) for length, path in zip(self.lengths, paths, strict=True)]

    def _move(self, moves: Tensor) -> None:
        """Copy states from slot to slot in every layer; (3, M): rows, sources, targets.

        The indices are brought to a device once, not for each layer: a GPU would wait every time.
        """
        on: dict[torch.device, Tensor] = {}
        for layer in self._own:
            assert layer.keys is not None and layer.values is not None
            device = layer.keys.device
            if device not in on:
                on[device] = moves.to(device)
            rows, sources, targets = on[device]
            for states in (layer.keys, layer.values):
                states[rows, :, targets] = states[rows, :, sources]

    def select(self, rows: Sequence[int]) -> None:
        """Go on with `rows` alone."""
        self.lengths = [self.lengths[row] for row in rows]
        for layer in self._own:
            if layer.is_initialized:
                assert layer.keys is not None and layer.values is not None
                layer.keys, layer.values = layer.keys[list(rows)], layer.values[list(rows)]

    def join(self, other: SlotCache) -> None:
        """Take in the rows of another cache of the same model, after the present ones."""
        self.capacity = other.capacity = max(self.capacity, other.capacity)
        for own, new in zip(self._own, other._own, strict=True):
            known = own if own.is_initialized else new
            if not known.is_initialized:
                continue
            for layer, slots in ((own, self), (new, other)):
                layer.open_like(known, rows=len(slots.lengths))
                layer.grow()
            for name in ("keys", "values"):
                setattr(own, name, torch.cat([getattr(own, name), getattr(new, name)]))
        self.lengths = self.lengths + other.lengths

    def take(self, cache: DynamicCache) -> None:
        """Begin with what `cache` holds; for one row.

        Raises:
            InputError: it was made for another model.
        """
        length = cache.get_seq_length()
        if not length:
            return
        if len(cache.layers) < len(self._own):
            raise InputError(f"{CACHE} is of another model: leave it out, or give this model's own")
        self.lengths = [length] * len(self.lengths)
        self.reserve(0)
        for own, layer in zip(self._own, cast(Any, cache.layers), strict=False):
            own.lazy_initialization(layer.keys, layer.values)
            assert own.keys is not None and own.values is not None
            held = layer.keys.shape[-2]  # a sliding layer has dropped what no later token can see
            own.keys[:, :, length - held : length] = layer.keys
            own.values[:, :, length - held : length] = layer.values

    def give(self, cache: DynamicCache) -> None:
        """Leave in `cache` what plain decoding would have left there; for one row."""
        length = self.lengths[0]
        if len(cache.layers) < len(self._own):
            cache.layers += [DynamicLayer() for _ in range(len(self._own) - len(cache.layers))]
        for own, layer in zip(self._own, cast(Any, cache.layers), strict=False):
            if not own.is_initialized:
                continue
            assert own.keys is not None and own.values is not None
            first = 0
            if isinstance(layer, DynamicSlidingWindowLayer):
                layer.cumulative_length = length
                first = max(length - layer.sliding_window + 1, 0)
            if not layer.is_initialized:
                layer.lazy_initialization(own.keys, own.values)
            layer.keys, layer.values = own.keys[:, :, first:length], own.values[:, :, first:length]


def layer_windows(config: PreTrainedConfig) -> list[int | None]:
    """The sliding window of every layer that keeps states, None for full attention.

    The last layers of some models share those of earlier ones and keep none.

    Raises:
        InputError: a layer keeps anything but keys and values; named.
    """
    windows: list[int | None] = []
    for layer in DynamicCache(config=config).layers:
        if type(layer) is DynamicSlidingWindowLayer:
            windows.append(int(layer.sliding_window))
        elif type(layer) is DynamicLayer:
            windows.append(None)
        elif type(layer).__name__ != SHARING:
            raise InputError(
                f"the model keeps {type(layer).__name__} states, which cannot be taken back after a refused "
                "draft: call plain model.generate"
            )
    return windows


def _longer(states: Tensor, size: int) -> Tensor:
    """(B, H, S, D) padded with zeros up to `size` slots."""
    out = states.new_zeros(*states.shape[:2], size, states.shape[-1])
    out[:, :, : states.shape[-2]] = states
    return out
