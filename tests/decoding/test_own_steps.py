"""Models that generate in a way of their own: refused where drafting does not go through it."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from types import MethodType
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

import polydraft
from polydraft.compat import GENERATION_STEPS
from polydraft.decoding import LiveBatch
from polydraft.decoding.own_steps import own_generate, own_step
from polydraft.errors import InputError
from tests.decoding.models import plain
from tests.tiny import tiny_head, tiny_model

PROMPT = torch.tensor([[5, 6, 7, 8, 9, 10]])
NEW_TOKENS = 12


def refusal(model: Any, base: PreTrainedModel, **options: Any) -> str:
    """The line that a drafted generation of `model`, made of `base`, is refused with, by either door."""
    head = tiny_head(base)
    options = {"max_new_tokens": NEW_TOKENS, "do_sample": False} | options
    lines = []
    for call in (
        lambda: polydraft.generate(model, head, PROMPT, **options),
        lambda: model.generate(input_ids=PROMPT, custom_generate=polydraft.decoder(head), **options),
    ):
        with pytest.raises(InputError) as caught:
            call()
        lines.append(str(caught.value))
    assert lines[0] == lines[1]
    assert "\n" not in lines[0]
    return lines[0]


def of_class(model: PreTrainedModel) -> None:
    """Override a step in a class, which even calls transformers' own."""
    kind: Any = type(model)

    class Shifted(kind):  # type: ignore[misc]
        def prepare_inputs_for_generation(self, input_ids: Any, *args: Any, **inputs: Any) -> Any:
            return super().prepare_inputs_for_generation((input_ids + 1) % 64, *args, **inputs)

    model.__class__ = Shifted


def of_object(model: PreTrainedModel) -> None:
    """Override a step of one object."""
    own = model.prepare_inputs_for_generation

    def shifted(input_ids: Any, **inputs: Any) -> Any:
        return own((input_ids + 1) % 64, **inputs)

    cast(Any, model).prepare_inputs_for_generation = shifted


def in_disguise(model: PreTrainedModel) -> None:
    """Override a step of one object by a function that names itself after transformers' own."""
    own = model.prepare_inputs_for_generation

    @wraps(own)
    def shifted(input_ids: Any, **inputs: Any) -> Any:
        return own((input_ids + 1) % 64, **inputs)

    cast(Any, model).prepare_inputs_for_generation = shifted


@pytest.mark.parametrize("override", [of_class, of_object, in_disguise])
@pytest.mark.parametrize("kind", ["llama", "phi3"])
def test_a_step_of_the_users_own(override: Callable[[PreTrainedModel], None], kind: str) -> None:
    model = tiny_model(kind)
    before = plain(model, PROMPT, max_new_tokens=NEW_TOKENS)
    override(model)
    assert not plain(model, PROMPT, max_new_tokens=NEW_TOKENS).equal(before)
    assert refusal(model, model) == (
        f"{type(model).__name__} decodes by a prepare_inputs_for_generation ({__name__}) of its own, which "
        "drafting does not call, so it cannot be drafted with: call plain model.generate"
    )


@pytest.mark.parametrize("name", GENERATION_STEPS)
def test_every_step_is_looked_at(name: str) -> None:
    model = tiny_model()
    assert own_step(model) is None
    setattr(model, name, MethodType(lambda self: None, model))
    assert own_step(model) == f"{name} ({__name__})"
    setattr(model, name, MethodType(getattr(type(model), name), model))  # what PEFT leaves when it is done
    assert own_step(model) is None


