"""Greedy decoding in float32 gives, token for token, what `model.generate` gives."""

from __future__ import annotations

import copy
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import polydraft
from polydraft import resources
from polydraft.bench.prompts import prompts_path, read_prompts
from polydraft.compat import CACHE
from polydraft.embedded import EMBEDDED
from polydraft.heads import DraftHead
from polydraft.loading import load_head, load_model
from tests.decoding.oracle import oracle
from tests.tiny import BLOCK, KINDS, WINDOW, tiny_head, tiny_model

VOCAB_SIZE, NEW_TOKENS, HORIZON = 64, 64, 4
WINDOWED = ("gemma2", "gemma3", "mistral")
SHIPPED_HEADS = (resources.PACKAGE / "data" / "heads", resources.PACKAGE.parents[1] / "heads")
PROMPT_LENGTHS = (1, 5, 2 * WINDOW + 3)
DAILY = ("llama", "gemma3", "gpt2")
every_kind = pytest.mark.parametrize(
    "kind", [kind if kind in DAILY else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS]
)


def prompt_of(length: int, *, seed: int = 0) -> Tensor:
    return torch.randint(VOCAB_SIZE, (1, length), generator=torch.Generator().manual_seed(seed))


def plain(model: PreTrainedModel, prompt: Tensor, **options: Any) -> Any:
    """What `model.generate` says, greedily."""
    return cast(Any, model).generate(prompt, do_sample=False, **({"max_new_tokens": NEW_TOKENS} | options))


def check_identical(model: PreTrainedModel, head: DraftHead, prompt: Tensor, **options: Any) -> list[int]:
    """Both doors give the plain text; returns the acceptance histogram."""
    expected = plain(model, prompt, **copy.deepcopy(options))
    given = {"max_new_tokens": NEW_TOKENS, "do_sample": False}
    out = polydraft.generate(model, head, prompt, **(given | copy.deepcopy(options)))
    assert out.sequences is not None and out.statistics is not None
    assert out.sequences.tolist() == expected.tolist()
    other = plain(model, prompt, custom_generate=polydraft.decoder(head), **copy.deepcopy(options))
    assert other.tolist() == expected.tolist()
    return out.statistics.acceptance_histogram


@pytest.mark.parametrize("length", PROMPT_LENGTHS)
@every_kind
class TestEveryKind:
    def test_with_a_random_head(self, kind: str, length: int) -> None:
        model = tiny_model(kind, vocab_size=VOCAB_SIZE)
        features: dict[str, Any] = {"features": "hidden"} if length == 5 else {"layers": [1]}
        head = tiny_head(model, rank=3, horizon=3, draft_vocab_size=40, **features)
        check_identical(model, head, prompt_of(length))

    def test_with_a_block(self, kind: str, length: int) -> None:
        model = tiny_model(kind, vocab_size=VOCAB_SIZE)
        head = tiny_head(model, features="block", block=BLOCK, layers=[2], draft_vocab_size=40)
        check_identical(model, head, prompt_of(length))

    def test_with_accepted_runs_of_every_length(self, kind: str, length: int) -> None:
        model, prompt = tiny_model(kind, vocab_size=VOCAB_SIZE), prompt_of(length)
        head = oracle(model, plain(model, prompt), horizon=HORIZON)
        histogram = check_identical(model, head, prompt)
        assert len(histogram) == HORIZON + 1
        assert min(histogram) >= 2

    def test_with_nothing_but_whole_runs(self, kind: str, length: int) -> None:
        model, prompt = tiny_model(kind, vocab_size=VOCAB_SIZE), prompt_of(length)
        head = oracle(model, plain(model, prompt), horizon=HORIZON, pattern=[HORIZON])
        histogram = check_identical(model, head, prompt)
        assert histogram[HORIZON] >= 12  # 5 tokens a step


@pytest.mark.parametrize("kind", WINDOWED)
def test_any_number_of_accepted_drafts_at_every_place_of_the_window(kind: str) -> None:
    model, prompt = tiny_model(kind, vocab_size=VOCAB_SIZE), prompt_of(2)
    text = plain(model, prompt)
    generator = torch.Generator().manual_seed(5)
    for _ in range(10):
        pattern = torch.randint(HORIZON + 1, (40,), generator=generator).tolist()
        head = oracle(model, text, horizon=HORIZON, pattern=pattern)
        found = polydraft.generate(model, head, prompt, max_new_tokens=NEW_TOKENS).sequences
        assert found is not None
        assert found.tolist() == text.tolist()


PROCESSED: dict[str, dict[str, Any]] = {
    "repetition_penalty": {"repetition_penalty": 1.7},
    "min_new_tokens": {"min_new_tokens": 40, "eos_token_id": list(range(0, VOCAB_SIZE, 3))},
    "no_repeat_ngram": {"no_repeat_ngram_size": 2},
    "bad_words": {"bad_words_ids": [[7], [3, 4], *[[k] for k in range(20, 30)]]},
    "forced_end": {"forced_eos_token_id": 9, "max_new_tokens": 20},
    "several": {"repetition_penalty": 0.6, "no_repeat_ngram_size": 3, "suppress_tokens": [1, 2, 5]},
}


