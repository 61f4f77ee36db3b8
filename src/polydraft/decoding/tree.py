"""Draft trees: several continuations at once, checked together by one forward of the base model.

Trees for greedy decoding hold the likeliest prefixes: node x_1..x_s has score log q(x_1..x_s), and the N best
of all make up the tree, whose shape so differs from cycle to cycle. A node's score is never above its
parent's, so the N best hang together.

Trees for sampling are in `tree_drawn`, their verification in `tree_verify`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from polydraft.joint import JointDistribution, Warp, drawable, select_state


class DraftTree(NamedTuple):
    """The drafts of one row of a batch: m nodes, parents before their children.

    Attributes:
        tokens: (m,) int64, of the draft vocabulary; siblings differ.
        parents: m, the node before each, -1 for the pending token.
        drawn: the nodes that were drawn, ascending, at most one child of each node; others were chosen.
        log_rows: (len(drawn), V') log q, what those were drawn from, normalised; None in greedy trees.
    """

    tokens: Tensor
    parents: tuple[int, ...]
    drawn: tuple[int, ...] = ()
    log_rows: Tensor | None = None


class Level(NamedTuple):
    """w nodes of each row of a batch, and what the joint says after them.

    Attributes:
        joint: of B * w rows. state: of it, after the nodes. tokens: (B * w, s), the nodes and those before.
    """

    joint: JointDistribution
    state: Any
    tokens: Tensor

    @classmethod
    def root(cls, joint: JointDistribution) -> Level:
        """The pending tokens, w = 1."""
        nothing = torch.empty(joint.batch_size, 0, dtype=torch.long, device=joint.device)
        return cls(joint, joint.start(), nothing)

    def log_rows(self, batch: int, warp: Warp | None) -> Tensor:
        """log q(. | node), processed by `warp`; (B, w, V'), -inf where nothing can be drafted.

        Without `warp` the rows are those of the joint, NaN where its head gives such.
        """
        rows: Tensor = self.joint.row(self.state, self.tokens.shape[1])
        if warp is not None:
            rows = drawable(warp(self.tokens, rows))
        return rows.view(batch, -1, rows.shape[-1])

    def children(self, parents: Tensor, tokens: Tensor) -> Level:
        """The level of `tokens` (B, w') after nodes `parents` (B, w') of this one."""
        batch = len(parents)
        first = torch.arange(batch, device=parents.device)[:, None] * (len(self.tokens) // batch)
        rows, after = (first + parents).flatten(), tokens.flatten()
        joint, position = self.joint.select(rows), self.tokens.shape[1]
        state = joint.advance(select_state(self.state, rows), position, after)
        return Level(joint, state, torch.cat([self.tokens[rows], after[:, None]], dim=-1))


def choose_tree(
    joint: JointDistribution, *, nodes: int, depth: int, warp: Warp | None = None
) -> list[DraftTree]:
    """The N likeliest prefixes of each row, as far as the best N / 2 of each level lead to them.

    Args:
        nodes: N. depth: of the tree, at most the horizon. warp: as of `JointDistribution.argmax`; it is given
            w rows for each row of the joint, those of a row together.

    Returns:
        a tree per row, of fewer nodes where `warp` leaves no more.
    """
    batch, device = joint.batch_size, joint.device
    limit = min(depth, joint.horizon, nodes)
    scores = torch.zeros(batch, 1, device=device)
    above = torch.full((batch, 1), -1, device=device)  # places of the level's nodes among all candidates
    level = Level.root(joint)
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for position in range(limit):
        rows = level.log_rows(batch, warp)
        size = rows.shape[-1]
        best, place = (rows + scores[:, :, None]).flatten(1).topk(min(nodes, rows[0].numel()), dim=-1)
        best = best.where(best.isfinite(), -torch.inf)  # NaN counts as the largest
        parents, tokens = place // size, place % size
        found.append((best, tokens, above.gather(1, parents)))
        width = min((nodes + 1) // 2, nodes - 1 - position, best.shape[1])
        if position + 1 < limit:
            first = sum(len(part[0]) for part, _, _ in found[:-1])
            above = (first + torch.arange(width, device=device)).expand(batch, -1)
            scores = best[:, :width]
            level = level.children(parents[:, :width], tokens[:, :width])
    if not found:
        return [DraftTree(level.tokens.new_empty(0), ())] * batch
    scores, tokens, parents = (torch.cat(parts, dim=1) for parts in zip(*found, strict=True))
    return _best(scores, tokens, parents, nodes=nodes)


def _best(scores: Tensor, tokens: Tensor, parents: Tensor, *, nodes: int) -> list[DraftTree]:
    """The best nodes of each row; (B, m) each, level after level, parents as places among the m."""
    ranked, order = scores.sort(dim=-1, descending=True, stable=True)  # stable: of equals parents first
    counts = ranked[:, :nodes].isfinite().sum(-1, keepdim=True)
    trees = []
    for row, (count, *known) in enumerate(torch.cat([counts, order, parents], dim=1).tolist()):
        best = sorted(known[:count])
        numbers = {place: node for node, place in enumerate(best)}
        above = (numbers.get(known[order.shape[1] + place], -1) for place in best)
        places = order[row, :count].sort().values
        trees.append(DraftTree(tokens[row, places], tuple(above)))
    return trees
