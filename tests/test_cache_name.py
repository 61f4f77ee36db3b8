"""The cache of keys and values under either of its names."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from transformers import DynamicCache, LlamaForCausalLM

import polydraft
from polydraft.cache_name import CACHE, NAMES, cache_name
from tests.tiny import tiny_head, tiny_model


class OlderLlama(LlamaForCausalLM):
    """A model of one's own, written for the name before 5.24."""

    def forward(self, input_ids: Any, past_key_values: Any = None, **inputs: Any) -> Any:
        return super().forward(input_ids, **{CACHE: past_key_values}, **inputs)


class NewerLlama(LlamaForCausalLM):
    """A model of one's own, written for the name since 5.24."""

    def forward(self, input_ids: Any, cache: Any = None, **inputs: Any) -> Any:
        return super().forward(input_ids, **{CACHE: cache}, **inputs)


def test_a_function_that_takes_none_has_no_name() -> None:
    assert cache_name(OlderLlama.forward) == "past_key_values"
    assert cache_name(NewerLlama.forward) == "cache"
    assert cache_name(LlamaForCausalLM.forward) == CACHE
    assert cache_name(torch.nn.Linear.forward) is None


@pytest.mark.parametrize("kind", [OlderLlama, NewerLlama])
def test_a_model_is_called_by_the_name_it_has(kind: Any) -> None:
    model = tiny_model()
    prompt = torch.tensor([[3, 1, 4, 1, 5]])
    expected = cast(Any, model).generate(prompt, do_sample=False, max_new_tokens=12)
    head = tiny_head(model)
    model.__class__ = kind
    if cache_name(kind.forward) != CACHE:  # transformers gives it under its own name alone
        model.generate = LlamaForCausalLM.generate.__get__(model)
    out = polydraft.generate(model, head, prompt, do_sample=False, max_new_tokens=12)
    assert out.sequences is not None and out.sequences.tolist() == expected.tolist()


def test_both_names_lead_to_the_cache_of_an_output() -> None:
    model = tiny_model()
    out = polydraft.generate(model, tiny_head(model), torch.tensor([[3, 1, 4]]), max_new_tokens=3)
    assert isinstance(out.cache, DynamicCache)
    assert out.past_key_values is out.cache
    assert set(NAMES) == {"cache", "past_key_values"}
