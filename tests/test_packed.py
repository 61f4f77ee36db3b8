"""Packed linear layers against the plain product in float64, and what is left of them afterwards."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from polydraft import packed as packed_module
from polydraft.compat import can_pack
from polydraft.packed import Packed, PackedLinear

pytestmark = pytest.mark.skipif(not can_pack(), reason="oneDNN multiplies in bfloat16 on some CPUs only")


def rounded(exact: Tensor) -> float:
    """How far bfloat16 may be from `exact`: the last of its 8 binary places, at the largest number."""
    return float(exact.abs().max()) * 2.0**-8


@torch.no_grad()
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("rows", "columns"), [(32, 32), (100, 64), (1, 32), (33, 96), (192, 576), (7, 50)])
def test_any_shape_is_the_plain_product(rows: int, columns: int, bias: bool) -> None:
    torch.manual_seed(rows)
    layer = nn.Linear(columns, rows, bias=bias).bfloat16()
    whole = layer.double().requires_grad_(False)
    weight, added = whole.weight.clone(), whole.bias.clone() if bias else None
    with Packed(layer.bfloat16()):
        for count in (1, 2, 8, 16, 17, 33, 70):
            x = torch.randn(2, count, columns, dtype=torch.bfloat16)
            exact = linear(x.double(), weight, added)
            assert (layer(x) - exact).abs().max() <= rounded(exact), count


def layers() -> nn.Sequential:
    torch.manual_seed(3)
    made = [nn.Linear(64, 40), nn.Linear(40, 8), nn.Linear(64, 8, dtype=torch.float32)]
    return nn.Sequential(made[0].bfloat16(), made[1].bfloat16(), made[2])


@torch.no_grad()
def test_inside_what_fits_is_packed_and_outside_nothing_is() -> None:
    model = layers()
    names, x = list(model.state_dict()), torch.randn(3, 64, dtype=torch.bfloat16)
    plain = model[0](x)
    with Packed(model):
        assert [type(layer) for layer in model] == [PackedLinear, PackedLinear, nn.Linear]
        assert list(model.state_dict()) == names
        assert (model[0](x) - plain).abs().max() <= rounded(plain)
    assert [type(layer) for layer in model] == [nn.Linear] * 3
    assert [name for name, _ in model.named_buffers()] == []


@torch.no_grad()
def test_it_may_be_entered_again_inside() -> None:
    model = layers()
    packed = Packed(model)
    with packed:
        with packed:
            pass
        assert type(model[0]) is PackedLinear
    assert type(model[0]) is nn.Linear


@torch.no_grad()
def test_weights_that_have_changed_are_packed_anew() -> None:
    model, x = layers(), torch.randn(3, 64, dtype=torch.bfloat16)
    packed = Packed(model)
    model[0].weight.mul_(2)
    plain = model[0](x)
    with packed:
        assert (model[0](x) - plain).abs().max() <= rounded(plain)


def test_with_gradients_the_plain_product_is_taken() -> None:
    model = layers()
    with Packed(model):
        model[0](torch.randn(2, 64, dtype=torch.bfloat16)).sum().backward()
    assert model[0].weight.grad is not None


def test_what_nobody_uses_any_more_is_forgotten() -> None:
    before = len(packed_module._packed)
    packed = Packed(layers())
    assert len(packed_module._packed) == before + 2
    del packed
    assert len(packed_module._packed) == before
