"""Drafts copied from the text where it repeats itself, the head's elsewhere: the text stays the model's."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MaxLengthCriteria,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
)

import polydraft
from polydraft.decoding.engine import Engine
from polydraft.decoding.loop import run
from polydraft.decoding.policy import Fixed
from polydraft.decoding.row import Row
from polydraft.decoding.trunk import EagerTrunk
from polydraft.errors import InputError
from tests.tiny import BLOCK, tiny_head, tiny_model

PROMPT = torch.tensor([[5, 9, 2, 7, 7, 1, 5, 9, 2]])
FORMS: dict[str, dict[str, Any]] = {
    "fused": {},
    "block": {"features": "block", "block": BLOCK, "joint": "markov", "rank": 1},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rows", [1, 3])
def test_greedy_text_is_plain(form: str, rows: int) -> None:
    model = tiny_model(initializer_range=0.08)  # one that falls into loops
    head = tiny_head(model, **FORMS[form])
    prompts = torch.cat([PROMPT, PROMPT.flip(-1), PROMPT.roll(2)])[:rows]
    options: dict[str, Any] = {"do_sample": False, "max_new_tokens": 60}
    expected = cast(Any, model).generate(prompts, attention_mask=torch.ones_like(prompts), **options)
    out = polydraft.generate(model, head, prompts, prompt_lookup_num_tokens=7, **options)
    assert torch.equal(cast(torch.Tensor, out.sequences), expected)
    assert out.origins is not None and out.origins.max() == 7  # longer than the head's horizon


def test_sampled_text_is_plain_where_all_drafts_are_copied() -> None:
    """One draw a token, in order: a copied draft is kept where plain sampling says the same."""
    model = tiny_model(vocab_size=5, initializer_range=0.1)
    head = tiny_head(model, draft_vocab_size=5)
    prompt = torch.tensor([[0, 3, 1, 2, 0, 3, 1]])
    kept = 0
    for seed in range(5):
        options: dict[str, Any] = {"do_sample": True, "max_new_tokens": 40, "top_k": 0}
        torch.manual_seed(seed)
        expected = cast(Any, model).generate(prompt, **options)
        torch.manual_seed(seed)
        out = polydraft.generate(model, head, prompt, prompt_lookup_num_tokens=3, draft_length=0, **options)
        assert torch.equal(cast(torch.Tensor, out.sequences), expected)
        assert out.statistics is not None
        kept += out.statistics.accepted_tokens
    assert kept > 10


@pytest.mark.parametrize("given", [{"prompt_lookup_num_tokens": 0}, {"draft_length": -1}])
def test_bad_numbers_are_refused(given: dict[str, int]) -> None:
    model = tiny_model()
    (name,) = given
    with pytest.raises(InputError, match=f"^{name} must be"):
        polydraft.generate(model, tiny_head(model), PROMPT, **cast(Any, given))


def test_each_policy_is_told_of_its_own_drafts() -> None:
    """Two policies that note everything: the cycles of both together are those of the generation."""

    class Noting(Fixed):
        def __init__(self, drafts: int) -> None:
            super().__init__(drafts)
            self.seen: list[tuple[int, list[int]]] = []
            self.batches: set[tuple[int, int]] = set()

        def observe(self, *, rows: int, drafted: int, accepted: Any, sampled: int = 0) -> None:
            self.seen.append((drafted, list(accepted)))
            self.batches.add((rows, sampled))

    model = tiny_model(initializer_range=0.08)
    head = tiny_head(model, **FORMS["fused"])
    asked, copied = Noting(2), Noting(7)
    engine = Engine(
        head, processors=cast(Any, []), do_sample=False, generator=None, policy=asked, copying=copied
    )
    shaped = LogitsProcessorList([TemperatureLogitsWarper(0.5)])
    rows = [
        Row(PROMPT, StoppingCriteriaList([MaxLengthCriteria(70)]), processors=own) for own in (None, shaped)
    ]
    trunk = EagerTrunk(model, taps=head.config.taps, rows=2)
    with torch.inference_mode():
        statistics = run(engine, rows, [PROMPT[0], PROMPT[0]], trunk)
    assert {drafted for drafted, _ in asked.seen} <= {0, 1, 2} and asked.seen
    assert max(drafted for drafted, _ in copied.seen) == 7
    every = [count for _, accepted in asked.seen + copied.seen for count in accepted]
    assert len(every) == statistics.steps
    assert asked.batches | copied.batches == {(2, 1)}
    assert sum(every) == statistics.accepted_tokens
