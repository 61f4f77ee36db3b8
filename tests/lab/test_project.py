"""The roofline: sizes against real modules, seconds against numbers by hand, limits, directions."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lab.overhead.cells import parameters
from lab.project.expectation import expected_tokens, parse_acceptance
from lab.project.machine import Machine, Op
from lab.project.presets import H100, MODELS, model_shape, on_machine
from lab.project.roofline import (
    Load,
    check_fits,
    choice_op,
    draft_ops,
    forward_ops,
    project,
)
from lab.project.shapes import COSTED, HeadShape, ModelShape, shape_of
from lab.project.sweep import Sweep, grid_rows, rows
from polydraft.errors import InputError
from polydraft.heads.block import block_sizes
from polydraft.joint import MEMBERS
from tests.tiny import tiny_head, tiny_model

TOY = ModelShape(
    name="toy", layers=3, hidden_size=4, ffn=8, heads=2, kv_heads=1, head_dim=2, vocab_size=10, weight_bytes=2
)
WIDE = ModelShape(  # next to nothing but weights of layers
    name="wide", layers=32, hidden_size=4096, ffn=14336, heads=32, kv_heads=8, head_dim=128, vocab_size=256
)
HEAD = HeadShape(joint="cp", rank=4, horizon=4, draft_vocab_size=16, feature_size=4096, map_rank=64)
MACHINE = Machine(name="m", bandwidth=1e12, flops=1e15)


def test_expected_tokens_by_hand() -> None:
    assert expected_tokens((0.5,), 2) == pytest.approx(1.75)
    assert expected_tokens((0.8, 0.5), 3) == pytest.approx(1 + 0.8 + 0.4 + 0.2)
    assert expected_tokens((0.7,), 6) == pytest.approx((1 - 0.7**7) / (1 - 0.7))
    assert expected_tokens((1.0,), 5) == 6
    assert expected_tokens((0.0, 0.9), 5) == 1
    assert parse_acceptance("0.8,0.5") == (0.8, 0.5)


@pytest.mark.parametrize("text", ["", "x", "1.2", "0.5,-0.1"])
def test_acceptance_that_is_none(text: str) -> None:
    with pytest.raises(InputError):
        parse_acceptance(text)


def test_model_sizes_are_those_of_a_model() -> None:
    model = tiny_model("llama")
    shape = shape_of(model.config)
    matrices = [p for name, p in model.named_parameters() if p.dim() == 2 and "embed_tokens" not in name]
    assert shape.read_parameters == sum(p.numel() for p in matrices)
    assert not shape.tied
    assert shape.stored_bytes == 2 * (shape.read_parameters + 64 * 32)
    with pytest.raises(InputError, match="mixture of experts"):
        shape_of(tiny_model("mixtral").config)


@pytest.mark.parametrize(
    ("name", "billions"), [("llama-3.2-1b", 1.236), ("llama-3.1-8b", 8.030), ("llama-3.1-70b", 70.554)]
)
def test_presets_have_the_published_numbers_of_parameters(name: str, billions: float) -> None:
    assert model_shape(name).stored_bytes / 2 / 1e9 == pytest.approx(billions, rel=1e-3)


@pytest.mark.parametrize("features", ["fused", "hidden", "block"])
@pytest.mark.parametrize("joint", COSTED)
def test_head_sizes_are_those_of_a_head(joint: str, features: str) -> None:
    model = tiny_model("llama")
    rank = 1 if MEMBERS[joint].single else 3
    options = {"block": block_sizes(model.config)} if features == "block" else {}
    head = tiny_head(model, joint=joint, rank=rank, features=features, draft_vocab_size=20, **options)
    shape = HeadShape(
        joint=joint,
        rank=rank,
        horizon=3,
        draft_vocab_size=20,
        feature_size=16,
        features=features,
        map_rank=4,
        markov_rank=6,
    )
    assert shape.parameters(shape_of(model.config)) == parameters(head)


def test_a_forward_by_hand() -> None:
    # attention 2 * 4 * 2 * (2 + 1) = 48, feed-forward 3 * 4 * 8 = 96: 144 a layer; unembedding 40
    assert (TOY.layer_parameters, TOY.unembedding_parameters) == (144, 40)
    layers, kv, unembedding = forward_ops(TOY, 2, Load(batch=3, context=5))
    assert (layers.bytes, layers.flops) == (2 * 3 * 144, 2 * 3 * 2 * 3 * 144)
    assert TOY.kv_bytes_per_token == 2 * 3 * 1 * 2 * 2
    assert (kv.bytes, kv.flops) == (3 * 7 * 24, 4 * 3 * 2 * 7 * 3 * 4)
    assert (unembedding.bytes, unembedding.flops) == (2 * 40 + 4 * 3 * 2 * 10, 2 * 3 * 2 * 40)
    assert choice_op(TOY, 2, Load(batch=3)).bytes == 4 * 3 * 2 * 10


def test_drafting_by_hand() -> None:
    head = HeadShape(
        joint="markov", rank=1, horizon=3, draft_vocab_size=6, feature_size=5, map_rank=2, markov_rank=7
    )
    found = {op.name: op for op in draft_ops(TOY, head, Load(batch=2))}
    assert found["fuse"].bytes == 2 * (2 * 4 * 10 + 5 * 4)
    assert found["maps"].flops == 2 * 2 * (3 * 1 * 2 * 4 * 2)
    assert found["rows"].flops == 2 * 2 * 3 * 1 * 6 * 4
    assert found["rows"].bytes == 2 * 6 * 4 + 4 * 2 * 3 * 6
    assert found["bias"].bytes == 2 * 2 * 6 * 7
    assert found["previous"].bytes == 2 * (2 * 4 * 7 + 3 * 4 * 7)
    assert found["block"].bytes == 0


def test_an_operation_takes_the_longer_of_reading_and_computing() -> None:
    machine = Machine(name="m", bandwidth=10, flops=100, bandwidth_share=0.5, compute_share=0.2, launch=3)
    assert machine.seconds(Op(name="read", bytes=40, flops=20)) == 40 / 5
    assert machine.seconds(Op(name="compute", bytes=5, flops=60, launches=2)) == 60 / 20 + 6
    two = replace(machine, devices=2, latency=0.5, link=4)
    shared = Op(name="layers", bytes=40, reduces=3, reduce_bytes=8)
    assert two.seconds(shared) == 40 / 10 + 3 * (0.5 + 2 * (1 / 2) * 8 / 4)
    assert two.seconds(replace(shared, sharded=False, reduces=0)) == 40 / 5


def test_with_endless_compute_the_bytes_of_the_head_are_all_the_cost() -> None:
    load = Load(context=0)
    found = project(WIDE, HEAD, replace(MACHINE, flops=float("inf")), load)
    head_bytes = 2 * (HEAD.parameters(WIDE) + 16 * 4096)
    trunk_bytes = 2 * WIDE.read_parameters
    tokens = expected_tokens((0.7,), 4)
    assert found.speedup(tokens) == pytest.approx(tokens / (1 + head_bytes / trunk_bytes), rel=1e-4)


def test_with_endless_bandwidth_every_token_costs_a_step() -> None:
    found = project(WIDE, HEAD, replace(MACHINE, bandwidth=float("inf")), Load(context=0))
    assert found.forward / found.plain == pytest.approx(5, rel=1e-3)
    assert found.speedup(5) < 1  # even if every draft is kept: the head comes on top


def test_with_overhead_alone_the_operations_are_the_cost() -> None:
    machine = replace(MACHINE, bandwidth=float("inf"), flops=float("inf"), launch=1.0)
    found = project(WIDE, HEAD, machine, Load())
    assert found.plain == 32 * 9 + 1 + 1
    assert found.drafting == 4 + 1 + 2 + 1 + 3 * 4  # fuse, gate, maps, rows, three a position
    assert found.cost == (found.plain + 20) / found.plain


def test_directions() -> None:
    model, base = MODELS["llama-3.1-8b"], Sweep(
        ranks=(1, 2, 8, 32), horizons=(2, 4, 8), batches=(1, 16, 64), acceptances=((0.5,), (0.8,))
    )  # fmt: skip
    found = rows(model, H100, base)
    by = {(r["batch"], r["horizon"], r["rank"]): r for r in found}
    for (batch, horizon, rank), row in by.items():
        assert row["speedups"][0] < row["speedups"][1]
        if rank > 1:
            assert row["cost"] > by[batch, horizon, 1]["cost"]
            assert row["gain_needed"] == pytest.approx(row["cost"] / by[batch, horizon, 1]["cost"] - 1)
        if horizon > 2:
            assert row["cost"] > by[batch, 2, rank]["cost"]
        if batch > 1:  # the weights are read once for all, what grows with them is not
            assert row["gain_needed"] >= by[1, horizon, rank]["gain_needed"]
    assert by[1, 2, 1]["gain_needed"] == 0


def test_fewer_components_and_draft_tokens_cost_less() -> None:
    model, head = MODELS["llama-3.2-1b"], replace(HEAD, rank=16, draft_vocab_size=32768)
    cost = project(model, head, H100, Load()).cost
    assert project(model, replace(head, evaluated=4), H100, Load()).cost < cost
    assert project(model, replace(head, draft_vocab_size=8192), H100, Load()).cost < cost
    assert project(model, replace(head, features="block"), H100, Load()).cost > cost
    assert project(model, head, H100, Load(mode="sampled")).choice > project(model, head, H100, Load()).choice


def test_seventy_billion_do_not_fit_one_device() -> None:
    model, load = MODELS["llama-3.1-70b"], Load()
    with pytest.raises(InputError, match=r"141 GB.*80 GB.*--gpus"):
        check_fits(model, H100, load)
    check_fits(model, on_machine("h100-sxm", devices=2), load)
    check_fits(replace(model, weight_bytes=1), on_machine("h100-sxm", fp8=True), load)
    assert on_machine("h100-sxm", fp8=True).flops == 2 * H100.flops
    with pytest.raises(InputError, match="unknown machine"):
        on_machine("abacus")


def test_heads_of_a_grid_are_projected_with_their_tokens_per_step() -> None:
    cell = {
        "name": "a",
        "joint": "markov",
        "rank": 1,
        "horizon": 4,
        "components": None,
        "acceptance": {"greedy": {"all": {"length": 2.5}}},
    }
    sweep = Sweep(ranks=(1,), horizons=(4,), batches=(1,), acceptances=((0.5,),))
    model = MODELS["llama-3.2-1b"]
    cells = [cell, cell | {"joint": "other"}, cell | {"acceptance": {}}]
    (found,) = grid_rows(model, H100, sweep, cells, [1, 1, 1])
    head = sweep.head(model, rank=1, horizon=4, joint="markov")
    assert found["speedup"] == pytest.approx(2.5 / project(model, head, H100, Load()).cost)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (HeadShape, {"joint": "other"}),
        (HeadShape, {"joint": "markov"}),
        (HeadShape, {"features": "none"}),
        (HeadShape, {"horizon": 0}),
        (HeadShape, {"evaluated": 5}),
        (Machine, {"bandwidth": 0}),
        (Machine, {"compute_share": 1.5}),
        (Machine, {"launch": -1}),
    ],
)
def test_values_out_of_range(kind: type, options: dict[str, object]) -> None:
    with pytest.raises(InputError):
        replace(HEAD if kind is HeadShape else MACHINE, **options)
    with pytest.raises(InputError):
        Load(mode="hot")
