"""Every option of a training run; recorded in the head it makes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from polydraft.errors import InputError
from polydraft.heads.config import check_features
from polydraft.joint import MEMBERS
from polydraft.modes import VERIFIER, VERIFIERS
from polydraft.training.losses import LossWeights

LOSSES = {
    "joint": LossWeights(nll=1.0),
    "distill": LossWeights(nll=0.1, kl=0.9),
    "tv": LossWeights(nll=0.1, tv=0.9),
}
"""Presets; that of "tv" is DSpark's (DeepSeek, 2026)."""
TERMS = ("nll", "kl", "tv")
"""What a preset gives weights to."""

JOINT = "markov"
"""The member that docs/results.md finds best."""
RANK = 4
"""Components where nothing else is asked for."""

SCHEDULERS = (
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
)
"""Those of transformers that need nothing but a warm-up."""
MIXED_PRECISIONS = ("no", "bf16", "fp16")
BLOCK_STARTS = ("random", "base")
VOCABULARIES = ("kept", "data")
TRUNKS = ("frozen", "lora", "full", "scratch")


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
        loss: a preset of `LOSSES`; nll, kl, tv: weights instead of the preset's, None leaves them.
        scheduler: of the learning rate, one of `SCHEDULERS`, after `warmup` steps of linear growth.
        mixed_precision: autocast over the head; a frozen base model keeps its own dtype. fsdp: shard
            parameters and optimiser state over the processes of the run.
        max_length: tokens of a window; longer documents are cut. packing: fill rows of `max_length` with
            several windows (`training.packing`); `batch_size` and `anchors_per_window` then count rows.
        batch_size: documents per micro-batch. accumulate: micro-batches per optimiser step.
        held_out: share of documents kept for the held-out figures.
        validation_windows: of the held-out text, looked at most, of each temperature.
        every: steps between held-out figures, and between checkpoints.
        layers: further hidden layers of the base model that are fused, 1-based.
        draft_vocab: of a head that starts from another with as many draft tokens: "kept", that head's tokens,
            or "data", the most frequent ones of the text, as any other head has.
        block_start: of the block, "random" or "base", the base model's last layer.
        trunk: what of the base model is trained, see `training.trunk`: nothing, a LoRA adapter, or all of it,
            from its weights ("full") or from random ones ("scratch").
        lm_weight: of a trained trunk's own next-token loss, relative to the head's.
        trunk_learning_rate: 0 for `trunk.LEARNING_RATES`.
        lora_rank, lora_alpha, lora_targets: of the adapter; an alpha of 0 is twice the rank, no targets are
            all linear layers but the unembedding.
        verifier: whose rows teach the head, and will verify: those of the trained trunk, or with an adapter
            those of the untouched base model.

    Raises:
        InputError: a number outside its range.
    """

    joint: str = JOINT
    rank: int = 1
    horizon: int = 4
    features: str = "fused"
    feature_size: int = 2304
    layers: tuple[int, ...] = field(default=())
    block_start: str = "random"
    map_rank: int = 128
    markov_rank: int = 128
    components: int = 0
    own_unembedding: bool = False
    draft_vocab_size: int = 8192
    draft_vocab: str = "kept"
    loss: str = "distill"
    nll: float | None = None
    kl: float | None = None
    tv: float | None = None
    balance: float = 0.01
    z_loss: float = 0.0
    gate_noise: float = 0.0
    discount: float = 1.0
    anchors_per_window: int = 0
    steps: int = 1000
    batch_size: int = 8
    accumulate: int = 1
    learning_rate: float = 1e-3
    scheduler: str = "cosine"
    warmup: int = 50
    weight_decay: float = 0.0
    mixed_precision: str = "no"
    fsdp: bool = False
    max_length: int = 512
    packing: bool = False
    held_out: float = 0.02
    validation_windows: int = 64
    every: int = 200
    seed: int = 0
    report_to: tuple[str, ...] = field(default=())
    trunk: str = "frozen"
    lm_weight: float = 1.0
    trunk_learning_rate: float = 0.0
    lora_rank: int = 16
    lora_alpha: float = 0.0
    lora_targets: tuple[str, ...] = field(default=())
    verifier: str = VERIFIER

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "every", "validation_windows"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.max_length < 3:
            raise InputError(f"max_length must be at least 3, got {self.max_length}")
        if self.learning_rate <= 0:
            raise InputError(f"learning_rate must be above 0, got {self.learning_rate}")
        if self.scheduler not in SCHEDULERS:
            raise InputError(f"scheduler must be one of {', '.join(SCHEDULERS)}, got {self.scheduler!r}")
        if self.mixed_precision not in MIXED_PRECISIONS:
            listed = ", ".join(MIXED_PRECISIONS)
            raise InputError(f"mixed_precision must be one of {listed}, got {self.mixed_precision!r}")
        if not 0 < self.discount <= 1:
            raise InputError(f"discount must be above 0 and at most 1, got {self.discount}")
        for name in ("balance", "z_loss", "gate_noise", "anchors_per_window", "warmup", "weight_decay"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} must be 0 or more, got {getattr(self, name)}")
        if self.block_start not in BLOCK_STARTS:
            known = ", ".join(BLOCK_STARTS)
            raise InputError(f"block_start must be one of {known}, got {self.block_start!r}")
        if self.draft_vocab not in VOCABULARIES:
            raise InputError(
                f"draft_vocab must be one of {', '.join(VOCABULARIES)}, got {self.draft_vocab!r}"
            )
        if self.own_unembedding and self.draft_vocab == "data":
            raise InputError(
                "draft_vocab 'data' needs the base model's unembedding: own rows keep their tokens"
            )
        if self.joint in MEMBERS:
            check_features(self.joint, self.features)
        self._check_trunk()
        self._check_loss()

    def _check_loss(self) -> None:
        if self.loss not in LOSSES:
            raise InputError(f"loss must be one of {', '.join(LOSSES)}, got {self.loss!r}")
        given = {name: getattr(self, name) for name in TERMS}
        for name, value in given.items():
            if value is not None and not 0 <= value < float("inf"):
                raise InputError(f"{name} must be a number of 0 or more, got {value}")
        if not any(getattr(self.weights, name) for name in TERMS):
            raise InputError("there is nothing to learn: give one of nll, kl and tv a weight above 0")

    def _check_trunk(self) -> None:
        if self.trunk not in TRUNKS:
            raise InputError(f"trunk must be one of {', '.join(TRUNKS)}, got {self.trunk!r}")
        if self.verifier not in VERIFIERS:
            raise InputError(f"verifier must be one of {', '.join(VERIFIERS)}, got {self.verifier!r}")
        if self.verifier == "base" and self.trunk != "lora":
            raise InputError(f"verifier 'base' needs trunk 'lora': {self.trunk!r} leaves but one model")
        if self.lora_rank < 1:
            raise InputError(f"lora_rank must be at least 1, got {self.lora_rank}")
        for name in ("lm_weight", "trunk_learning_rate", "lora_alpha"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} must be 0 or more, got {getattr(self, name)}")
        if self.lm_weight == 0 and self.trunk in ("full", "scratch"):
            raise InputError(
                f"lm_weight must be above 0 with trunk {self.trunk!r}: nothing else trains the unembedding"
            )

    @property
    def weights(self) -> LossWeights:
        """Coefficients of the loss."""
        given = {name: getattr(self, name) for name in TERMS}
        return replace(
            LOSSES[self.loss],
            **{name: value for name, value in given.items() if value is not None},
            balance=self.balance,
            z_loss=self.z_loss,
            discount=self.discount,
            gate_noise=self.gate_noise,
        )
