"""Trees in the decoding loop: the base model's own text, sooner; its own distribution, sampled."""

from __future__ import annotations

import itertools
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import polydraft
from polydraft.heads import DraftHead
from tests.joint.enumeration import chi_square_p_value
from tests.joint.members import FALSE_ALARM_RATE
from tests.tiny import tiny_head, tiny_model

HEADS: list[dict[str, Any]] = [
    {"joint": "markov", "rank": 1, "horizon": 4},
    {"joint": "cp", "rank": 3, "horizon": 3, "features": "hidden"},
    {"joint": "hmm", "rank": 2, "horizon": 4, "draft_vocab_size": 6},
    {"joint": "cp-markov", "rank": 2, "horizon": 3, "draft_vocab_size": 6},
]
PROMPTS = torch.tensor([[1, 2, 3, 4], [2, 2, 0, 2], [6, 1, 1, 6]])
"""What the padding hides stands elsewhere in its row: processors see it either way."""
SHORT = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1], [0, 1, 1, 1]])


def uncertain(vocab_size: int = 8, **options: Any) -> PreTrainedModel:
    """A model so uncertain that a random head is right now and then."""
    return tiny_model(vocab_size=vocab_size, initializer_range=0.08, **options)


def drafted(model: PreTrainedModel, head: DraftHead, prompts: Tensor, **options: Any) -> Any:
    return polydraft.generate(model, head, prompts, drafting="tree", **options)


@pytest.mark.parametrize("options", HEADS, ids=str)
@pytest.mark.parametrize("nodes", [1, 5, 11])
def test_greedy_text_is_plain_text(options: dict[str, Any], nodes: int) -> None:
    model = uncertain()
    head = tiny_head(model, **options)
    kwargs = {"max_new_tokens": 30, "do_sample": False, "repetition_penalty": 1.1}
    out = drafted(model, head, PROMPTS, attention_mask=SHORT, draft_length=nodes, **kwargs)
    plain = cast(Any, model).generate(PROMPTS, attention_mask=SHORT, **kwargs)
    assert torch.equal(out.sequences, plain)
    assert out.statistics.accepted_tokens > 0
    for row in range(3):
        prompt = PROMPTS[row : row + 1, 4 - int(SHORT[row].sum()) :]
        alone = drafted(model, head, prompt, draft_length=nodes, **kwargs)
        assert torch.equal(alone.sequences[0, -30:], plain[row, -30:])


def test_trees_take_fewer_steps_than_the_chain() -> None:
    model = uncertain()
    head = tiny_head(model, **HEADS[0])
    options = {"max_new_tokens": 80, "do_sample": False}
    chain = polydraft.generate(model, head, PROMPTS[:1], drafting="chain", **options)
    small, large = (drafted(model, head, PROMPTS[:1], draft_length=n, **options) for n in (4, 16))
    assert chain.statistics is not None
    assert large.statistics.steps < small.statistics.steps <= chain.statistics.steps


@pytest.mark.parametrize("warpers", [{}, {"temperature": 0.7, "top_p": 0.8}], ids=str)
def test_sampled_text_is_distributed_as_the_model_says(warpers: dict[str, Any]) -> None:
    """Chi-square over all texts of three tokens; fails on a correct decoder at `FALSE_ALARM_RATE`."""
    size, length, rows, rounds = 4, 3, 128, 20
    model = tiny_model(vocab_size=size, initializer_range=0.2)
    head = tiny_head(model, joint="markov", rank=1, horizon=3, draft_vocab_size=3)
    prompt, counts = torch.tensor([[1, 2, 3]]), np.zeros((size,) * length)
    generator = torch.Generator().manual_seed(0)
    accepted = 0
    options = {"max_new_tokens": length, "do_sample": True, "top_k": 0, **warpers}
    for _ in range(rounds):
        out = drafted(model, head, prompt.expand(rows, -1), draft_length=4, generator=generator, **options)
        accepted += out.statistics.accepted_tokens
        for text in out.sequences[:, -length:].tolist():
            counts[tuple(text)] += 1
    every = torch.tensor(list(itertools.product(range(size), repeat=length)))
    with torch.no_grad():
        logits = cast(Any, model)(input_ids=torch.cat([prompt.expand(len(every), -1), every], -1)).logits
    log_rows = warped(logits[:, 2 : 2 + length].double(), warpers).log_softmax(-1)
    expected = log_rows.gather(-1, every[..., None])[..., 0].sum(-1).exp().numpy() * rows * rounds
    assert accepted > rows * rounds / 6
    assert counts.ravel()[expected == 0].sum() == 0
    assert chi_square_p_value(counts.ravel(), expected) > FALSE_ALARM_RATE


def warped(logits: Tensor, warpers: dict[str, Any]) -> Tensor:
    """Temperature, then the likeliest tokens up to a mass of `top_p`, by sorting."""
    logits = logits / warpers.get("temperature", 1.0)
    ranked = logits.softmax(-1).sort(-1, descending=True)
    dropped = ranked.values.cumsum(-1) - ranked.values >= warpers.get("top_p", 1.1)
    return logits.masked_fill(torch.zeros_like(dropped).scatter(-1, ranked.indices, dropped), -torch.inf)
