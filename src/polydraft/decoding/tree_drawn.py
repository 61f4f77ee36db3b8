"""Draft trees for sampling: each inner node has one drawn child, and its likeliest tokens beside it.

Of sampled text, chosen tokens alone keep little, one drawn token at each node more, both together most; as
many children drawn without replacement (SpecInfer, arXiv 2305.09781; Sequoia, arXiv 2402.12374) keep no more
than these. The drawn child y of a node comes from q without the chosen ones S, normalised again, so none is
there twice.

The tree grows level by level. Which nodes of a level have children, and which of them, is settled before
anything of that level is drawn: then y is distributed as the row it is said to come from, whatever became of
the rest of the tree, which `tree_verify` relies on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from polydraft.decoding.tree import DraftTree, Level
from polydraft.joint import JointDistribution, Warp

KEPT = 0.45
"""Chance that a drawn child is kept, for the shape of the tree; nothing else rests on it."""


def level_sizes(nodes: int, depth: int) -> list[int]:
    """Nodes per level: each takes half of those left, the last one the rest; no level without any."""
    sizes: list[int] = []
    while nodes and len(sizes) < depth:
        sizes.append(nodes if len(sizes) + 1 == depth else (nodes + 1) // 2)
        nodes -= sizes[-1]
    return sizes


class Children(NamedTuple):
    """The nodes of a new level, M of each row.

    Attributes:
        parents: (B, M), nodes of the level before. tokens: (B, M). drawn: (B, M) bool.
        alive: (B, M) bool; the others are not there.
        log_chance: (B, M), of the step from the parent to the node, as far as q tells.
        log_rows: (k, V'), what the drawn ones were drawn from, row after row.
    """

    parents: Tensor
    tokens: Tensor
    drawn: Tensor
    alive: Tensor
    log_chance: Tensor
    log_rows: Tensor


def draw_tree(
    joint: JointDistribution,
    *,
    nodes: int,
    depth: int,
    generator: torch.Generator | None = None,
    warp: Warp | None = None,
) -> list[DraftTree]:
    """A tree per row, of at most N nodes; fewer where `warp` leaves no more.

    Args:
        nodes: N. depth: of the tree, at most the horizon. warp: as of `choose_tree`.
    """
    batch = joint.batch_size
    scores = torch.zeros(batch, 1, device=joint.device)
    level = Level.root(joint)
    levels: list[Children] = []
    for count in level_sizes(nodes, min(depth, joint.horizon)):
        if levels:
            level = level.children(levels[-1].parents, levels[-1].tokens)
        levels.append(draw_children(level.log_rows(batch, warp), scores, count=count, generator=generator))
        new = levels[-1]
        scores = (scores.gather(1, new.parents) + new.log_chance).where(new.alive, -torch.inf)
    return _trees(levels, joint)


def draw_children(
    rows: Tensor, scores: Tensor, *, count: int, generator: torch.Generator | None = None
) -> Children:
    """At most `count` children of the w nodes of a level.

    They compete by the chance s that the walk reaches their parent, as far as q tells: a drawn child counts
    s, a chosen one x counts s q(x). So no node has chosen children without a drawn one. The walk goes on to
    them with chance q(not in S) `KEPT` and q(x).

    Args:
        rows: (B, w, V'), log q(. | node), -inf, or NaN, where there is nothing to draft.
        scores: (B, w), log s.
    """
    (batch, width, size), device = rows.shape, rows.device
    drawable = scores.where(rows.amax(-1) > -torch.inf, -torch.inf)
    likely, places = (rows + scores[:, :, None]).flatten(1).topk(min(count, width * size), dim=-1)
    likely = likely.where(likely.isfinite(), -torch.inf)  # NaN counts as the largest
    ranked = torch.cat([drawable, likely], dim=-1).sort(dim=-1, descending=True, stable=True)
    wanted, which = ranked.values[:, :count], ranked.indices[:, :count]
    drawn = which < width
    places = places.gather(1, (which - width).clamp(min=0))
    parents, tokens = torch.where(drawn, which, places // size), places % size
    alive = wanted > -torch.inf

    row_of = torch.arange(batch, device=device)[:, None].expand_as(parents)
    log_chance = rows[row_of, parents, tokens]
    chosen, drawn = alive & ~drawn, alive & drawn
    rest = rows.clone()
    at = chosen.nonzero(as_tuple=True)  # indices in place of masks: a GPU waits for each mask it indexes by
    rest[at[0], parents[at], tokens[at]] = -torch.inf
    at = drawn.nonzero(as_tuple=True)
    sources = rest[at[0], parents[at]]
    left = sources.logsumexp(-1)
    log_chance[at] = left + math.log(KEPT)
    some = left > -torch.inf
    drawn[at] = some
    some = some.nonzero()[:, 0]
    sources = sources[some] - left[some, None]
    if len(sources):
        own = torch.multinomial(sources.exp(), 1, generator=generator)[:, 0]
        tokens[at[0][some], at[1][some]] = own
    return Children(parents, tokens, drawn, chosen | drawn, log_chance, sources)


def _trees(levels: Sequence[Children], joint: JointDistribution) -> list[DraftTree]:
    """What each row has of the levels; read at once, whatever their number."""
    empty = torch.empty(0, joint.vocab_size, device=joint.device)
    if not levels:
        nothing = torch.empty(0, dtype=torch.long, device=joint.device)
        return [DraftTree(nothing, (), (), empty)] * joint.batch_size
    parents, tokens, drawn, alive = (torch.cat(parts, 1) for parts in list(zip(*levels, strict=True))[:4])
    known = torch.stack([parents, drawn.long(), alive.long()], -1).tolist()
    tokens = tokens[alive]
    begun, read = 0, [0] * len(levels)  # tokens, and drawn nodes of each level, of the rows before
    trees = []
    for row in known:
        nodes: list[int] = []
        by_chance: list[int] = []
        sources, above, column = [empty], [-1], 0
        for number, level in enumerate(levels):
            here, first = [], read[number]
            for parent, is_drawn, is_there in row[column : column + level.tokens.shape[1]]:
                here.append(len(nodes))
                if is_there:
                    by_chance += [len(nodes)] * is_drawn
                    read[number] += is_drawn
                    nodes.append(above[parent])
            sources.append(level.log_rows[first : read[number]])
            above, column = here, column + len(here)
        own = tokens[begun : begun + len(nodes)]
        trees.append(DraftTree(own, tuple(nodes), tuple(by_chance), torch.cat(sources)))
        begun += len(nodes)
    return trees
