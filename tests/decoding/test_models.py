"""The contract of base models: each, alone and in ragged batches, gives its plain greedy text."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.decoding.models import (
    CASES,
    DAILY,
    HORIZON,
    NEW_TOKENS,
    PADDING,
    ROWS,
    case_model,
    drafted,
    known,
    new_tokens,
    oracle_of_many,
    plain,
)
from tests.tiny import BLOCK, WINDOW, tiny_head

LONG = 3 * WINDOW + 5
"""Tokens of a prompt that no sliding window holds."""


def block_of(case: str) -> dict[str, Any]:
    """Options of a head that reads all of the context, and a layer; gemma3n's give four states a token."""
    return {"features": "block", "block": BLOCK, "layers": [] if case == "gemma3n" else [1]}


@pytest.mark.parametrize(
    "case", [case if case in DAILY else pytest.param(case, marks=pytest.mark.slow) for case in CASES]
)
class TestEveryModel:
    def test_says_something_to_go_wrong_with(self, case: str) -> None:
        _, prompts, texts = known(case)
        said = [tuple(text[len(prompt) + 4 :].tolist()) for prompt, text in zip(prompts, texts, strict=True)]
        assert len(set(said)) >= ROWS - 2
        assert sum(len(set(tokens)) for tokens in said) >= 5 * ROWS

    def test_alone_with_accepted_runs_of_every_length(self, case: str) -> None:
        model, prompts, texts = known(case)
        found: list[int] = [0] * (HORIZON + 1)
        for row in (1, 2, 5):  # the shortest prompt, the longest, another
            out = drafted(model, oracle_of_many(model, [texts[row]]), [prompts[row]])
            assert out.sequences is not None and out.statistics is not None
            assert out.sequences[0].tolist() == texts[row].tolist()
            for accepted, count in enumerate(out.statistics.acceptance_histogram):
                found[accepted] += count
        assert min(found) >= 3

    def test_a_long_prompt_in_chunks(self, case: str) -> None:
        model, prompts, texts = known(case)
        text = texts[2]
        assert len(prompts[2]) + NEW_TOKENS > LONG > 3 * WINDOW
        head = tiny_head(model, **block_of(case))
        for chunk in (1, WINDOW, LONG - 1, 100):
            for reader in (head, oracle_of_many(model, [text])):
                out = drafted(model, reader, [text[:LONG]], max_new_tokens=12, prefill_chunk_size=chunk)
                assert out.sequences is not None
                assert out.sequences[0].tolist() == text[: LONG + 12].tolist(), chunk

    @pytest.mark.parametrize("rows", [1, 2, 5, ROWS])
    def test_each_row_of_a_ragged_batch_says_what_it_says_alone(self, case: str, rows: int) -> None:
        model, prompts, texts = known(case)
        out = drafted(model, oracle_of_many(model, texts[:rows]), prompts[:rows])
        expected = [known(case).new(row) for row in range(rows)]
        assert new_tokens(out, prompts[:rows]) == expected
        assert out.statistics is not None
        assert min(out.statistics.acceptance_histogram) >= 1

    @pytest.mark.parametrize("rows", [2, ROWS])
    def test_rows_that_end_early_leave_the_others_alone(self, case: str, rows: int) -> None:
        model, prompts, texts = known(case)
        ends = [known(case).new(row)[place] for row, place in ((1, 2), (0, 9), (4, 14))]
        expected = [known(case).new(row, ends=ends) for row in range(rows)]
        longest = max(len(tokens) for tokens in expected)
        assert rows == 2 or min(len(tokens) for tokens in expected) < longest
        out = drafted(model, oracle_of_many(model, texts[:rows]), prompts[:rows], eos_token_id=ends)
        assert new_tokens(out, prompts[:rows]) == [
            tokens + [PADDING] * (longest - len(tokens)) for tokens in expected
        ]

    @pytest.mark.parametrize("rows", [1, 4])
    def test_trees(self, case: str, rows: int) -> None:
        model, prompts, texts = known(case)
        found = {}
        for drafting in ("tree", "chain"):
            out = drafted(
                model,
                oracle_of_many(model, texts[1:]),
                prompts[1 : rows + 1],
                drafting=drafting,
                draft_length=7,
            )
            assert new_tokens(out, prompts[1 : rows + 1]) == [known(case).new(row + 1) for row in range(rows)]
            assert out.statistics is not None
            found[drafting] = out.statistics.steps
        assert found["tree"] < found["chain"]

    @pytest.mark.parametrize("features", ["hidden", "block"])
    def test_a_batch_with_a_head_that_knows_nothing(self, case: str, features: str) -> None:
        model, prompts, _ = known(case)
        options = {"features": "hidden"} if features == "hidden" else block_of(case)
        head = tiny_head(model, horizon=HORIZON, draft_vocab_size=40, **options)
        out = drafted(model, head, prompts[:3], max_new_tokens=10, prefill_chunk_size=5)
        assert new_tokens(out, prompts[:3]) == [known(case).new(row)[:10] for row in range(3)]


