"""P(z_1..z_n) of each hidden process, by its formula in plain numpy: n axes of r."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from polydraft.joint import Latent
from tests.joint.enumeration import Array, enumerate_tokens


def values(tensor: torch.Tensor, row: int) -> Array:
    """exp of one row of the batch."""
    return np.asarray(tensor[row].detach().exp().double().numpy())


def canonical(latent: Any, row: int) -> Array:
    """w_a where all components are a."""
    weights = values(latent.prior, row)
    out = np.zeros((latent.rank,) * latent.horizon)
    for a, weight in enumerate(weights):
        out[(a,) * latent.horizon] = weight
    return out


def hidden_markov(latent: Any, row: int) -> Array:
    """w_{z_1} prod_s T_s[z_{s-1}, z_s]."""
    initial, transitions = values(latent.initial, row), values(latent.transitions, row)
    return chain(initial, transitions)


def chain(initial: Array, transitions: Array) -> Array:
    """A Markov chain, from (r,) and (n - 1, r, r)."""
    horizon = len(transitions) + 1
    out = np.zeros((len(initial),) * horizon)
    for z in enumerate_tokens(len(initial), horizon):
        out[z] = initial[z[0]]
        for s in range(1, horizon):
            out[z] *= transitions[s - 1, z[s - 1], z[s]]
    return out


def binary_tree(latent: Any, row: int) -> Array:
    """A component per node given its parent's, those that are no leaf summed out."""
    nodes, leaves = tree_nodes(values(latent.root, row), values(latent.edges, row))
    return np.asarray(nodes.sum(axis=tuple(i for i in range(nodes.ndim) if i not in leaves)))


def tree_nodes(root: Array, edges: Array) -> tuple[Array, list[int]]:
    """w at the root times each edge's transition, an axis a node in preorder, and which are the positions.

    The left half of the leaves below a node is the larger.
    """
    parents: list[int] = []
    leaves: list[int] = []

    def grow(count: int, parent: int) -> None:
        here = len(parents)
        parents.append(parent)
        if count == 1:
            leaves.append(here)
        else:
            grow(-(-count // 2), here)
            grow(count // 2, here)

    grow(len(edges) // 2 + 1, -1)
    operands: list[object] = [root, [0]]
    for i, edge in enumerate(edges):
        operands += [edge, [parents[i + 1], i + 1]]
    return np.asarray(np.einsum(*operands, list(range(len(parents))))), leaves  # type: ignore[call-overload]


def switch(latent: Any, row: int) -> Array:
    """w_{z_1} prod_s ((1 - p) [z_s = z_{s-1}] + p w_{z_s}); the example of docs/add-a-family.md."""
    weights = values(latent.prior, row)
    change = 1 / (1 + np.exp(-float(latent.log_odds[row, 0])))
    matrix = (1 - change) * np.eye(latent.rank) + change * weights[None]
    return chain(weights, np.stack([matrix] * (latent.horizon - 1)) if latent.horizon > 1 else np.zeros(0))


FORMULAS: dict[str, Callable[[Any, int], Array]] = {
    "Independent": canonical,
    "Canonical": canonical,
    "HiddenMarkov": hidden_markov,
    "BinaryTree": binary_tree,
    "Switch": switch,
}
"""By class; the process of another one is asked for its own queries, `probed`."""


def process(latent: Latent, row: int = 0) -> Array:
    """P(z) of one row of the batch."""
    return FORMULAS.get(type(latent).__name__, probed)(latent, row)


def probed(latent: Latent, row: int = 0) -> Array:
    """P(z) as a process itself says it: by tokens that only one component can have made."""
    out = np.zeros((latent.rank,) * latent.horizon)
    for z in enumerate_tokens(latent.rank, latent.horizon):
        state, chance = latent.start(), 1.0
        for s, a in enumerate(z):
            weights = latent.log_weights(state, s).detach()
            chance *= float(weights[row, a].exp())
            if chance == 0 or s + 1 == latent.horizon:
                break
            sure = torch.full_like(weights, float("-inf"))
            sure[:, a] = 0
            state = latent.advance(state, s, sure)
        out[z] = chance
    return out
