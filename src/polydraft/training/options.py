"""Every option of a training run; recorded in the head it makes."""

from __future__ import annotations

from dataclasses import dataclass, field

from polydraft.errors import InputError
from polydraft.joint import MEMBERS
from polydraft.training.losses import LossWeights

LOSSES = {"joint": LossWeights(nll=1.0, kl=0.0), "distill": LossWeights(nll=0.1, kl=0.9)}

JOINT = "markov"
"""The member that docs/results.md finds best."""
RANK = 4
"""Components where nothing else is asked for."""


def default_rank(joint: str) -> int:
    """Components where none are asked for: `RANK`, or one for members that have no more.

    Raises:
        InputError: no such member.
    """
    if joint not in MEMBERS:
        raise InputError(f"joint must be one of {', '.join(MEMBERS)}, got {joint!r}")
    return 1 if MEMBERS[joint].single else RANK


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """How to train; see `polydraft train --help` for the words.

    Attributes:
        max_length: tokens of a window; longer documents are cut.
        batch_size: documents per micro-batch. accumulate: micro-batches per optimiser step.
        held_out: share of documents kept for the held-out figures.
        every: steps between held-out figures, and between checkpoints.

    Raises:
        InputError: a number outside its range.
    """

    joint: str = JOINT
    rank: int = 1
    horizon: int = 4
    features: str = "fused"
    feature_size: int = 2304
    map_rank: int = 128
    markov_rank: int = 128
    components: int = 0
    own_unembedding: bool = False
    draft_vocab_size: int = 8192
    loss: str = "distill"
    balance: float = 0.01
    z_loss: float = 0.0
    gate_noise: float = 0.0
    discount: float = 1.0
    anchors_per_window: int = 0
    steps: int = 1000
    batch_size: int = 8
    accumulate: int = 1
    learning_rate: float = 1e-3
    warmup: int = 50
    max_length: int = 512
    held_out: float = 0.02
    every: int = 200
    seed: int = 0
    report_to: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "every"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.max_length < 3:
            raise InputError(f"max_length must be at least 3, got {self.max_length}")
        if self.learning_rate <= 0:
            raise InputError(f"learning_rate must be above 0, got {self.learning_rate}")
        if not 0 < self.discount <= 1:
            raise InputError(f"discount must be above 0 and at most 1, got {self.discount}")
        for name in ("balance", "z_loss", "gate_noise", "anchors_per_window"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} must be 0 or more, got {getattr(self, name)}")
        if self.loss not in LOSSES:
            raise InputError(f"loss must be one of {', '.join(LOSSES)}, got {self.loss!r}")

    @property
    def weights(self) -> LossWeights:
        """Coefficients of the loss."""
        base = LOSSES[self.loss]
        return LossWeights(
            nll=base.nll,
            kl=base.kl,
            balance=self.balance,
            z_loss=self.z_loss,
            discount=self.discount,
            gate_noise=self.gate_noise,
        )
