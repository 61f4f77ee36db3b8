"""Every option of a training run; recorded in the head it makes."""

from __future__ import annotations

from dataclasses import dataclass, replace

from polydraft.errors import InputError
from polydraft.modes import VERIFIER, VERIFIERS
from polydraft.options import option
from polydraft.training.weights import LOSSES, TERMS, LossWeights

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
    from polydraft.joint import MEMBERS

    if joint not in MEMBERS:
        raise InputError(f"joint must be one of {', '.join(MEMBERS)}, got {joint!r}")
    return 1 if MEMBERS[joint].single else RANK


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """How to train: the options of `polydraft train`, which are made from these fields.

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

    joint: str = option(
        JOINT, "Model of the joint: independent, cp, hmm, tree, markov, cp-markov, sequential, recurrent."
    )
    rank: int = option(
        1,
        "Components of the joint; 4, or 1 where there is but one.",
        otherwise=lambda given: default_rank(given["joint"]),
    )
    horizon: int = option(4, "Tokens drafted per step.")
    features: str = option(
        "fused", "fused; block, a transformer layer over all fused ones before; hidden (the paper's form)."
    )
    feature_size: int = option(2304, "Width of the layer that fuses the features.")
    layers: tuple[int, ...] = option(
        (), "Also read the K-th hidden layer of the base model; repeatable.", flag="--layer", metavar="K"
    )
    block_start: str = option("random", "Of the block: random, or base, the base model's last layer.")
    map_rank: int = option(128, "Rank of the maps; 0 for full ones.")
    markov_rank: int = option(128, "Rank of the bias from the token before (markov, cp-markov).")
    components: int = option(0, "Likeliest components evaluated when drafting; 0 for all.")
    own_unembedding: bool = option(False, "An unembedding per position and component.")
    draft_vocab_size: int = option(8192, "Tokens that can be drafted.")
    draft_vocab: str = option(
        "kept", "With --init-from, of a head with as many: kept, its own, or data, those frequent now."
    )
    loss: str = option(
        "distill",
        "Weights of --nll, --kl, --tv: distill .1, .9, 0; joint 1, 0, 0 (the paper's); tv .1, 0, .9.",
    )
    nll: float | None = option(None, "Weight of the joint likelihood of the text.", shown="of --loss")
    kl: float | None = option(None, "Weight of the divergence from the base model's rows.", shown="of --loss")
    tv: float | None = option(
        None, "Weight of the total variation, the rate of rejection.", shown="of --loss"
    )
    balance: float = option(0.01, "Coefficient of the load-balancing term.")
    z_loss: float = option(0.0, "Coefficient of the router z-loss.")
    gate_noise: float = option(0.0, "Deviation of noise on the gate's scores while training.")
    discount: float = option(1.0, "Weight of each position relative to the one before.")
    anchors_per_window: int = option(
        0, "Positions learnt from per window on average, drawn at random; 0 for all."
    )
    steps: int = option(1000, "Optimiser steps.")
    batch_size: int = option(8, "Windows of text per micro-batch.")
    accumulate: int = option(1, "Micro-batches per step.")
    learning_rate: float = option(1e-3, "Peak, after the warm-up.")
    scheduler: str = option(
        "cosine",
        "Of the learning rate: cosine, linear, constant, constant_with_warmup, inverse_sqrt, polynomial, "
        "cosine_with_restarts.",
    )
    warmup: int = option(50, "Steps of growing rate; at most half of all.")
    weight_decay: float = option(0.0, "Of AdamW.")
    mixed_precision: str = option(
        "no", "Autocast over the head, a frozen base keeps its --dtype: no, bf16, fp16."
    )
    fsdp: bool = option(False, "Shard what is trained over the processes of torchrun.")
    max_length: int = option(512, "Tokens of a window of text.")
    packing: bool = option(False, "Several windows in a row of --max-length; none sees another.")
    held_out: float = option(0.02, "Share of the documents held out.")
    validation_windows: int = option(
        64, "Held-out windows looked at, of each temperature; fewer are faster, less precise."
    )
    every: int = option(200, "Steps between held-out figures and checkpoints.")
    seed: int = option(0, "Fixes the split, the start and the order.")
    report_to: tuple[str, ...] = option((), "tensorboard, trackio, ...; as in transformers.")
    trunk: str = option("frozen", "What of the model is trained too: frozen (nothing), lora, full, scratch.")
    lm_weight: float = option(1.0, "Of a trained model's own next-token loss.")
    trunk_learning_rate: float = option(
        0.0, "Peak, of a trained model; 0: lora 2e-4, full 2e-5, scratch 1e-3."
    )
    lora_rank: int = option(16, "Rank of the adapter.")
    lora_alpha: float = option(0.0, "Scale of the adapter; 0 for twice its rank.")
    lora_targets: tuple[str, ...] = option(
        (), "Layers to adapt, such as q_proj; several. All linear ones.", flag="--lora-target", metavar="NAME"
    )
    verifier: str = option(
        VERIFIER, "With --trunk lora, what will verify: trained (the adapted model), or base."
    )

    def __post_init__(self) -> None:
        from polydraft.heads.config import check_features
        from polydraft.joint import MEMBERS

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