@pytest.mark.parametrize("kind", ["llama", "gemma3", "gpt2"])
@pytest.mark.parametrize("options", PROCESSED.values(), ids=PROCESSED)
def test_with_processors(kind: str, options: dict[str, Any]) -> None:
    model, prompt = tiny_model(kind, vocab_size=VOCAB_SIZE), prompt_of(6)
    text = plain(model, prompt, **options)
    assert text.tolist() != plain(model, prompt)[:, : text.shape[1]].tolist(), "the processor changes nothing"
    check_identical(model, tiny_head(model, draft_vocab_size=50), prompt, **options)
    histogram = check_identical(model, oracle(model, text, horizon=HORIZON), prompt, **options)
    assert sum(histogram[1:]) >= 2


@every_kind
@pytest.mark.parametrize("padding", [1, 7])
def test_with_left_padding(kind: str, padding: int) -> None:
    model, prompt = tiny_model(kind, vocab_size=VOCAB_SIZE), prompt_of(6)
    text = plain(model, prompt)
    padded = torch.cat([torch.zeros(1, padding, dtype=torch.long), prompt], dim=-1)
    mask = (torch.arange(padded.shape[1]) >= padding).long()[None]
    check_identical(model, oracle(model, text, horizon=HORIZON), padded, attention_mask=mask)
    found = polydraft.generate(
        model, tiny_head(model), padded, attention_mask=mask, max_new_tokens=NEW_TOKENS
    ).sequences
    assert found is not None
    assert found[:, padding:].tolist() == text.tolist()


class TestContinuation:
    """A prompt whose beginning lies in a cache already."""

    @every_kind
    @pytest.mark.parametrize("more", [1, 3])
    def test_from_the_cache_of_plain_generation(self, kind: str, more: int) -> None:
        model = tiny_model(kind, vocab_size=VOCAB_SIZE)
        first = plain(model, prompt_of(5), max_new_tokens=12, return_dict_in_generate=True)
        prompt = torch.cat([first.sequences, prompt_of(more - 1, seed=1)], dim=-1)
        head = oracle(model, plain(model, prompt), horizon=HORIZON)
        check_identical(model, head, prompt, **{CACHE: first[CACHE]})

    @every_kind
    def test_from_the_cache_of_drafted_generation(self, kind: str) -> None:
        model, prompt = tiny_model(kind, vocab_size=VOCAB_SIZE), prompt_of(5)
        text = plain(model, prompt)
        head = oracle(model, text, horizon=HORIZON)
        for count in range(1, 16):  # ends in the middle of accepted runs too
            first = polydraft.generate(model, head, prompt, max_new_tokens=count)
            assert first.sequences is not None and first.cache is not None
            assert first.cache.get_seq_length() == first.sequences.shape[1] - 1
            rest = {"max_new_tokens": 20, CACHE: copy.deepcopy(first.cache)}
            drafted = polydraft.generate(model, head, first.sequences, **rest).sequences
            rest[CACHE] = first.cache
            undrafted = plain(model, first.sequences, **rest)
            assert drafted is not None
            assert drafted.tolist() == undrafted.tolist() == text[:, : 5 + count + 20].tolist()


@pytest.mark.slow
@pytest.mark.real_model
@pytest.mark.parametrize(
    ("places", "new_tokens"),
    [
        (slice(0, 4), 64),
        *(pytest.param(slice(half, 20, 2), 128, marks=pytest.mark.nightly) for half in (0, 1)),
    ],
    ids=["4 prompts", "20 prompts, even", "20 prompts, odd"],
)
def test_on_the_embedded_model(places: slice, new_tokens: int) -> None:
    """Held-out prompts with the shipped head, two of them with an oracle; all where there is no head.

    At night 20 prompts and 128 tokens.
    """
    model, tokenizer = load_model(EMBEDDED, dtype=torch.float32)
    shipped = any((folder / EMBEDDED).exists() for folder in SHIPPED_HEADS)
    head = load_head(EMBEDDED, model=model, tokenizer=tokenizer) if shipped else None
    for number, prompt in enumerate(read_prompts(prompts_path("heldout"))[places]):
        ids = torch.tensor([prompt.encode(tokenizer)])
        expected = plain(model, ids, max_new_tokens=new_tokens)
        found = polydraft.generate(
            model,
            oracle(model, expected) if head is None or number < 2 else head,
            ids,
            max_new_tokens=new_tokens,
            do_sample=False,
        )
        assert found.sequences is not None
        assert found.sequences.tolist() == expected.tolist(), prompt.where