class TestAGenerateOfItsOwn:
    def test_is_gone_through(self) -> None:
        """It may change the prompt, as long as it hands on `custom_generate`."""
        model = tiny_model()
        own = model.generate

        def backwards(input_ids: Tensor, **options: Any) -> Any:
            return own(input_ids.flip(-1), **options)

        cast(Any, model).generate = backwards
        expected = plain(tiny_model(), PROMPT.flip(-1), max_new_tokens=NEW_TOKENS)
        assert plain(model, PROMPT, max_new_tokens=NEW_TOKENS).equal(expected)
        out = polydraft.generate(model, tiny_head(model), PROMPT, max_new_tokens=NEW_TOKENS)
        assert out.sequences is not None
        assert out.sequences.equal(expected)

    def test_that_hands_nothing_on(self) -> None:
        model = tiny_model()
        cast(Any, model).generate = lambda ids, **options: ids
        with pytest.raises(InputError, match="the generate of LlamaForCausalLM gives back Tensor"):
            polydraft.generate(model, tiny_head(model), PROMPT, max_new_tokens=NEW_TOKENS)

    def test_is_refused_by_a_live_batch(self) -> None:
        model = tiny_model()
        assert own_generate(model) is None
        cast(Any, model).generate = lambda ids, **options: ids
        line = (
            f"LlamaForCausalLM has a generate of its own \\({__name__}\\), which a live batch does not call"
        )
        with pytest.raises(InputError, match=line):
            LiveBatch(model, tiny_head(model), rows=1)


PROMPT_TUNED = "decodes by a prepare_inputs_for_generation (peft.peft_model) of its own"
TOLD = "is told by PEFT which adapter serves which row or place"
LORA = {"target_modules": ["q_proj", "up_proj"], "init_lora_weights": False}
ADAPTERS: dict[str, tuple[str, dict[str, Any], dict[str, Any], str | None]] = {
    "lora": ("LoraConfig", LORA, {}, None),
    "ia3": (
        "IA3Config",
        {"target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]},
        {},
        None,
    ),
    "adaption prompt": ("AdaptionPromptConfig", {"adapter_len": 4, "adapter_layers": 2}, {}, None),
    "prefix": ("PrefixTuningConfig", {"num_virtual_tokens": 4}, {}, PROMPT_TUNED),
    "prompt": ("PromptTuningConfig", {"num_virtual_tokens": 4}, {}, PROMPT_TUNED),
    "p-tuning": (
        "PromptEncoderConfig",
        {"num_virtual_tokens": 4, "encoder_hidden_size": 16},
        {},
        PROMPT_TUNED,
    ),
    "cpt": (
        "CPTConfig",
        {"cpt_token_ids": [3, 4], "cpt_mask": [1, 1], "cpt_tokens_type_mask": [1, 2]},
        {},
        PROMPT_TUNED,
    ),
    "multitask": (
        "MultitaskPromptTuningConfig",
        {"num_virtual_tokens": 4, "num_tasks": 2},
        {"task_ids": torch.tensor([1])},
        PROMPT_TUNED,
    ),
    "lora by row": ("LoraConfig", LORA, {"adapter_names": ["default"]}, TOLD),
    "activated lora": ("LoraConfig", LORA | {"alora_invocation_tokens": [9, 10]}, {}, TOLD),
    "poly": (
        "PolyConfig",
        {"target_modules": ["q_proj"], "n_tasks": 2, "r": 4},
        {"task_ids": torch.tensor([1])},
        TOLD,
    ),
}
"""Kinds of PEFT: their configuration, what `generate` is given besides, and why they are refused."""


@pytest.mark.adapters
@pytest.mark.parametrize("kind", ADAPTERS)
def test_adapters(kind: str) -> None:
    """The adapted text, drafted; or a refusal where the adapter acts outside of the forward."""
    import peft

    name, fields, options, reason = ADAPTERS[kind]
    base = tiny_model()
    unadapted = plain(base, PROMPT, max_new_tokens=NEW_TOKENS)
    model = peft.get_peft_model(cast(Any, base), getattr(peft, name)(task_type="CAUSAL_LM", **fields))
    randomize(model.eval())
    given: dict[str, Any] = {"max_new_tokens": NEW_TOKENS, "do_sample": False} | options
    adapted = cast(Any, model).generate(input_ids=PROMPT, **given)
    assert not adapted.equal(unadapted)
    if reason is not None:
        assert reason in refusal(model, base, **options)
        return
    for drafting in ("chain", "tree"):
        out = polydraft.generate(cast(Any, model), tiny_head(base), PROMPT, drafting=drafting, **given)
        assert out.sequences is not None
        assert out.sequences.equal(adapted)


def randomize(model: nn.Module) -> None:
    """Give what is trained in `model` random numbers."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.3 * torch.randn_like(parameter))
