"""The components of all positions, path by path: what the hidden processes are compared with."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Sequence

from torch import Tensor

from polydraft.joint import BinaryTree, Canonical, HiddenMarkov, Latent, LatentMixture
from polydraft.joint.binary_tree import balanced, leaves

Paths = dict[tuple[int, ...], float]
FAMILY = ("cp", "hmm", "tree", "cp-markov")


def chances(log_row: Tensor, kept: Sequence[int]) -> dict[int, float]:
    """exp of a row (r,), of some components only, normalised again."""
    raw = {a: math.exp(float(log_row[a])) for a in kept}
    return {a: value / sum(raw.values()) for a, value in raw.items()}


def path_chances(latent: Latent, row: int, kept: Sequence[int] | None = None) -> Paths:
    """P(z_1..z_n) of every path of one row of the batch.

    Args:
        kept: the process never leaves these; all by default.
    """
    kept = range(latent.rank) if kept is None else kept
    out: Paths = defaultdict(float)
    if isinstance(latent, Canonical):
        for a, chance in chances(latent.prior[row], kept).items():
            out[(a,) * latent.horizon] = chance
    elif isinstance(latent, HiddenMarkov):
        steps = [{a: chances(step[a], kept) for a in kept} for step in latent.transitions[row]]
        first = chances(latent.initial[row], kept)
        for path in itertools.product(kept, repeat=latent.horizon):
            moves = zip(steps, path, path[1:], strict=False)
            out[path] = first[path[0]] * math.prod(step[a][b] for step, a, b in moves)
    else:
        assert isinstance(latent, BinaryTree)
        nodes, places = balanced(latent.horizon), leaves(latent.horizon)
        edges = [{a: chances(edge[a], kept) for a in kept} for edge in latent.edges[row]]
        first = chances(latent.root[row], kept)
        for chosen in itertools.product(kept, repeat=len(nodes)):
            moves = [edges[i - 1][chosen[nodes[i].parent]][chosen[i]] for i in range(1, len(nodes))]
            out[tuple(chosen[i] for i in places)] += first[chosen[0]] * math.prod(moves)
    return out


def factor(joint: LatentMixture, row: int, position: int, component: int, before: Tensor | None) -> Tensor:
    """P_a^(s)(. | before) of one row of the batch; before (1,) -> (V,)."""
    logits = joint.logits[row, position, component].double()
    if joint.bias is not None and before is not None:
        bias = joint.bias(position, before.expand(joint.batch_size))[row]
        logits = logits + (bias if bias.dim() == 1 else bias[component])
    return logits.softmax(-1)


def sequence_chance(joint: LatentMixture, row: int, tokens: Tensor, paths: Paths) -> float:
    """q(x_1..x_n) of one row of the batch, summed over paths; tokens (n,)."""
    total = 0.0
    for path, chance in paths.items():
        terms = [
            float(factor(joint, row, s, a, tokens[s - 1 : s] if s else None)[tokens[s]])
            for s, a in enumerate(path)
        ]
        total += chance * math.prod(terms)
    return total
