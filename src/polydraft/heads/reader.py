"""How a head follows texts that grow: the decoding loop's view of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from polydraft.heads.past import Memory
from polydraft.joint import JointDistribution
from polydraft.slots import SlotCache, SlotLayer

if TYPE_CHECKING:
    from polydraft.heads.draft_head import DraftHead


def slot_memory(slots: SlotCache) -> Memory:
    """What the one layer of `slots` has written; no copy."""
    layer = slots.layers[0]
    assert isinstance(layer, SlotLayer)
    assert layer.keys is not None and layer.values is not None
    return Memory(layer.keys, layer.values)


class ContextReader:
    """Reads B texts as they grow, each by as many positions as it has grown, and gives the next joint.

    Every position read is one that stays: the base model has verified it, and knows the token after it.
    So what the block remembers needs no rollback.

    Args:
        rows: B.
    """

    def __init__(self, head: DraftHead, *, rows: int = 1) -> None:
        self._head = head
        self._slots = None if head.block is None else SlotCache([None], rows=rows)
        self._waiting: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(rows)]

    def tell(self, hidden: Sequence[Tensor], next_tokens: Sequence[Tensor]) -> None:
        """Take what each row has grown by: states (k_b, D) and the token after each (k_b,).

        Nothing is computed before a joint is asked for.
        """
        for waiting, states, tokens in zip(self._waiting, hidden, next_tokens, strict=True):
            if self._slots is None:
                waiting.clear()  # a head without a block reads the last position alone
                states, tokens = states[-1:], tokens[-1:]
            if len(tokens):
                waiting.append((states, tokens))

    def joint(self) -> JointDistribution:
        """The joints after all that was told, batched; every row must have grown since the last time."""
        parts = [_whole(waiting) for waiting in self._waiting]
        self._waiting = [[] for _ in parts]
        hidden, tokens = _padded(parts)
        if self._slots is None:
            return self._head.forward(hidden[:, -1], tokens[:, -1])
        slots = self._slots
        sizes = [len(after) for _, after in parts]
        features = self._read(slots, hidden, tokens, sizes)
        last = [size - 1 for size in sizes]
        rows = list(range(len(sizes)))
        past = None
        if self._head.config.recurrent:
            device = features.device
            places = torch.tensor(slots.lengths, device=device) - 1
            past = slot_memory(slots).at(torch.arange(len(rows), device=device), places)
        return self._head.joint(features[rows, last], tokens[rows, last], past)

    def catch_up(self) -> None:
        """Read now all but the last position of each row, so that the next joint has little to read."""
        if self._slots is None:
            return
        parts = [_whole(waiting) for waiting in self._waiting]
        sizes = [len(after) - 1 for _, after in parts]
        if max(sizes) > 0:
            early = [(states[:-1], after[:-1]) for states, after in parts]
            self._read(self._slots, *_padded(early), sizes)
        self._waiting = [[(states[-1:], after[-1:])] for states, after in parts]

    def join(self, other: ContextReader) -> None:
        """Read the texts of another reader of the same head too."""
        self._waiting += other._waiting
        if self._slots is not None and other._slots is not None:
            self._slots.join(other._slots)

    def _read(self, slots: SlotCache, hidden: Tensor, tokens: Tensor, sizes: Sequence[int]) -> Tensor:
        """Features (B, T, d) of what `sizes` of each row are new; the block remembers those."""
        features = self._head.features(hidden, tokens, cache=slots)
        slots.keep([range(size) for size in sizes])
        return features

    def select(self, rows: Sequence[int]) -> None:
        """Go on with `rows` alone."""
        self._waiting = [self._waiting[row] for row in rows]
        if self._slots is not None:
            self._slots.select(rows)


def _whole(waiting: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """States (k, D) and the tokens after them (k,) of one row, in one piece."""
    if len(waiting) == 1:
        return waiting[0]
    return torch.cat([states for states, _ in waiting]), torch.cat([after for _, after in waiting])


def _padded(parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return the states (B, T, D) and tokens (B, T) of all rows, padded at the end."""
    if len(parts) == 1:
        return parts[0][0][None], parts[0][1][None]
    hidden = pad_sequence([states for states, _ in parts], batch_first=True)
    return hidden, pad_sequence([after for _, after in parts], batch_first=True)
