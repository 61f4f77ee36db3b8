"""Models in float64: plain decoding rounds logits to float32 before it chooses, and so does drafting."""

from __future__ import annotations

from functools import cache
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import polydraft
from polydraft.decoding import LiveBatch, new_row
from polydraft.decoding.plan import Plan
from tests.decoding.models import drafted, new_tokens, oracle_of_many, plain, ragged_prompts
from tests.tiny import tiny_model

ROWS, NEW_TOKENS = 3, 20


@cache
def near_ties() -> tuple[PreTrainedModel, list[Tensor], list[Tensor]]:
    """A model whose tokens come in pairs that float32 cannot tell apart, prompts, and their plain texts."""
    model = tiny_model().double()
    rows = cast(Any, model).lm_head.weight.data
    noise = torch.randn(32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    rows[32:] = rows[:32] + 1e-12 * noise
    prompts = ragged_prompts(ROWS)
    return model, prompts, [plain(model, prompt[None], max_new_tokens=NEW_TOKENS)[0] for prompt in prompts]


def test_the_larger_of_two_is_often_the_other_one() -> None:
    model, _, (text, *_) = near_ties()
    logits = cast(Any, model)(input_ids=text[None]).logits[0]
    assert logits.dtype == torch.float64
    assert (logits.argmax(-1) != logits.float().argmax(-1)).sum() > 3


@pytest.mark.parametrize("rows", [1, ROWS])
@pytest.mark.parametrize(
    "options",
    [
        {"drafting": "chain"},
        {"drafting": "tree", "draft_length": 7},
        {"drafting": "chain", "output_scores": True},
        {"drafting": "chain", "repetition_penalty": 1.0001},
        {"drafting": "chain", "prompt_lookup_num_tokens": 3},
    ],
    ids=str,
)
def test_greedy_texts(rows: int, options: dict[str, Any]) -> None:
    model, prompts, texts = near_ties()
    if "repetition_penalty" in options:
        given = {"repetition_penalty": options["repetition_penalty"], "max_new_tokens": NEW_TOKENS}
        texts = [plain(model, prompt[None], **given)[0] for prompt in prompts]
    head = oracle_of_many(model, texts)
    out = drafted(model, head, prompts[:rows], max_new_tokens=NEW_TOKENS, **options)
    expected = [text[len(prompt) :].tolist() for text, prompt in zip(texts, prompts, strict=True)]
    assert new_tokens(out, prompts[:rows]) == expected[:rows]


def test_a_live_batch() -> None:
    model, prompts, texts = near_ties()
    batch = LiveBatch(model, oracle_of_many(model, texts), rows=ROWS, plan=Plan(drafting="chain"))
    rows = [
        new_row(prompt.tolist(), device=model.device, max_new_tokens=NEW_TOKENS, trace=1)
        for prompt in prompts
    ]
    batch.admit(rows)
    while batch.active:
        batch.step()
    for row, prompt, text in zip(rows, prompts, texts, strict=True):
        assert row.generated == text[len(prompt) :].tolist()
        assert [token.log_prob for token in row.trace] == [token.top[0][1] for token in row.trace]


@pytest.mark.parametrize("sampling", [{"do_sample": False}, {"do_sample": True, "seed": 4}], ids=str)
def test_logits_and_scores_are_those_of_plain_decoding(sampling: dict[str, Any]) -> None:
    model, prompts, texts = near_ties()
    options: dict[str, Any] = {"max_new_tokens": NEW_TOKENS, "output_logits": True}
    out = polydraft.generate(model, oracle_of_many(model, texts), prompts[1][None], **options, **sampling)
    assert out.sequences is not None and out.logits is not None
    rows = cast(Any, model)(input_ids=out.sequences).logits[0, len(prompts[1]) - 1 : -1].float()
    for found, right in zip(out.logits, rows, strict=True):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found[0], right, rtol=1e-6, atol=1e-6)
