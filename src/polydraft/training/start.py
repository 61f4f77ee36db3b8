"""A new head: from scratch, or from a trained head of lower rank."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from polydraft.errors import InputError
from polydraft.heads import DraftConfig, DraftHead
from polydraft.heads.fingerprint import describe_base
from polydraft.heads.sequential import Sequential
from polydraft.hidden import decoder_layers
from polydraft.joint.gate import last_repeated
from polydraft.training.data import Document, frequent_tokens

NOISE = 0.02
FIXED = (
    "hidden_size",
    "vocab_size",
    "feature_size",
    "map_rank",
    "own_unembedding",
)
"""What a head and the one it starts from must have in common."""
MAPS = ("maps.inner.weight", "maps.outer", "maps.weight", "own")
"""Parameters with one part per position and component."""


def new_head(
    config: DraftConfig,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    documents: Sequence[Document],
    *,
    init_from: DraftHead | None = None,
    block_start: str = "random",
    draft_vocab: str = "kept",
) -> DraftHead:
    """A head for `model`, attached; its draft vocabulary holds the most frequent tokens of `documents`.

    Args:
        init_from: a trained head; every component starts as a copy of one of its components plus
            noise.
        block_start: "random", or "base" for the base model's last layer where names and shapes allow; in
            both cases a block writes nothing at first. Not used where `init_from` has a block.
        draft_vocab: "kept" for that of `init_from` where it is of this size; "data" for that of `documents`.

    Raises:
        InputError: `init_from` does not fit; see `grow`.
    """
    config.base_model = describe_base(model, tokenizer)
    head = DraftHead(config)
    if head.block is not None and block_start == "base":
        head.block.take(decoder_layers(model, upto=1)[-1])
    if init_from is not None:
        grow(head, init_from)
    same_size = init_from is not None and init_from.config.draft_vocab_size == config.draft_vocab_size
    if draft_vocab == "data" or not same_size:
        ids = frequent_tokens(documents, size=config.draft_vocab_size, vocab_size=config.vocab_size)
        head.draft_ids.copy_(torch.tensor(ids))
    return head.attach(model, tokenizer)


@torch.no_grad()
def grow(head: DraftHead, trained: DraftHead) -> None:
    """Fill `head` from `trained`, of lower or equal rank: component a starts as component a mod r_trained.

    Of a longer horizon the first positions are taken; of a shorter one, further positions start as the last.

    Copies get relative noise of `NOISE`, since identical components have identical gradients; they share
    the weight of the component they copy evenly, so the joint is the trained one up to the noise. Members
    may differ: transitions start at the identity and biases at zero where the trained head has none. So may
    features: see `take_features`. Stepwise heads and those with maps take the features alone of each other.

    Raises:
        InputError: they differ in more, or the trained rank is above.
    """
    mapless = head.steps is not None or trained.steps is not None
    for name in FIXED:
        if name == "map_rank" and mapless:
            continue
        if (old := getattr(trained.config, name)) != (new := getattr(head.config, name)):
            raise InputError(f"--init-from has {name} {old}, this run {new}: they must agree")
    if head.config.rank < trained.config.rank:
        raise InputError(f"--init-from has rank {trained.config.rank}, above this run's {head.config.rank}")
    if head.config.own_unembedding and head.config.draft_vocab_size != trained.config.draft_vocab_size:
        raise InputError("--init-from has its own unembedding for another draft_vocab_size: they must agree")
    index = torch.arange(head.config.rank) % trained.config.rank
    if head.config.draft_vocab_size == trained.config.draft_vocab_size:
        head.draft_ids.copy_(trained.draft_ids)
    take_features(head, trained)
    head.gate.take(trained.gate, index)
    if head.previous is not None and trained.previous is not None:
        check_width(head.config, trained.config)
        head.previous.take(trained.previous)
    if isinstance(head.steps, Sequential) and isinstance(trained.steps, Sequential):
        check_width(head.config, trained.config)
        head.steps.take(trained.steps)
    source, positions = trained.state_dict(), last_repeated(head.config.positions, trained.config.positions)
    for name, value in head.state_dict().items():
        if name in MAPS and name in source:
            old = source[name].to(value.dtype)
            if name == "maps.inner.weight":
                old = old.unflatten(0, (trained.config.positions, -1, head.config.map_rank))
            value.copy_(_noisy(old[positions[:, None], index], len(index)).view_as(value))


def check_width(config: DraftConfig, trained: DraftConfig) -> None:
    """Refuse to start from what reads the tokens before in another width.

    Raises:
        InputError: names both.
    """
    if config.markov_rank != trained.markov_rank:
        raise InputError(
            f"--init-from has markov_rank {trained.markov_rank}, this run {config.markov_rank}: "
            "they must agree"
        )


def take_features(head: DraftHead, trained: DraftHead) -> None:
    """The features of a trained head; a block, or layers, that it lacks change nothing at the start.

    Raises:
        InputError: it has a block or layers that `head` lacks, or others; or just one of them reads the
            hidden state alone.
    """
    old, new = trained.config, head.config
    if (old.features == "hidden") != (new.features == "hidden") or old.features == "block" != new.features:
        raise InputError(
            f"--init-from has features {old.features!r}, this run {new.features!r}: a block can start from "
            "fused features, all others must agree"
        )
    for name in ("layers", "block"):
        if getattr(old, name) and getattr(old, name) != getattr(new, name):
            raise InputError(
                f"--init-from has {name} {getattr(old, name)}, this run {getattr(new, name)}: they must agree"
            )
    if head.fuse is not None and trained.fuse is not None:
        d = new.hidden_size
        before = trained.fuse.up.weight  # columns: the last state, further layers, the embedding
        head.fuse.up.weight.zero_()
        head.fuse.up.weight[:, : before.shape[1] - d] = before[:, :-d]
        head.fuse.up.weight[:, -d:] = before[:, -d:]
        head.fuse.down.weight.copy_(trained.fuse.down.weight)
    if head.block is not None and trained.block is not None:
        head.block.load_state_dict(trained.block.state_dict())


def _noisy(value: Tensor, rank: int) -> Tensor:
    """Noise in proportion to the parameter's own spread; none at rank 1."""
    return value + NOISE * value.std() * torch.randn_like(value) if rank > 1 else value
