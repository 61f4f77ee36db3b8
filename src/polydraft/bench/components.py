"""How a head uses its components over a text: gate entropy, load, and what each one specialises in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from polydraft.heads import DraftHead
from polydraft.limits import position_rows
from polydraft.training.data import Document, data_hash, take_documents
from polydraft.training.gating import Drafting, TextSample, draftings
from polydraft.versions import versions

DEAD = 0.1
"""A component is dead when no position gives it this part of an even share, 1 / r."""
TOP = 8
"""Tokens named per component."""


class Use:
    """Sums over anchors, in float64.

    Attributes:
        anchors: how many. load: (n, r), of weights. largest: (n, r), anchors where the weight is the largest.
        entropy: (n,), of the weights, in nats.
        profiles: of the first and the last position, by 0-based position: (r, V'), of w_a P_a(v).
    """

    def __init__(self, head: DraftHead) -> None:
        config = head.config
        shape = (config.horizon, config.rank)
        self.anchors = 0
        self.load, self.largest = (torch.zeros(shape, dtype=torch.float64) for _ in range(2))
        self.entropy = torch.zeros(config.horizon, dtype=torch.float64)
        self.profiles = {
            s: torch.zeros(config.rank, config.draft_vocab_size, dtype=torch.float64)
            for s in sorted({0, config.horizon - 1})
        }

    @torch.no_grad()
    def add(self, part: Drafting) -> None:
        """Count a few anchors in."""
        log_weights = part.log_weights()
        weights = log_weights.exp()
        self.anchors += len(weights)
        self.load += weights.double().sum(0).cpu()
        self.entropy += torch.special.entr(weights.double()).sum((0, 2)).cpu()
        self.largest += torch.nn.functional.one_hot(log_weights.argmax(-1), weights.shape[-1]).sum(0).cpu()
        for s, profile in self.profiles.items():
            profile += torch.einsum("ca,cav->av", weights[:, s], part.log_factors(s).exp()).double().cpu()


def component_report(
    head: DraftHead,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    data: Sequence[Path] | Sequence[Document],
    *,
    sample: TextSample,
    names: dict[str, str],
    command: str = "",
) -> dict[str, Any]:
    """The use of every component on text the head has not seen, ready for JSON.

    Weights are marginal, P(z_s = a) before any draft is known. `gate_entropy` is the mean over anchors of
    their entropy, `load_entropy` the entropy of their mean: the difference, in nats, is what the gate reads
    from the text. Components and positions are numbered from 1.

    Args:
        names: recorded as they are, such as the model's and the head's.

    Raises:
        InputError: bad data.
        ValueError: the head has one component.
    """
    if head.config.rank == 1:
        raise ValueError("one component leaves nothing to report")
    documents = take_documents(data, model, tokenizer)
    drawn, use = sample.draw(documents, most=position_rows(model)), Use(head)
    for part in draftings(head, model, drawn, sample):
        use.add(part)
    load = use.load / use.anchors
    config, dead_below = head.config, DEAD / head.config.rank
    return {
        **names,
        **{name: getattr(config, name) for name in ("joint", "rank", "horizon")},
        "windows": len(drawn),
        "anchors": use.anchors,
        "max_entropy": float(torch.tensor(config.rank).log()),
        "positions": [
            {
                "position": s + 1,
                "gate_entropy": float(use.entropy[s] / use.anchors),
                "load_entropy": float(torch.special.entr(load[s]).sum()),
                "load": load[s].tolist(),
                "largest": (use.largest[s] / use.anchors).tolist(),
            }
            for s in range(config.horizon)
        ],
        "load": load.mean(0).tolist(),
        "dead_below": dead_below,
        "dead": [a + 1 for a in range(config.rank) if float(load[:, a].max()) < dead_below],
        "tokens": [
            {"position": s + 1, "components": top_tokens(head, tokenizer, profile / use.anchors, load[s])}
            for s, profile in use.profiles.items()
        ],
        "data": data_hash(documents),
        "command": command,
        "versions": versions(),
    }


def top_tokens(
    head: DraftHead, tokenizer: PreTrainedTokenizerBase, profile: Tensor, load: Tensor
) -> list[list[dict[str, Any]]]:
    """The `TOP` tokens of largest lift of every component, at one position.

        lift_a(v) = mean_i(w_ia P_ia(v)) / load_a / mean_i(q_i(v)),   q_i = sum_a w_ia P_ia

    over anchors i: how much likelier v is where component a speaks. Of tokens that the mixture gives less
    than an even share, 1 / V', it is not asked: theirs says little.

    Args:
        profile: (r, V'), mean_i(w_ia P_ia(v)). load: (r,), mean_i(w_ia).

    Returns:
        for every component its tokens, with `lift` and `probability`, the component's mean.
    """
    own = profile / load[:, None].clamp(min=torch.finfo(load.dtype).tiny)
    mixture = profile.sum(0)
    lift = torch.where(mixture >= 1 / len(mixture), own / mixture, -1.0)
    found = lift.topk(min(TOP, len(mixture)), dim=-1)
    ids = head.draft_ids.cpu()
    return [
        [
            {
                "text": token_text(tokenizer, int(ids[v])),
                "id": int(ids[v]),
                "lift": value,
                "probability": float(own[a, v]),
            }
            for value, v in zip(values, chosen, strict=True)
            if value >= 0
        ]
        for a, (values, chosen) in enumerate(zip(found.values.tolist(), found.indices.tolist(), strict=True))
    ]


def token_text(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    """What a token says; its name in the vocabulary where it is a part of a character."""
    text = tokenizer.decode([token])
    assert isinstance(text, str)
    return tokenizer.convert_ids_to_tokens([token])[0] if "\ufffd" in text else text
