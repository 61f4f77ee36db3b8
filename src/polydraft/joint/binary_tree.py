"""Binary-tree joint: a component per node of a balanced tree over the positions, leaves are positions.

    P(z) = w_{z_root} prod_{e = (parent, child)} T_e[z_parent, z_child]
    q(x_1..x_n) = sum_z P(z) prod_{leaves s} P_{z_s}^(s)(x_s)

Non-negative hierarchical Tucker, its transfer tensors B[a; b, c] = T_left[a, b] T_right[a, c] (as the
BTree circuits of MTPC, arXiv 2511.11346). With identity transitions it is the canonical decomposition.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from polydraft.joint.gate import Gate, LinearGate, Transitions
from polydraft.joint.latent import Latent, confine, top
from polydraft.joint.registry import Member, register


class Node(NamedTuple):
    """A node of the tree; -1 stands for none.

    Attributes:
        parent, left, right: indices of nodes. position: of a leaf.
    """

    parent: int
    left: int
    right: int
    position: int


@lru_cache(maxsize=64)
def balanced(horizon: int) -> tuple[Node, ...]:
    """The balanced tree over n leaves, 2n - 1 nodes in preorder; the left half is the larger."""
    nodes: list[Node] = []

    def grow(first: int, count: int, parent: int) -> int:
        here = len(nodes)
        nodes.append(Node(parent, -1, -1, first if count == 1 else -1))
        if count > 1:
            half = (count + 1) // 2
            left = grow(first, half, here)
            nodes[here] = Node(parent, left, grow(first + half, count - half, here), -1)
        return here

    grow(0, horizon, -1)
    return tuple(nodes)


@lru_cache(maxsize=64)
def leaves(horizon: int) -> tuple[int, ...]:
    """The node of every position."""
    nodes = balanced(horizon)
    return tuple(sorted((i for i, n in enumerate(nodes) if n.position >= 0), key=lambda i: nodes[i].position))


class BinaryTree(Latent):
    """A component per node, chosen from its parent's.

    Args:
        root: (B, r), log w; normalised. edges: (B, 2n - 2, r, r), log T of node i + 1 given its parent
            (`balanced` gives the order); rows normalised.

    Raises:
        ValueError: shapes that do not fit each other.
    """

    def __init__(self, root: Tensor, edges: Tensor) -> None:
        batch, rank = root.shape
        fits = edges.dim() == 4 and (edges.shape[0], *edges.shape[2:]) == (batch, rank, rank)
        if not fits or edges.shape[1] % 2:
            raise ValueError(
                f"root must be (B, r) and edges (B, 2n - 2, r, r), "
                f"got {tuple(root.shape)} and {tuple(edges.shape)}"
            )
        self.root, self.edges = root, edges
        self.batch_size, self.rank = batch, rank
        self.horizon, self.device = edges.shape[1] // 2 + 1, root.device
        self.nodes = balanced(self.horizon)

    def start(self) -> tuple[Tensor, ...]:
        """No message yet. A state holds one message (B, r) per finished left branch, outermost first:
        log P(its tokens | component of its parent)."""
        return ()

    def log_weights(self, state: tuple[Tensor, ...], position: int) -> Tensor:
        """From the root down to the leaf, with the message of each branch left behind; (B, r)."""
        belief, messages, node = self.root, iter(state), 0
        while self.nodes[node].position < 0:
            child = self._towards(node, position)
            if child == self.nodes[node].right:
                belief = (belief + next(messages)).log_softmax(-1)
            belief = torch.logsumexp(belief[:, :, None] + self.edges[:, child - 1], dim=1)
            node = child
        return belief

    def advance(self, state: tuple[Tensor, ...], position: int, log_likelihood: Tensor) -> tuple[Tensor, ...]:
        """Send the leaf's message up, as far as branches are finished by it."""
        node, inside, messages = leaves(self.horizon)[position], log_likelihood, list(state)
        while node:
            up = torch.logsumexp(self.edges[:, node - 1] + inside[:, None, :], dim=-1)
            parent = self.nodes[node].parent
            if node == self.nodes[parent].left:
                return (*messages, up)
            inside, node = messages.pop() + up, parent
        return ()

    def select(self, rows: Tensor) -> BinaryTree:
        """See `Latent`."""
        return BinaryTree(self.root[rows], self.edges[rows])

    def routed(self, count: int) -> tuple[BinaryTree, Tensor]:
        """The components of largest marginal at each node, with the edges between them."""
        beliefs = [self.root]
        for i, node in enumerate(self.nodes[1:]):
            beliefs.append(torch.logsumexp(beliefs[node.parent][:, :, None] + self.edges[:, i], dim=1))
        kept = [top(belief, count) for belief in beliefs]
        edges = [confine(self.edges[:, i], kept[n.parent], kept[i + 1]) for i, n in enumerate(self.nodes[1:])]
        root = self.root.gather(-1, kept[0]).log_softmax(-1)
        empty = self.edges.new_zeros(self.batch_size, 0, count, count)
        routed = BinaryTree(root, torch.stack(edges, dim=1) if edges else empty)
        return routed, torch.stack([kept[i] for i in leaves(self.horizon)], dim=1)

    def _towards(self, node: int, position: int) -> int:
        """The child of `node` whose branch holds `position`: preorder puts a right branch last."""
        right = self.nodes[node].right
        return right if leaves(self.horizon)[position] >= right else self.nodes[node].left


class BinaryTreeGate(LinearGate):
    """Root weights and a transition matrix per edge from the features."""

    def __init__(self, hidden_size: int, rank: int, positions: int) -> None:
        super().__init__(hidden_size, rank, positions)
        self.edges = Transitions(hidden_size, rank, 2 * positions - 2)

    def reset(self) -> None:
        """Near even weights, edges near the identity: a CP head."""
        super().reset()
        self.edges.reset()

    def forward(self, features: Tensor, noise: float = 0.0) -> BinaryTree:
        """features (B, d)."""
        return BinaryTree(self.prior(features, noise), self.edges(features))

    def take(self, trained: Gate, index: Tensor) -> None:
        """Take the gate as `LinearGate.take` does, and the edges of a tree over as many positions.

        All other edges stay near the identity."""
        super().take(trained, index)
        if isinstance(trained, BinaryTreeGate) and trained.positions == self.positions:
            self.edges.take(trained.edges, index)


register(Member(name="tree", gate=BinaryTreeGate))
