"""Hidden Markov joint: a component per position, each chosen from the one before.

    q(x_1..x_n) = sum_z w_{z_1} prod_{s>1} T_s[z_{s-1}, z_s] prod_s P_{z_s}^(s)(x_s)

A non-negative tensor train of rank r (MTPC, arXiv 2511.11346). With identity transitions it is the
canonical decomposition, where it starts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from polydraft.joint.gate import Gate, LinearGate, Transitions
from polydraft.joint.latent import Latent, confine, top
from polydraft.joint.registry import Member, register


class HiddenMarkov(Latent):
    """A Markov chain over components.

    Args:
        initial: (B, r), log w; normalised. transitions: (B, n - 1, r, r), log T_s[a, b], the chance of b
            at position s + 1 after a at s; rows normalised.

    Raises:
        ValueError: shapes that do not fit each other.
    """

    def __init__(self, initial: Tensor, transitions: Tensor) -> None:
        batch, rank = initial.shape
        if transitions.dim() != 4 or (transitions.shape[0], *transitions.shape[2:]) != (batch, rank, rank):
            raise ValueError(
                f"initial must be (B, r) and transitions (B, n - 1, r, r), "
                f"got {tuple(initial.shape)} and {tuple(transitions.shape)}"
            )
        self.initial, self.transitions = initial, transitions
        self.batch_size, self.rank = batch, rank
        self.horizon, self.device = transitions.shape[1] + 1, initial.device

    def start(self) -> Tensor:
        """log P(z_1); (B, r)."""
        return self.initial

    def log_weights(self, state: Tensor, position: int) -> Tensor:
        """The state is log P(z_s | x_<s) itself; (B, r)."""
        return state

    def advance(self, state: Tensor, position: int, log_likelihood: Tensor) -> Tensor:
        """Forward algorithm: P(z_{s+1} = b | x_<=s) = sum_a P(z_s = a | x_<=s) T_s[a, b]; (B, r)."""
        posterior = (state + log_likelihood).log_softmax(-1)
        if position + 1 >= self.horizon:
            return posterior
        return torch.logsumexp(posterior[:, :, None] + self.transitions[:, position], dim=1)

    def select(self, rows: Tensor) -> HiddenMarkov:
        """See `Latent`."""
        return HiddenMarkov(self.initial[rows], self.transitions[rows])

    def routed(self, count: int) -> tuple[HiddenMarkov, Tensor]:
        """The components of largest marginal at each position, with the transitions between them."""
        kept = top(self.marginals(), count)
        initial = self.initial.gather(-1, kept[:, 0]).log_softmax(-1)
        return HiddenMarkov(initial, confine(self.transitions, kept[:, :-1], kept[:, 1:])), kept


class HiddenMarkovGate(LinearGate):
    """Initial weights and n - 1 transition matrices from the features."""

    def __init__(self, hidden_size: int, rank: int, positions: int) -> None:
        super().__init__(hidden_size, rank, positions)
        self.transitions = Transitions(hidden_size, rank, positions - 1)

    def reset(self) -> None:
        """Near even weights, transitions near the identity: a CP head."""
        super().reset()
        self.transitions.reset()

    def forward(self, features: Tensor, noise: float = 0.0) -> HiddenMarkov:
        """features (B, d)."""
        return HiddenMarkov(self.prior(features, noise), self.transitions(features))

    def take(self, trained: Gate, index: Tensor) -> None:
        """Take the gate as `LinearGate.take` does; no other member has transitions to take."""
        super().take(trained, index)
        if isinstance(trained, HiddenMarkovGate):
            self.transitions.take(trained.transitions, index)


register(Member(name="hmm", gate=HiddenMarkovGate))
