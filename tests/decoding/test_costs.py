"""What drafting and verifying cost: interpolation, measurement, and the file that remembers it."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.interpolate import RegularGridInterpolator
from torch import Tensor
from transformers import PreTrainedModel

import polydraft
from polydraft import modes
from polydraft.decoding import costs as costs_module
from polydraft.decoding import measuring
from polydraft.decoding.acceptance import ChainExpectation
from polydraft.decoding.costs import Costs, Grid, costs_file, load_costs, machine_key, save_costs
from polydraft.decoding.measuring import (
    machine_costs,
    measure,
    policy_widths,
    rising,
    row_counts,
    shortest,
    timed,
)
from polydraft.decoding.noise import GumbelNoise
from polydraft.decoding.policy import Measured
from polydraft.decoding.row import Row
from polydraft.decoding.trunk import EagerTrunk
from polydraft.errors import PolydraftError
from polydraft.heads import DraftHead
from tests.tiny import BLOCK, tiny_head, tiny_model

FORWARD = {(1, 1): 0.050, (1, 2): 0.060, (1, 5): 0.066, (8, 1): 0.080, (8, 2): 0.100, (8, 5): 0.220}
DRAFTING = {(1, 1): 0.004, (1, 4): 0.010, (8, 1): 0.008, (8, 4): 0.020}
COSTS = Costs(FORWARD, DRAFTING)
REST = {(1, 0): 0.001, (1, 4): 0.002, (8, 0): 0.008, (8, 4): 0.016}
SAMPLED = {(1, 0): 0.003, (1, 4): 0.012, (8, 0): 0.024, (8, 4): 0.096}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's cache of its own, and rounds as few as can be."""
    monkeypatch.setenv("POLYDRAFT_CACHE", str(tmp_path))
    monkeypatch.setattr(measuring, "SECONDS", 0.0)
    return tmp_path / "costs"


def test_between_the_points_costs_follow_straight_lines() -> None:
    forward = RegularGridInterpolator(
        ((1, 8), (1, 2, 5)), [[0.050, 0.060, 0.066], [0.080, 0.100, 0.220]], method="linear"
    )
    drafting = RegularGridInterpolator(((1, 8), (1, 4)), [[0.004, 0.010], [0.008, 0.020]], method="linear")
    for rows, drafts in itertools.product(range(1, 9), range(1, 5)):
        assert COSTS.forward_seconds(rows, drafts + 1) == pytest.approx(float(forward((rows, drafts + 1))))
        assert COSTS.drafting_seconds(rows, drafts) == pytest.approx(float(drafting((rows, drafts))))
        whole = float(forward((rows, drafts + 1))) + float(drafting((rows, drafts)))
        assert COSTS.cycle(rows, drafts) == pytest.approx(whole)
    assert COSTS.cycle(1, 0) == 0.050


def test_beyond_the_points_costs_are_those_of_the_nearest() -> None:
    assert COSTS.forward_seconds(1, 16) == 0.066
    assert COSTS.forward_seconds(20, 16) == 0.220
    assert COSTS.drafting_seconds(8, 9) == 0.020
    assert Costs({(4, 1): 0.1, (4, 3): 0.2}, {}).forward_seconds(1, 2) == pytest.approx(0.15)


def test_what_is_measured_again_replaces_what_was_known_of_those_rows() -> None:
    newer = Costs({(8, 1): 0.07, (8, 9): 0.5}, {(8, 1): 0.001})
    both = COSTS.updated(newer)
    assert both.rows == {1, 8}
    assert both.forward == {k: v for k, v in FORWARD.items() if k[0] == 1} | newer.forward
    assert both.drafting == {k: v for k, v in DRAFTING.items() if k[0] == 1} | newer.drafting
    rest, again = Costs(FORWARD, DRAFTING, REST, SAMPLED), Costs({(8, 1): 0.07}, {}, {(8, 0): 1.0}, {})
    assert rest.updated(again).rest == {(1, 0): 0.001, (1, 4): 0.002, (8, 0): 1.0}
    assert rest.updated(again).rest_sampled == {(1, 0): 0.003, (1, 4): 0.012}


def rests(costs: Costs) -> tuple[Grid, Grid]:
    return costs.rest, costs.rest_sampled


def test_the_rest_of_a_cycle_counts_by_how_its_rows_are_decoded() -> None:
    costs = Costs(FORWARD, DRAFTING, REST, SAMPLED)
    for rows, greedy, drawn in ((1, 0.002, 0.012), (8, 0.016, 0.096)):
        without = COSTS.cycle(rows, 4)
        assert costs.cycle(rows, 4) == pytest.approx(without + greedy)
        assert costs.cycle(rows, 4, sampled=rows) == pytest.approx(without + drawn)
    mixed = 0.75 * 0.016 + 0.25 * 0.096
    assert costs.cycle(8, 4, sampled=2) == pytest.approx(COSTS.cycle(8, 4) + mixed)
    copied = 0.220 + 0.75 * 0.008 + 0.25 * 0.024  # of a plain cycle
    assert costs.copying().cycle(8, 4, sampled=2) == pytest.approx(copied)


