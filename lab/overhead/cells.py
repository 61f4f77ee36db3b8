"""The heads whose costs are taken: ranks by horizons of one joint, and some further ones by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from polydraft.errors import InputError
from polydraft.heads import DraftConfig, DraftHead
from polydraft.heads.block import block_sizes
from polydraft.heads.config import FEATURES
from polydraft.joint import MEMBERS


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One head; the fields are those of `DraftConfig`. `name` tells cells apart and is a file's name."""

    name: str
    joint: str
    rank: int
    horizon: int
    features: str = "fused"


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What all heads have in common; as in `DraftConfig`."""

    draft_vocab_size: int = 8192
    feature_size: int = 2304
    map_rank: int = 128
    markov_rank: int = 128


def make_cells(
    *, joint: str, ranks: Sequence[int], horizons: Sequence[int], extra: Sequence[str]
) -> list[Cell]:
    """Every rank with every horizon, then every head of `extra` with every horizon.

    Args:
        extra: parts joined by "+": a member of the family with its rank ("hmm:8"; 1 if it has none; an
            independent one if none is named), features, or both: "markov", "block", "cp:4+block".

    Raises:
        InputError: an unknown name, or a number below 1.
    """
    for name, values in (("rank", ranks), ("horizon", horizons)):
        if not values or min(values) < 1:
            raise InputError(f"{name} must be at least 1, got {min(values, default='none')}")
    check_member(joint)
    if MEMBERS[joint].single and set(ranks) != {1}:
        raise InputError(f"joint {joint!r} has one component: give --rank 1 alone")
    out = [
        Cell(name=f"{joint}{rank}-n{horizon}", joint=joint, rank=rank, horizon=horizon)
        for horizon in dict.fromkeys(horizons)
        for rank in dict.fromkeys(ranks)
    ]
    for text in dict.fromkeys(extra):
        kind = parse_extra(text)
        label = text.replace(":", "").replace("+", "-")
        out += [
            Cell(name=f"{label}-n{horizon}", horizon=horizon, **kind) for horizon in dict.fromkeys(horizons)
        ]
    found: dict[tuple[Any, ...], Cell] = {}
    for cell in out:  # the same head under another name is not measured twice
        found.setdefault(tuple(v for k, v in asdict(cell).items() if k != "name"), cell)
    return list(found.values())


def parse_extra(text: str) -> dict[str, Any]:
    """joint, rank and features of a named head; see `make_cells`.

    Raises:
        InputError: it names neither a member nor features, or two of one sort.
    """
    found: dict[str, Any] = {}
    for part in text.split("+"):
        name, _, rank = part.partition(":")
        if part in FEATURES:
            more: dict[str, Any] = {"features": part}
        else:
            check_member(name)
            if rank and (not rank.isdigit() or int(rank) < 1):
                raise InputError(f"--extra {text}: a rank is a whole number from 1, got {rank!r}")
            more = {"joint": name, "rank": int(rank or 1)}
        if set(more) & set(found):
            raise InputError(f"--extra {text}: give one member and one kind of features at most")
        found |= more
    if MEMBERS[found.get("joint", "independent")].single and found.get("rank", 1) != 1:
        raise InputError(f"--extra {text}: {found['joint']} has one component")
    return {"joint": "independent", "rank": 1, "features": "fused"} | found


def check_member(name: str) -> None:
    """Refuse an unknown member.

    Raises:
        InputError: names those there are.
    """
    if name not in MEMBERS:
        listed = ", ".join((*MEMBERS, *FEATURES))
        raise InputError(f"unknown head {name!r}: choose from {listed}")


def make_head(model: PreTrainedModel, cell: Cell, sizes: Sizes, *, seed: int = 0) -> DraftHead:
    """An untrained head in float32, attached to `model`; its draft vocabulary is the first tokens.

    What it costs does not depend on its weights.
    """
    text = model.config.get_text_config()
    config = DraftConfig(
        hidden_size=text.hidden_size,
        vocab_size=text.vocab_size,
        joint=cell.joint,
        rank=cell.rank,
        horizon=cell.horizon,
        features=cell.features,
        block=block_sizes(text) if cell.features == "block" else {},
        **asdict(sizes) | {"draft_vocab_size": min(sizes.draft_vocab_size, text.vocab_size)},
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        head = DraftHead(config)
    head.draft_ids.copy_(torch.arange(config.draft_vocab_size))
    return head.attach(model)


def parameters(module: torch.nn.Module) -> int:
    """Numbers that can be trained; one that is used twice counts once."""
    return sum(parameter.numel() for parameter in module.parameters())
