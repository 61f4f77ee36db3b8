"""The configuration of a draft head; stored as `config.json` in its folder."""

from __future__ import annotations

from dataclasses import field
from typing import Any

from transformers import PreTrainedConfig

from polydraft.errors import InputError
from polydraft.joint import MEMBERS, Member

FORMAT_VERSION = 1
FEATURES = ("hidden", "fused", "block")


def check_features(joint: str, features: str) -> None:
    """Refuse features that a stepwise member cannot go on from: it reads x[t+1] with the hidden state.

    Args:
        joint: a member's name.

    Raises:
        InputError: names those it can.
    """
    wanted = ("block",) if joint == "recurrent" else ("fused", "block")
    if MEMBERS[joint].steps and features not in wanted:
        listed = " or ".join(repr(name) for name in wanted)
        raise InputError(f"joint {joint!r} needs features {listed}, got {features!r}")


class DraftConfig(PreTrainedConfig):
    """What a `DraftHead` is made of, and for which base model.

    Args:
        hidden_size: d, width of the base model's last hidden state.
        vocab_size: V, tokens of the base model.
        draft_vocab_size: V', tokens that can be drafted (the most frequent ones).
        horizon: n, tokens drafted after the one the base model has just given.
        rank: r, components of the joint; 1 is the independent head.
        joint: member of the family of joints: independent, cp (the canonical decomposition), hmm, tree,
            markov, cp-markov, sequential, recurrent, or one registered by `polydraft.joint.register`.
            sequential and recurrent run a module once per draft (`joint.stepwise`): a network per position
            over the embeddings of all drafts before (Hydra), or the block itself (EAGLE), which it needs.
        features: "hidden", h_t alone, the sampled token entering through the posterior over
            components (the paper); "fused", h_t joined with the embedding of the sampled token; "block",
            a causal transformer layer over the fused features of the whole context.
        feature_size: width of the gated layer that fuses them ("fused" and "block").
        layers: further hidden layers of the base model that are fused, 1-based; none with "hidden".
        block: sizes of the transformer layer ("block" only), as `heads.block.block_sizes` gives them.
        map_rank: rank of the linear map per (position, component); 0 is a full d x d map (the paper's).
            sequential and recurrent have no maps.
        markov_rank: rank of the bias from the token before, where the member has one; of sequential, the
            width of its networks (Hydra's is hidden_size).
        components: of the r components, how many the head evaluates when it drafts (top-k routing by
            weight; the joint drafted from stays exact); 0 is all.
        own_unembedding: an unembedding per (position, component), the paper's from-scratch form,
            instead of the base model's own rows.
        base_model: id, revision and fingerprint of the base model; see `heads.fingerprint`.
        provenance: training command, data hash, package versions, held-out figures.
        format_version: layout of the folder; a newer one than this code knows is refused.

    Raises:
        InputError: a value outside its range.
    """

    model_type = "polydraft"

    hidden_size: int = 576
    vocab_size: int = 49152
    draft_vocab_size: int = 8192
    horizon: int = 4
    rank: int = 4
    joint: str = "cp"
    features: str = "fused"
    feature_size: int = 1152
    layers: list[int] = field(default_factory=list)
    block: dict[str, Any] = field(default_factory=dict)
    map_rank: int = 64
    markov_rank: int = 128
    components: int = 0
    own_unembedding: bool = False
    base_model: dict[str, Any] | None = None
    provenance: dict[str, Any] | None = None
    format_version: int = FORMAT_VERSION

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        for name in (
            "hidden_size",
            "vocab_size",
            "draft_vocab_size",
            "horizon",
            "rank",
            "feature_size",
            "markov_rank",
        ):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise InputError(f"{name} must be a whole number from 1, got {getattr(self, name)!r}")
        if not isinstance(self.map_rank, int) or self.map_rank < 0:
            raise InputError(f"map_rank must be 0 (full maps) or more, got {self.map_rank}")
        if self.draft_vocab_size > self.vocab_size:
            raise InputError(
                f"draft_vocab_size {self.draft_vocab_size} exceeds the vocabulary of {self.vocab_size}"
            )
        if self.features not in FEATURES:
            raise InputError(f"features must be one of {', '.join(FEATURES)}, got {self.features!r}")
        different = len({*self.layers}) == len(self.layers)
        if not different or any(not isinstance(k, int) or k < 1 for k in self.layers):
            raise InputError(f"layers must be different whole numbers from 1, got {self.layers}")
        if self.layers and self.features == "hidden":
            raise InputError("layers need features 'fused' or 'block': 'hidden' reads the last one alone")
        if bool(self.block) != (self.features == "block"):
            raise InputError("block sizes belong to features 'block', and these need them")
        if self.joint not in MEMBERS:
            raise InputError(f"joint must be one of {', '.join(MEMBERS)}, got {self.joint!r}")
        if self.member.single and self.rank != 1:
            many = ", ".join(name for name, member in MEMBERS.items() if not member.single)
            raise InputError(
                f"joint {self.joint!r} has one component: rank must be 1, got {self.rank}; "
                f"of several components are {many}"
            )
        check_features(self.joint, self.features)
        if not isinstance(self.components, int) or not 0 <= self.components <= self.rank:
            raise InputError(
                f"components must be 0 (all) or at most the rank {self.rank}, got {self.components!r}"
            )
        if self.components and self.features == "hidden":
            raise InputError("components must be 0 with features 'hidden': the posterior needs all of them")
        if self.format_version > FORMAT_VERSION:
            raise InputError(
                f"head format {self.format_version} is newer than this polydraft reads "
                f"({FORMAT_VERSION}): upgrade polydraft"
            )

    @property
    def member(self) -> Member:
        """The member of the family."""
        return MEMBERS[self.joint]

    @property
    def recurrent(self) -> bool:
        """Whether drafting runs the block once per draft, over the keys and values of the text."""
        return self.joint == "recurrent"

    @property
    def state_size(self) -> int:
        """Columns of the hidden states that the head reads: of the last layer, then of each of `layers`."""
        return self.hidden_size * (1 + len(self.layers))

    @property
    def taps(self) -> dict[str, Any]:
        """What a `HiddenTap` must keep for the head to read, as its arguments."""
        return {"layers": self.layers, "every": self.features == "block"}

    @property
    def positions(self) -> int:
        """Positions the joint models: the horizon, and x[t+1] too where it enters by the posterior."""
        return self.horizon + (self.features == "hidden")
