"""What users of `model.generate` ask for, drafted: alone and in batches, by chains and by trees."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, StoppingCriteria, StoppingCriteriaList

import polydraft
from polydraft.compat import CACHE
from tests.tiny import BLOCK, tiny_head, tiny_model

PROMPTS = torch.tensor([[0, 0, 5, 9, 2, 7], [3, 14, 15, 9, 26, 5], [0, 0, 0, 0, 1, 1]])
MASK = (PROMPTS != 0).long()
WAYS: dict[str, dict[str, Any]] = {
    "chain": {},
    "tree": {"drafting": "tree", "draft_length": 7},
    "lookup": {"prompt_lookup_num_tokens": 6},
}
BLOCK_HEAD: dict[str, Any] = {"features": "block", "block": BLOCK, "joint": "markov", "rank": 1}


def both(way: str, *, rows: int = 3, eos: int | None = None, **options: Any) -> tuple[Any, Any]:
    """What plain and drafted decoding give: the dictionaries."""
    model = tiny_model(initializer_range=0.15, eos_token_id=eos)
    given: dict[str, Any] = {"max_new_tokens": 24, "do_sample": False, "pad_token_id": 0} | options
    given["attention_mask"] = MASK[:rows]
    plain = cast(Any, model).generate(PROMPTS[:rows], return_dict_in_generate=True, **given)
    drafted = polydraft.generate(model, tiny_head(model, **BLOCK_HEAD), PROMPTS[:rows], **WAYS[way], **given)
    return plain, drafted


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("rows", [1, 3])
def test_scores_and_logits_are_those_of_plain_decoding(way: str, rows: int) -> None:
    plain, drafted = both(
        way, rows=rows, output_scores=True, output_logits=True, repetition_penalty=1.3, eos=8
    )
    assert torch.equal(drafted.sequences, plain.sequences)
    for name in ("scores", "logits"):
        found, expected = drafted[name], plain[name]
        assert len(found) == len(expected)
        for row in range(rows):
            count = int((drafted.origins[row] >= 0).sum())
            a, b = (torch.stack([step[row] for step in one]) for one in (found, expected))
            torch.testing.assert_close(a[:count], b[:count], rtol=1e-4, atol=1e-4)
            assert (a[count:] == 0).all()


def allowed(row: int, ids: Tensor) -> list[int]:
    """Other tokens for every row, and for every length."""
    return [20 * row + int(len(ids) % 3), 20 * row + 9, 20 * row + 11]


OPTIONS: dict[str, dict[str, Any]] = {
    "repetition_penalty": {"repetition_penalty": 1.8},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 2},
    "min_new_tokens": {"min_new_tokens": 9, "eos": 8},
    "bad_words_ids": {"bad_words_ids": [[9], [3, 7]]},
    "sequence_bias": {"sequence_bias": [[[12], 2.0], [[5, 6], -3.0]]},
    "suppress_tokens": {"suppress_tokens": [1, 2, 3]},
    "forced_eos_token_id": {"forced_eos_token_id": 8, "eos": 8},
    "prefix_allowed_tokens_fn": {"prefix_allowed_tokens_fn": allowed},
    "encoder_repetition_penalty": {"encoder_repetition_penalty": 1.5},
    "encoder_no_repeat_ngram_size": {"encoder_no_repeat_ngram_size": 2},
    "exponential_decay_length_penalty": {"exponential_decay_length_penalty": (5, 1.4), "eos": 8},
    "max_length": {"max_length": 20, "max_new_tokens": None},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("option", OPTIONS)
def test_text_is_that_of_plain_decoding(way: str, option: str) -> None:
    plain, drafted = both(way, **OPTIONS[option])
    assert torch.equal(drafted.sequences, plain.sequences)


@pytest.mark.parametrize("way", WAYS)
def test_own_stopping_criteria_see_each_row(way: str) -> None:
    class Thrice(StoppingCriteria):
        """Ends a row when its last token has come three times."""

        def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
            return (input_ids == input_ids[:, -1:]).sum(-1) >= 3

    plain, drafted = both(way, stopping_criteria=StoppingCriteriaList([Thrice()]), eos=63)
    assert torch.equal(drafted.sequences, plain.sequences)
    assert drafted.origins.shape[1] < 24 or (drafted.origins == -1).any()


@pytest.mark.parametrize("way", WAYS)
def test_many_sequences_of_each_prompt(way: str) -> None:
    model = tiny_model(initializer_range=0.15)
    head = tiny_head(model)
    options: dict[str, Any] = {"do_sample": True, "num_return_sequences": 4, "max_new_tokens": 12, "top_k": 0}
    options |= {"attention_mask": MASK, "pad_token_id": 0} | WAYS[way]
    texts = []
    for _ in range(2):
        generator = torch.Generator().manual_seed(5)
        out = polydraft.generate(model, head, PROMPTS, generator=generator, **options)
        assert out.sequences is not None
        assert torch.equal(out.sequences[:, : PROMPTS.shape[1]], PROMPTS.repeat_interleave(4, dim=0))
        texts.append(out.sequences)
    assert torch.equal(*texts)
    assert len({tuple(row) for row in texts[0].tolist()}) == 12


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["llama", "gemma3", "gpt2"])
def test_a_chat_goes_on_from_its_cache(kind: str, way: str) -> None:
    """Three turns with one cache, the middle one plain: each as if the text were new."""
    model = tiny_model(kind, initializer_range=0.3)
    head = tiny_head(model, **BLOCK_HEAD)
    cache = DynamicCache(config=model.config)
    ids = PROMPTS[1:2]
    for turn in range(3):
        options: dict[str, Any] = {"do_sample": False, "max_new_tokens": 13}
        expected = cast(Any, model).generate(ids, **options)
        if turn == 1:
            found = cast(Any, model).generate(ids, **{CACHE: cache}, **options)
        else:
            out = polydraft.generate(model, head, ids, **{CACHE: cache}, **options, **WAYS[way])
            assert out.cache is cache
            found = cast(Tensor, out.sequences)
        assert torch.equal(found, expected)
        assert cache.get_seq_length() == expected.shape[1] - 1
        ids = torch.cat([expected, torch.tensor([[4 + turn, 11, 30]])], dim=-1)


@pytest.mark.parametrize("chunk", [1, 3, 64])
@pytest.mark.parametrize("rows", [1, 3])
def test_long_prompts_in_chunks(rows: int, chunk: int) -> None:
    _, drafted = both("chain", rows=rows, prefill_chunk_size=chunk)
    whole, _ = both("chain", rows=rows)
    assert torch.equal(drafted.sequences, whole.sequences)


def test_a_streamer_follows_one_text() -> None:
    model = tiny_model()
    streamer = cast(Any, object())
    with pytest.raises(polydraft.InputError, match="a streamer follows one text: leave it out of a batch"):
        polydraft.generate(model, tiny_head(model), PROMPTS, streamer=streamer, max_new_tokens=2)
