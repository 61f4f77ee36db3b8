"""What the new tokens of a forward may see of a slot cache: rows of different lengths, and trees."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def slot_mask(
    lengths: Sequence[int],
    width: int,
    *,
    device: torch.device,
    window: int | None = None,
    parents: Sequence[Sequence[int]] | None = None,
) -> Tensor:
    """What each of `width` new tokens of each row may see; (B, 1, width, max length + width) bool, by slot.

    Token i of row b lies in slot lengths[b] + i. It sees the slots before lengths[b], and of the new ones
    itself and those before it, or, in a tree, itself and its ancestors; of all these, with a `window`,
    those less than that many positions back.

    Args:
        parents: (B, width), of each token of a tree the index of its parent, -1 for none.
    """
    starts = torch.tensor(list(lengths), device=device)[:, None, None]
    end = max(lengths) + width
    slots = torch.arange(end, device=device)
    if parents is None:
        places = starts + torch.arange(width, device=device)[:, None]
        seen = slots <= places
        depths = places
        at = slots.expand(len(lengths), 1, end)
    else:
        related = torch.tensor([ancestry(row) for row in parents], device=device)
        seen = (slots < starts).expand(-1, width, -1).clone()
        depths = starts + torch.tensor([tree_depths(row) for row in parents], device=device)[:, :, None]
        at = slots.repeat(len(lengths), 1)[:, None]
        for row, length in enumerate(lengths):
            seen[row, :, length : length + width] = related[row]
            at[row, 0, length : length + width] = depths[row, :, 0]
    if window is not None:
        seen = seen & (at > depths - window)
    return seen[:, None]


def tree_depths(parents: Sequence[int]) -> list[int]:
    """Depth of every node, 0 for those without a parent; parents come before their children."""
    depths: list[int] = []
    for parent in parents:
        depths.append(0 if parent < 0 else depths[parent] + 1)
    return depths


def ancestry(parents: Sequence[int]) -> list[list[bool]]:
    """Entry [i][j]: whether node j is i or an ancestor of i."""
    out: list[list[bool]] = []
    for node, parent in enumerate(parents):
        row = list(out[parent]) if parent >= 0 else [False] * len(parents)
        row[node] = True
        out.append(row)
    return out