def test_the_file_gives_back_what_it_was_given(cache: Path) -> None:
    key = {"model": "x", "threads": 1}
    assert load_costs(key) is None
    costs = Costs(FORWARD, DRAFTING, REST, SAMPLED)
    save_costs(key, costs)
    assert load_costs(key) == costs
    assert load_costs(key | {"threads": 2}) is None
    assert costs_file(key).parent == cache
    assert json.loads(costs_file(key).read_text())["key"] == key


@pytest.mark.parametrize("content", ["", "{}", '{"forward": [[1, 2]], "drafting": []}', "[]"])
def test_a_damaged_file_is_named(cache: Path, content: str) -> None:
    save_costs({}, COSTS)
    costs_file({}).write_text(content)
    with pytest.raises(PolydraftError, match=r"costs.*is damaged: delete it"):
        load_costs({})


def test_whatever_changes_a_cost_is_part_of_the_key() -> None:
    model = tiny_model()
    head = tiny_head(model)

    def digest(**options: Any) -> str:
        return json.dumps(
            machine_key(model, head, **({"path": "eager", "tree": False} | options)), sort_keys=True
        )

    seen = {digest()}
    assert digest() in seen
    seen.add(digest(path="compiled"))
    seen.add(digest(tree=True))
    head = tiny_head(model, horizon=2)
    seen.add(digest())
    head = tiny_head(model, horizon=2, seed=1)
    assert digest() in seen  # other weights of the same sizes cost the same
    model.to(torch.bfloat16)
    seen.add(digest())
    torch.set_num_threads(2)
    seen.add(digest())
    torch.set_num_threads(1)
    assert len(seen) == 6


