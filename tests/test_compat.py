"""What polydraft uses beyond documented interfaces: a failure names what a new release changed."""

from __future__ import annotations

import functools
from contextlib import nullcontext
from typing import Any, cast

import pytest
import torch
from peft import LoraConfig
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    DynamicCache,
    GenerationMixin,
    LlamaConfig,
    LlamaForCausalLM,
)
from transformers.generation.logits_process import PrefixConstrainedLogitsProcessor

import polydraft
from polydraft import compat
from polydraft.compat import CACHE, NAMES, cache_name
from tests.tiny import tiny_head, tiny_model


class OlderLlama(LlamaForCausalLM):
    """A user's own model, written for the name before 5.24."""

    def forward(self, input_ids: Any, past_key_values: Any = None, **inputs: Any) -> Any:
        return super().forward(input_ids, **{CACHE: past_key_values}, **inputs)


class NewerLlama(LlamaForCausalLM):
    """A user's own model, written for the name since 5.24."""

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


def test_attention_has_a_name_and_can_be_chosen() -> None:
    model = tiny_model()
    assert compat.attention_implementation(model.config) == "sdpa"
    config = LlamaConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=1)
    compat.set_attention_implementation(config, "eager")
    assert compat.attention_implementation(config) == "eager"
    model.set_attn_implementation("eager")
    assert compat.attention_implementation(model.config) == "eager"


def test_transformers_says_which_models_keep_a_state() -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "vocab_size": 8}
    mamba = AutoModelForCausalLM.from_config(AutoConfig.for_model("mamba", state_size=4, **sizes))
    assert compat.is_stateful(mamba)
    assert not compat.is_stateful(tiny_model())


def test_a_commit_is_recorded() -> None:
    config = tiny_model().config
    assert compat.commit_of(config) is None
    compat.set_commit(config, "0123abc")
    assert compat.commit_of(config) == "0123abc"


@pytest.mark.adapters
def test_an_adapter_is_seen() -> None:
    model = tiny_model()
    assert not compat.has_adapter(model)
    model.add_adapter(LoraConfig(r=2, target_modules=["q_proj"]))
    assert compat.has_adapter(model)


@pytest.mark.skipif(not compat.can_pack(), reason="oneDNN multiplies in bfloat16 on some CPUs only")
def test_a_packed_product_is_the_product() -> None:
    weight, x = torch.randn(6, 4).bfloat16(), torch.randn(2, 3, 4).bfloat16()
    bias = torch.randn(6).bfloat16()
    found = compat.packed_product(x, compat.pack_weight(weight, 4), bias)
    exact = x.double() @ weight.double().T + bias.double()
    torch.testing.assert_close(found.double(), exact, rtol=2**-7, atol=2**-5)


def test_a_missing_compiler_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("/nowhere/c++",))
    assert not compat.has_cpp_compiler()


def test_a_prefix_function_is_found() -> None:
    def allowed(row: int, ids: torch.Tensor) -> list[int]:
        return [row]

    assert compat.prefix_function(PrefixConstrainedLogitsProcessor(allowed, 1)) is allowed


def test_tensors_are_found_in_nested_values() -> None:
    first, second = torch.zeros(1), torch.ones(2)
    assert compat.tensors_within({"a": [first, 3], "b": (None, {"c": second})}) == [first, second]


def test_plain_generation_goes_through_its_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = tiny_model()
    called: list[str] = []

    def watch(name: str) -> None:
        step = getattr(GenerationMixin, name)

        def noted(*args: Any, **options: Any) -> Any:
            called.append(name)
            return step(*args, **options)

        monkeypatch.setattr(GenerationMixin, name, functools.wraps(step)(noted))

    for name in compat.GENERATION_STEPS:
        watch(name)
    model.generate(torch.tensor([[5, 6]]), max_new_tokens=2, do_sample=False)
    assert set(called) == set(compat.GENERATION_STEPS)


def test_hooks_before_a_forward_are_found() -> None:
    module, called = torch.nn.Linear(2, 2), list[torch.Tensor]()
    assert compat.hooks_before(module) == []
    module.register_forward_pre_hook(lambda _, inputs: called.append(inputs[0]))
    (hook,) = compat.hooks_before(module)
    hook(module, (torch.ones(2),))
    assert called[0].tolist() == [1, 1]


class Numbered(torch.nn.Module):
    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * (self.number + 2)


@pytest.mark.parametrize("marked", [True, False])
def test_one_program_serves_all_sizes_and_numbers(marked: bool) -> None:
    programs: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        programs.append(graph)
        return graph

    def call(module: Numbered, x: torch.Tensor) -> Any:
        return module(x)

    compiled = torch.compile(call, backend=backend)
    modules = [Numbered(number) for number in range(7, 12)]
    with compat.layer_programs(variants=8) if marked else nullcontext():
        for size, module in enumerate(modules, start=5):
            x = torch.ones(size)
            if marked:
                compat.mark_size_dynamic(x, 0)
            assert compiled(module, x).tolist() == [module.number + 2.0] * size
    assert len(programs) == (2 if marked else len(modules))  # two: of one number, then of any