@pytest.mark.parametrize("rows", [1, 3])
def test_rotary_positions_go_on_beyond_those_the_model_was_made_for(rows: int) -> None:
    model, (_, prompts, texts) = case_model("llama"), known("llama")
    model.config.max_position_embeddings = 16  # plain generation warns and goes on
    out = drafted(model, oracle_of_many(model, texts[:rows]), prompts[:rows])
    assert new_tokens(out, prompts[:rows]) == [known("llama").new(row) for row in range(rows)]


@pytest.mark.parametrize("case", ["gpt2", "opt", "gptj"])
@pytest.mark.parametrize("rows", [1, 3])
def test_a_table_of_positions_serves_to_its_last_entry(case: str, rows: int) -> None:
    """The longest row ends at the last position there is; nothing beyond it may be asked for."""
    _, prompts, _ = known(case)
    longest = max(len(prompt) for prompt in prompts[:rows])
    name = "max_position_embeddings" if case == "opt" else "n_positions"
    model = case_model(case, **{name: longest + NEW_TOKENS})
    texts = [plain(model, prompt[None], max_new_tokens=NEW_TOKENS)[0] for prompt in prompts[:rows]]
    out = drafted(model, oracle_of_many(model, texts), prompts[:rows])
    assert new_tokens(out, prompts[:rows]) == [
        text[len(prompt) :].tolist() for prompt, text in zip(prompts, texts, strict=False)
    ]


def test_a_batch_of_equal_prompts() -> None:
    model, prompts, texts = known("gemma3")
    out = drafted(model, oracle_of_many(model, [texts[2]]), [prompts[2]] * 4)
    assert new_tokens(out, [prompts[2]] * 4) == [known("gemma3").new(2)] * 4


def test_another_order_of_rows_gives_the_same_texts() -> None:
    model, prompts, texts = known("mistral")
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(2)).tolist()
    out = drafted(model, oracle_of_many(model, texts), [prompts[row] for row in order])
    assert new_tokens(out, [prompts[row] for row in order]) == [known("mistral").new(row) for row in order]


def test_rows_that_have_ended_are_not_computed() -> None:
    model, prompts, texts = known("qwen3")
    ends = known("qwen3").new(1)[:2]
    head, sizes = oracle_of_many(model, texts[:5]), list[int]()
    handle = model.register_forward_pre_hook(
        lambda _, args, given: sizes.append(len(given["input_ids"])), with_kwargs=True
    )
    try:
        out = drafted(model, head, prompts[:5], eos_token_id=ends)
    finally:
        handle.remove()
    assert out.statistics is not None
    prefill, *cycles = sizes
    assert prefill == 5
    assert cycles == sorted(cycles, reverse=True)
    assert cycles[-1] < cycles[0]
    assert sum(cycles) == out.statistics.steps