def test_costs_are_measured_once_and_remembered(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    head = tiny_head(model)
    first = machine_costs(model, head, rows=1)
    assert (
        set(first.forward) == {(1, width) for width in policy_widths(3)} == {(1, 1), (1, 2), (1, 3), (1, 4)}
    )
    assert set(first.drafting) == {(1, 1), (1, 3)}
    wider = machine_costs(model, head, rows=4)
    assert wider.rows == {1, 2, 4}
    assert {k: v for k, v in wider.forward.items() if k[0] == 1} == first.forward  # not measured again
    assert all(at == {(rows, k) for rows in (1, 2, 4) for k in (0, 1, 3)} for at in map(set, rests(wider)))
    monkeypatch.setattr(measuring, "measure", None)
    assert machine_costs(model, head, rows=4) == machine_costs(model, head, rows=1) == wider


def work(seconds: float) -> None:
    """Keep this thread busy; by its own clock and by that on the wall it takes at least so long."""
    began = time.thread_time()
    while time.thread_time() - began < seconds:
        pass


class Slow(EagerTrunk):
    """Takes a millisecond per new token of each row more."""

    def forward(self, tokens: Tensor, *, parents: Sequence[Sequence[int]] | None = None) -> Tensor:
        work(0.001 * tokens.numel())
        return super().forward(tokens, parents=parents)


@pytest.mark.parametrize("tree", [False, True])
@pytest.mark.parametrize("features", ["fused", "block", "hidden"])
def test_measuring_times_what_the_trunk_takes(cache: Path, features: str, tree: bool) -> None:
    model = tiny_model()
    head = tiny_head(model, features=features, **({"block": BLOCK} if features == "block" else {}))
    state = torch.get_rng_state()
    began = time.perf_counter()
    found = measure(
        model,
        head,
        rows=[1, 2],
        tree=tree,
        widths=[1, 8],
        lengths=[1, 2],
        open_trunk=lambda rows: Slow(model, taps=head.config.taps, rows=rows),
    )
    whole = time.perf_counter() - began
    assert torch.equal(torch.get_rng_state(), state)
    assert set(found.forward) == {(1, 1), (1, 8), (2, 1), (2, 8)}
    assert set(found.drafting) == {(1, 1), (1, 2), (2, 1), (2, 2)}
    for (rows, width), seconds in found.forward.items():
        assert 0.001 * rows * width < seconds < whole / 4
    assert all(0 < seconds < whole / 4 for seconds in found.drafting.values())


@pytest.mark.parametrize("tree", [False, True])
def test_measuring_times_what_is_done_for_each_row(
    cache: Path, monkeypatch: pytest.MonkeyPatch, tree: bool
) -> None:
    """A token takes each row 0.4 ms more, noise 2 ms where it is drawn. One draft of a cycle is kept."""
    emit, start = Row.emit, GumbelNoise.start

    def slow_emit(self: Row, *given: Any) -> Any:
        work(0.0004)
        return emit(self, *given)

    def slow_start(self: GumbelNoise, length: int) -> int:
        work(0.002)
        return start(self, length)

    monkeypatch.setattr(Row, "emit", slow_emit)
    monkeypatch.setattr(GumbelNoise, "start", slow_start)
    model = tiny_model()
    found = measure(model, tiny_head(model), rows=[1, 4], tree=tree)
    for (rows, drafts), seconds in found.rest.items():
        assert seconds > 0.0004 * rows
        more = found.rest_sampled[rows, drafts] - seconds
        assert more > 0.002 * rows * (2 if drafts else 1) - 0.001  # two drawn with a draft kept


def test_numbers_of_rows_that_are_measured() -> None:
    assert row_counts(1) == {1}
    assert row_counts(8) == {1, 2, 4, 8}
    assert row_counts(20) == {1, 2, 4, 8, 16, 20}


def test_the_shortest_round_counts_and_the_first_is_not_timed() -> None:
    calls = {"a": 0, "b": 0}

    def disturbed(name: str) -> None:
        calls[name] += 1
        work(0.0 if calls[name] in (1, 3) else 0.02)

    found = shortest([lambda: disturbed("a"), lambda: disturbed("b")], device=torch.device("cpu"))
    assert calls["a"] == calls["b"] >= 4
    assert max(found) < 0.02


@pytest.mark.parametrize(("threads", "least", "most"), [(1, 0.0, 0.02), (2, 0.05, 5.0)])
def test_what_others_do_on_the_core_of_one_thread_is_not_counted(
    monkeypatch: pytest.MonkeyPatch, threads: int, least: float, most: float
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert least <= timed(lambda: time.sleep(0.05), device=torch.device("cpu")) < most


def test_no_size_costs_more_than_a_larger_one() -> None:
    assert rising((1, 2, 3, 5), (0.3, 0.1, 0.4, 0.2)) == {1: 0.1, 2: 0.1, 3: 0.2, 5: 0.2}


def test_a_policy_reads_them() -> None:
    policy = Measured(COSTS, ChainExpectation(4))
    assert policy.cost(1, 4) == pytest.approx((0.066 + 0.010) / 0.050)
    assert policy.drafts(1) == 3  # 1.875 tokens for 1.44 forwards, against 1.94 for 1.52
    assert policy.cost(8, 4) == pytest.approx((0.220 + 0.020) / 0.080)
    assert policy.drafts(8) == 1  # 1.5 for 1.35, against 1.75 for 1.9


def test_device_names_say_what_computes() -> None:
    assert costs_module.device_name(torch.device("cpu")).startswith("cpu, ")


# -- inside a generation ----------------------------------------------------------------------------


@pytest.fixture
def as_many_as_pay(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drafts as decided by costs, which other tests leave alone."""
    monkeypatch.setattr(modes, "DRAFT_LENGTH", None)


def remember(model: PreTrainedModel, head: DraftHead, *, rows: int = 1) -> Costs:
    """Let this machine be one where a draft adds a fifth to a forward, and four times that for all."""
    counts = row_counts(rows)
    grid = {(count, width): 0.05 + 0.01 * (width - 1) for count in counts for width in range(1, 5)}
    costs = Costs(grid, {(count, length): 0.002 for count in counts for length in range(1, 4)})
    save_costs(machine_key(model, head, path="eager", tree=False), costs)
    return costs


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("do_sample", [False, True])
def test_a_useless_head_hardly_costs_a_generation_more(
    as_many_as_pay: None, monkeypatch: pytest.MonkeyPatch, rows: int, do_sample: bool
) -> None:
    model = tiny_model(vocab_size=512)
    head = tiny_head(model)
    costs = remember(model, head, rows=rows)
    widths: list[int] = []
    forward = EagerTrunk.forward

    def noted(self: EagerTrunk, tokens: Tensor, **options: Any) -> Tensor:
        widths.append(tokens.shape[1])
        return forward(self, tokens, **options)

    monkeypatch.setattr(EagerTrunk, "forward", noted)
    prompt = torch.arange(5).expand(rows, -1)
    polydraft.generate(model, head, prompt, max_new_tokens=129, do_sample=do_sample)  # one by the prompt
    spent = sum(costs.cycle(rows, width - 1) for width in widths) / costs.cycle(rows, 0)
    assert max(widths) > 1
    assert spent <= 1.03 * 128


def test_equal_seeds_and_equal_costs_give_equal_texts(as_many_as_pay: None) -> None:
    model = tiny_model()
    head = tiny_head(model)
    remember(model, head)
    texts = set()
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        out = polydraft.generate(model, head, torch.arange(5)[None], max_new_tokens=60, do_sample=True)
        texts.add(tuple(out.sequences[0].tolist()))
    assert len(texts) == 2
