"""Verification of sampled trees: exact, with at most one drawn child at each node and any number chosen.

At a node with base model's row p, drawn child y ~ q and chosen children S:

    y is kept with probability min(1, p(y) / q(y)), and the walk goes on after it;
    else the next token x comes from the residual max(0, p - q), normalised;
    x in S: x is kept, and the walk goes on after it; otherwise it ends with x.

The first two lines alone are rejection sampling (`decoding.verify`): x or y is distributed as p whatever q
is. The third costs nothing: what was to be emitted anyway happens to be in the tree. A child is kept with
probability sum_x min(p, q) + sum_{x in S} max(0, p - q).

It holds where, given all that the walk depended on before, y is distributed as q: S and q may depend on
anything but y.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from polydraft.decoding.tree import DraftTree
from polydraft.decoding.verify import Settle, draw, happens, never_ends, ratio, residual


def verify_tree(
    target_row: Callable[[int], Tensor],
    drafts: Sequence[int],
    tree: DraftTree,
    draft_ids: Tensor,
    *,
    generator: torch.Generator | None = None,
    settle: Settle = never_ends,
) -> tuple[list[int], int | None]:
    """See the module's docstring.

    Args:
        target_row: column -> p after node `column` - 1, after the pending token for 0, probabilities (V,);
            asked once for each column on the way.
        drafts: base token ids of the nodes of `tree`, which was grown by `draw_tree`.
        draft_ids: (V',) base ids of the draft vocabulary. settle: see `Settle`.

    Returns:
        the nodes kept, and the token after them, None where the text ends with them.
    """
    assert tree.log_rows is not None
    path: list[int] = []
    while True:
        at = path[-1] if path else -1
        target = target_row(at + 1)
        children = [node for node, parent in enumerate(tree.parents) if parent == at]
        drawn = next((node for node in children if node in tree.drawn), None)
        kept = None
        if drawn is not None:
            row = tree.log_rows[tree.drawn.index(drawn)].exp()
            chance = ratio(float(target[drafts[drawn]]), float(row[tree.tokens[drawn]]))
            if happens(chance, generator, target.device):
                kept = drawn
            else:
                target = residual(target, row, draft_ids)
        if kept is None:
            token = draw(target, generator)
            kept = next((node for node in children if node != drawn and drafts[node] == token), None)
            if kept is None:
                return path, token
        path.append(kept)
        if settle(kept):
            return path, None
