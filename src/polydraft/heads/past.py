"""What chains of drafts see of the texts they go on from: keys and values, one copy of them for each text."""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor


class Memory(NamedTuple):
    """What a block remembers of whole texts.

    Attributes:
        keys, values: (B, H, T, D), keys with their positions applied. position_ids: (B, T) of packed rows,
            whose documents see nothing of each other; None where the token in slot t is at position t.
    """

    keys: Tensor
    values: Tensor
    position_ids: Tensor | None = None

    def at(self, rows: Tensor, places: Tensor) -> Past:
        """The past of P chains, chain i after slot `places[i]` of text `rows[i]`; (P,) int64 each."""
        return Past(self, rows, places)


class Layout(NamedTuple):
    """Chains side by side, text by text: A a text at most.

    Attributes:
        keys, values: (G, H, T, D), of the texts that have chains. group, slot: (P,), the text and the place
            there of each chain. seen: (G, 1, A, 1, T) bool, the slots each may look at.
    """

    keys: Tensor
    values: Tensor
    group: Tensor
    slot: Tensor
    seen: Tensor

    def spread(self, chains: Tensor) -> Tensor:
        """(P, H, R, ...) -> (G, H, A, R, ...), zeros where a text has fewer chains."""
        out = chains.new_zeros(self.seen.shape[0], self.seen.shape[2], *chains.shape[1:])
        out[self.group, self.slot] = chains
        return out.transpose(1, 2)

    def gather(self, spread: Tensor) -> Tensor:
        """The way back; (G, H, A, R, ...) -> (P, H, R, ...)."""
        return spread.transpose(1, 2)[self.group, self.slot]


class Past:
    """What P chains see: their text up to where they begin, and none of the other documents of its row.

    Args:
        memory: of B texts. rows, places: as of `Memory.at`.

    Attributes:
        positions: (P,), of the tokens the chains go on from.
    """

    def __init__(self, memory: Memory, rows: Tensor, places: Tensor) -> None:
        self._memory, self._rows, self._places = memory, rows, places
        ids = memory.position_ids
        self.positions = places if ids is None else ids[rows, places]

    def part(self, index: Tensor | slice) -> Past:
        """Some of the chains; nothing of their texts is copied."""
        return Past(self._memory, self._rows[index], self._places[index])

    @cached_property
    def _layout(self) -> Layout:
        memory, places = self._memory, self._places
        used, group = self._rows.unique(return_inverse=True)
        count = group.bincount(minlength=len(used))
        order = group.argsort(stable=True)
        slot = torch.empty_like(group)
        first = count.cumsum(0) - count
        slot[order] = torch.arange(len(group), device=group.device) - first[group[order]]
        end = int(places.max()) + 1
        keys, values = memory.keys[:, :, :end], memory.values[:, :, :end]
        if len(used) < len(keys):
            keys, values = keys[used], values[used]
        slots = torch.arange(end, device=places.device)
        own = (slots <= places[:, None]) & (slots >= (places - self.positions)[:, None])
        seen = own.new_zeros(len(used), int(count.max()), end)
        seen[group, slot] = own
        return Layout(keys, values, group, slot, seen[:, None, :, None])

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, *, scale: float) -> Tensor:
        """Attention of one token of each chain over its text and over the chain itself.

        Args:
            queries: (P, H R, D), R of them for each of H keys. keys, values: (P, H, s, D), of the chain, that
                of the token itself the last.

        Returns:
            (P, H R, D).
        """
        layout, (count, heads, _, size) = self._layout, keys.shape
        queries = queries.reshape(count, heads, -1, size)
        spread = layout.spread(queries)
        chains, each = spread.shape[2:4]
        text = spread.flatten(2, 3) @ layout.keys.transpose(-1, -2)
        text = text.unflatten(2, (chains, each)).masked_fill(~layout.seen, -torch.inf)
        own = layout.spread(queries @ keys.transpose(-1, -2))
        weights = (scale * torch.cat([text, own], -1).float()).softmax(-1).to(values.dtype)
        end = text.shape[-1]
        out = weights[..., :end].flatten(2, 3) @ layout.values
        out = layout.gather(out.unflatten(2, (chains, each)))
        out = out + layout.gather(weights[..., end:]) @ values
        return out.flatten(1, 2)
