"""Layers that quantise all tokens of a forward together: what is drafted would change the text."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

import polydraft
from polydraft.decoding.quantised import quantised_together
from polydraft.decoding.refusals import refuse_model
from polydraft.errors import InputError
from tests.tiny import tiny_head, tiny_model

PROMPT = torch.tensor([[5, 6, 7, 8]])
pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated"),
    pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor"),
]


def dynamic_int8(*kinds: type[nn.Module]) -> PreTrainedModel:
    """A tiny model by torch's `quantize_dynamic`."""
    quantize: Any = torch.ao.quantization.quantize_dynamic
    return cast(PreTrainedModel, quantize(tiny_model(), set(kinds), dtype=torch.qint8))


def test_a_token_depends_on_those_after_it() -> None:
    """What the refusal is for."""
    model: Any = dynamic_int8(nn.Linear)
    with torch.no_grad():
        rows = [model(torch.tensor([[5, 6, later]])).logits[0, 1] for later in range(0, 60, 10)]
    assert max(float((row - rows[0]).norm() / rows[0].norm()) for row in rows) > 0.01


def test_torch_dynamic_int8_is_refused() -> None:
    model, head = dynamic_int8(nn.Linear), tiny_head(tiny_model())
    with pytest.raises(InputError) as caught:
        polydraft.generate(model, head, PROMPT, max_new_tokens=4)
    assert str(caught.value) == (
        "LlamaForCausalLM quantises all tokens of a forward together, drafts included, in "
        "model.layers.0.self_attn.q_proj (torch.ao.nn.quantized.dynamic.modules.linear.Linear), "
        "so it cannot be drafted with: call plain model.generate"
    )


def test_weights_alone_are_no_hindrance() -> None:
    """Embeddings have no activations to quantise."""
    model = dynamic_int8(nn.Dropout)  # none of the model's
    refuse_model(model)


class Linear8bitLt(nn.Linear):
    """As the layer of bitsandbytes of this name: a column with an outlier leaves int8 for all tokens."""

    def __init__(self, threshold: float) -> None:
        super().__init__(2, 2)
        self.state = SimpleNamespace(threshold=threshold)


def compressed(**activations: Any) -> nn.Module:
    """A layer as compressed-tensors marks it."""
    layer: Any = nn.Linear(2, 2)
    inputs = SimpleNamespace(**activations) if activations else None
    layer.quantization_scheme = SimpleNamespace(input_activations=inputs)
    return cast(nn.Module, layer)


def torchao(granularity: str, *, scale: torch.Tensor | None = None) -> nn.Module:
    """A layer whose weight is as a quantised tensor of torchao."""
    layer: Any = nn.Linear(2, 2)
    layer.weight.act_quant_kwargs = SimpleNamespace(granularity=type(granularity, (), {})())
    layer.weight.act_quant_scale = scale
    return cast(nn.Module, layer)


@pytest.mark.parametrize(
    ("layer", "together"),
    [
        (Linear8bitLt(6.0), True),
        (Linear8bitLt(0.0), False),
        (compressed(dynamic=True, strategy="tensor"), True),
        (compressed(dynamic=True, strategy="token"), False),
        (compressed(dynamic=False, strategy="tensor"), False),
        (compressed(), False),
        (torchao("PerTensor"), True),
        (torchao("PerTensor", scale=torch.ones(())), False),
        (torchao("PerRow"), False),
        (nn.Linear(2, 2), False),
    ],
)
def test_what_quantises_tokens_together(layer: nn.Module, together: bool) -> None:
    """Of libraries that are not here: their layers as they are built."""
    assert (quantised_together(nn.Sequential(nn.ReLU(), layer)) is not None) == together
