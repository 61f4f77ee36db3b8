"""Sizes of base models and of heads, as far as they decide what is read and multiplied."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from polydraft.errors import InputError
from polydraft.heads.config import FEATURES
from polydraft.joint import MEMBERS


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """A decoder-only model with gated feed-forward layers (Llama's kind).

    Attributes:
        layers: L. hidden_size: d. ffn: width of the feed-forward layers. heads, kv_heads, head_dim: of the
            attention. vocab_size: V. tied: whether embedding and unembedding are one matrix.
        weight_bytes, kv_bytes: of one number of the weights, and of the cache.
    """

    name: str
    layers: int
    hidden_size: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    tied: bool = False
    weight_bytes: float = 2.0
    kv_bytes: float = 2.0

    def __post_init__(self) -> None:
        sizes = ("layers", "hidden_size", "ffn", "heads", "kv_heads", "head_dim", "vocab_size")
        for name in (*sizes, "weight_bytes", "kv_bytes"):
            if getattr(self, name) <= 0:
                raise InputError(f"{self.name}: {name} must be above 0, got {getattr(self, name)}")

    @property
    def attention_parameters(self) -> int:
        """Of one layer: Q and O (d x heads head_dim each), K and V (d x kv_heads head_dim each)."""
        return 2 * self.hidden_size * self.head_dim * (self.heads + self.kv_heads)

    @property
    def ffn_parameters(self) -> int:
        """Of one layer: gate, up and down, 3 d ffn."""
        return 3 * self.hidden_size * self.ffn

    @property
    def layer_parameters(self) -> int:
        """Matrices of one layer."""
        return self.attention_parameters + self.ffn_parameters

    @property
    def unembedding_parameters(self) -> int:
        """V d."""
        return self.vocab_size * self.hidden_size

    @property
    def read_parameters(self) -> int:
        """What a forward reads: all layers and the unembedding, not an embedding of its own."""
        return self.layers * self.layer_parameters + self.unembedding_parameters

    @property
    def stored_bytes(self) -> float:
        """What has to lie in memory: as read, and an embedding that is not tied."""
        embedding = 0 if self.tied else self.unembedding_parameters
        return self.weight_bytes * (self.read_parameters + embedding)

    @property
    def kv_bytes_per_token(self) -> float:
        """Keys and values of one token in all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim * self.kv_bytes


@dataclass(frozen=True, kw_only=True)
class HeadShape:
    """A draft head; names as in `DraftConfig`.

    Attributes:
        rank: r components. evaluated: of them, those evaluated when drafting; 0 for all.
        horizon: n. feature_size: width of the fusing layer. layers: further layers read.
        markov_rank: k of the bias from the token before. weight_bytes: of one number.
    """

    joint: str
    rank: int
    horizon: int
    draft_vocab_size: int
    feature_size: int
    evaluated: int = 0
    features: str = "fused"
    layers: int = 0
    map_rank: int = 128
    markov_rank: int = 128
    weight_bytes: float = 2.0

    def __post_init__(self) -> None:
        if self.joint not in COSTED:
            raise InputError(
                f"no costs are known of the joint {self.joint!r}: give one of {', '.join(COSTED)}"
            )
        if self.features not in FEATURES:
            raise InputError(f"features must be one of {', '.join(FEATURES)}, got {self.features!r}")
        for name in ("rank", "horizon", "draft_vocab_size", "feature_size", "markov_rank"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if MEMBERS[self.joint].single and self.rank != 1:
            raise InputError(f"{self.joint} has one component: give rank 1, not {self.rank}")
        if not 0 <= self.evaluated <= self.rank:
            raise InputError(
                f"components must be 0 (all) or at most the rank {self.rank}, got {self.evaluated}"
            )

    @property
    def components(self) -> int:
        """Components evaluated when drafting."""
        return self.evaluated or self.rank

    @property
    def positions(self) -> int:
        """Positions of the joint: n, and one more where the sampled token enters by the posterior."""
        return self.horizon + (self.features == "hidden")

    @property
    def markov(self) -> bool:
        """Whether a bias from the token before is added to each row."""
        return MEMBERS[self.joint].markov

    def fuse_parameters(self, d: int) -> int:
        """(2 + layers) d x 2 f and f x d; none where the hidden state alone is read."""
        return 0 if self.features == "hidden" else ((2 + self.layers) * 2 + 1) * d * self.feature_size

    def gate_parameters(self, d: int) -> int:
        """r (d + 1), and r^2 (d + 1) for each of its `TRANSITIONS`; none for a member of one component."""
        if MEMBERS[self.joint].single:
            return 0
        return (self.rank + TRANSITIONS.get(self.joint, 0) * (self.positions - 1) * self.rank**2) * (d + 1)

    def map_parameters(self, d: int, components: int | None = None) -> int:
        """Low rank: 2 d map_rank for each position and component; full (map_rank 0): d^2."""
        each = 2 * d * self.map_rank if self.map_rank else d * d
        return self.positions * (components or self.rank) * each

    def previous_parameters(self, d: int) -> int:
        """Of the bias from the token before: A and D (2 d k), and C of each position (d k)."""
        return (2 + self.positions) * d * self.markov_rank if self.markov else 0

    def block_parameters(self, model: ModelShape) -> int:
        """A layer of the base model's sizes, and its two norms."""
        return model.layer_parameters + 2 * model.hidden_size if self.features == "block" else 0

    def parameters(self, model: ModelShape) -> int:
        """Of the whole head; the unembedding is the base model's."""
        d = model.hidden_size
        parts = self.fuse_parameters(d), self.gate_parameters(d), self.map_parameters(d)
        return sum(parts) + self.previous_parameters(d) + self.block_parameters(model)


TRANSITIONS = {"hmm": 1, "tree": 2}
"""Transition matrices for each position but the first: one of a chain, two edges of a binary tree."""
COSTED = ("independent", "cp", "hmm", "tree", "markov", "cp-markov")
"""Members whose sizes `HeadShape` knows."""


def shape_of(config: Any, *, weight_bytes: float = 2.0, name: str | None = None) -> ModelShape:
    """From a transformers configuration.

    Raises:
        InputError: it lacks a size, or has experts, of which a forward reads a part that its text decides.
    """
    text = config.get_text_config()
    if getattr(text, "num_local_experts", None) or getattr(text, "num_experts", None):
        raise InputError(f"{text.model_type} is a mixture of experts: what it reads depends on the text")
    needed = ("num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size")
    missing = [key for key in needed if getattr(text, key, None) is None]
    if missing:
        raise InputError(f"the configuration of {text.model_type} has no {missing[0]}")
    heads, d = text.num_attention_heads, text.hidden_size
    return ModelShape(
        name=name or text.name_or_path or text.model_type,
        layers=text.num_hidden_layers,
        hidden_size=d,
        ffn=getattr(text, "intermediate_size", None) or 4 * d,
        heads=heads,
        kv_heads=getattr(text, "num_key_value_heads", None) or heads,
        head_dim=getattr(text, "head_dim", None) or d // heads,
        vocab_size=text.vocab_size,
        tied=bool(text.tie_word_embeddings),
        weight_bytes=weight_bytes,
    )
