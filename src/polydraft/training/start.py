"""A new head: from nothing, or from a trained head of lower rank."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from polydraft.errors import InputError
from polydraft.heads import DraftConfig, DraftHead
from polydraft.heads.fingerprint import describe_base
from polydraft.training.data import Document, frequent_tokens

NOISE = 0.02
FIXED = (
    "hidden_size",
    "vocab_size",
    "draft_vocab_size",
    "features",
    "feature_size",
    "map_rank",
    "own_unembedding",
)
"""What a head and the one it starts from must have in common."""


def new_head(
    config: DraftConfig,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    documents: Sequence[Document],
    *,
    init_from: DraftHead | None = None,
) -> DraftHead:
    """A head for `model`, attached; its draft vocabulary holds the most frequent tokens of `documents`.

    Args:
        init_from: a trained head; every component starts as a copy of one of its components plus
            noise, and the draft vocabulary is its own.

    Raises:
        InputError: `init_from` does not fit; see `grow`.
    """
    config.base_model = describe_base(model, tokenizer)
    head = DraftHead(config)
    if init_from is None:
        ids = frequent_tokens(documents, size=config.draft_vocab_size, vocab_size=config.vocab_size)
        head.draft_ids.copy_(torch.tensor(ids))
    else:
        grow(head, init_from)
    return head.attach(model, tokenizer)


@torch.no_grad()
def grow(head: DraftHead, trained: DraftHead) -> None:
    """Fill `head` from `trained`, of lower or equal rank: component a starts as component a mod r_trained.

    Of a longer horizon the first positions are taken.

    Copies get relative noise of `NOISE`, since identical components have identical gradients; the gate
    of a copy starts as the gate it copies less the log of the copies, so that copies share its weight
    evenly and the joint is the trained one up to the noise.

    Raises:
        InputError: they differ in more, or the trained rank is above, or its horizon below.
    """
    for name in FIXED:
        if (old := getattr(trained.config, name)) != (new := getattr(head.config, name)):
            raise InputError(f"--init-from has {name} {old}, this run {new}: they must agree")
    if head.config.rank < trained.config.rank:
        raise InputError(f"--init-from has rank {trained.config.rank}, above this run's {head.config.rank}")
    if head.config.horizon > trained.config.horizon:
        raise InputError(
            f"--init-from has horizon {trained.config.horizon}, below this run's {head.config.horizon}"
        )
    source, target = trained.state_dict(), head.state_dict()
    index = torch.arange(head.config.rank) % trained.config.rank
    for name, value in target.items():
        value.copy_(_spread(name, source[name].to(value.dtype), index, trained.config.positions, head.config))


def _spread(name: str, value: Tensor, index: Tensor, positions: int, config: DraftConfig) -> Tensor:
    """One parameter of the trained head, its first positions, with its component axis taken at `index`."""
    if name == "gate.weight":
        return value[index]
    if name == "gate.bias":
        return value[index] - index.bincount()[index].to(value.dtype).log()
    if name == "maps.inner.weight":
        value = value.unflatten(0, (positions, -1, config.map_rank))[: config.positions, index]
        return _noisy(value, len(index)).flatten(0, 2)
    if name in ("maps.outer", "maps.weight", "own"):
        return _noisy(value[: config.positions, index], len(index))
    return value


def _noisy(value: Tensor, rank: int) -> Tensor:
    """Noise in proportion to the parameter's own spread; none at rank 1."""
    return value + NOISE * value.std() * torch.randn_like(value) if rank > 1 else value
