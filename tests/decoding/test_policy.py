"""How many to draft, by simulation: useless heads cost next to nothing, useful ones lose little."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from statistics import mean

import pytest

from polydraft.decoding.acceptance import ChainExpectation, TreeExpectation, chain_tokens, usual_tokens
from polydraft.decoding.costs import Costs
from polydraft.decoding.policy import FIRST_GAP, Fixed, Measured, Policy
from polydraft.errors import InputError

HORIZON = 4
MACHINES = {
    "eager": (1.0, 1.25, 1.32, 1.39, 1.42),
    "compiled": (1.0, 1.08, 1.10, 1.12, 1.13),
    "free": (1.0, 1.02, 1.03, 1.04, 1.05),
    "compute-bound": (1.0, 1.65, 2.15, 2.65, 3.15),
    "absurd": (1.0, 6.0, 11.0, 16.0, 21.0),
}
"""C(0)..C(4) in plain forwards."""

Rates = Callable[[float], Sequence[float]]
"""Tokens so far -> a_1..a_n."""


class Table:
    """Costs of a cycle, the same for any number of rows."""

    def __init__(self, costs: Sequence[float]) -> None:
        self.costs = costs

    def cycle(self, rows: int, drafts: int, *, sampled: int = 0) -> float:
        return 0.07 * self.costs[drafts]


def always(*rates: float) -> Rates:
    return lambda t: rates


def simulate(
    policy: Policy, costs: Sequence[float], rates: Rates, *, tokens: int = 128, rows: int = 1, seed: int = 0
) -> tuple[float, float, list[int]]:
    """Decode by chance alone; tokens per row, what they cost in plain forwards, and the drafts per cycle."""
    rng = random.Random(seed)
    made, cost, drafted = 0.0, 0.0, []
    while made < tokens:
        k = policy.drafts(rows)
        found = [
            sum(1 for _ in itertools.takewhile(lambda a: rng.random() < a, rates(made)[:k]))
            for _ in range(rows)
        ]
        policy.observe(rows=rows, drafted=k, accepted=found)
        drafted.append(k)
        made += 1 + mean(found)
        cost += costs[k]
    return made, cost, drafted


def measured(costs: Sequence[float]) -> Measured:
    return Measured(Table(costs), ChainExpectation(HORIZON))


def test_tokens_of_a_chain_are_those_of_an_enumeration() -> None:
    acceptance = [0.7, 0.4, 0.9]
    for k, found in enumerate(chain_tokens(acceptance)):
        tokens = 0.0
        for kept in itertools.product((True, False), repeat=k):  # of drafts judged as if all were tried
            chance = 1.0
            for a, yes in zip(acceptance, kept, strict=False):
                chance *= a if yes else 1 - a
            tokens += chance * (1 + ([*kept, False].index(False)))
        assert found == pytest.approx(tokens)


def test_acceptance_is_learnt_and_forgotten() -> None:
    rng = random.Random(1)
    acceptance = ChainExpectation(3)
    assert acceptance.rates == [0.5, 0.5, 0.5]
    truth = (0.8, 0.3, 0.6)
    seen = []
    for _ in range(400):
        found = [sum(1 for _ in itertools.takewhile(lambda a: rng.random() < a, truth)) for _ in range(8)]
        acceptance.observe(3, found)
        seen.append(acceptance.rates)
    for s, chance in enumerate(truth):
        assert mean(rates[s] for rates in seen[200:]) == pytest.approx(chance, abs=0.05)
    for _ in range(60):
        acceptance.observe(3, [0] * 8)
    assert acceptance.rates[0] < 0.15


def test_a_position_not_tried_for_long_is_believed_like_the_others() -> None:
    acceptance = ChainExpectation(2)
    for _ in range(50):
        acceptance.observe(2, [1])
    assert acceptance.rates[1] < 0.2
    for _ in range(200):
        acceptance.observe(1, [1])
    assert acceptance.rates[1] > 0.9


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("rows", [1, 8])
@pytest.mark.parametrize("chance", [0.0, 0.02, 0.1])
def test_a_useless_head_costs_at_most_three_percent(machine: str, rows: int, chance: float) -> None:
    costs = MACHINES[machine]
    for seed in range(5 if chance else 1):
        tokens, cost, _ = simulate(measured(costs), costs, always(*[chance] * HORIZON), rows=rows, seed=seed)
        assert cost <= 1.03 * tokens
    tokens, cost, _ = simulate(measured(costs), costs, always(*[chance] * HORIZON), tokens=2000, rows=rows)
    assert cost <= 1.01 * tokens


@pytest.mark.parametrize("machine", MACHINES)
def test_no_order_of_acceptance_costs_more_than_the_account(machine: str) -> None:
    """An adversary accepts just when it hurts most: everything for a while, then nothing, again and again."""
    costs = MACHINES[machine]
    for good, bad, first in itertools.product((0, 3, 20, 100), (5, 40, 300), (True, False)):
        policy = measured(costs)
        made, cost, turn = 0, 0.0, itertools.cycle(([first] * good + [not first] * bad) or [False])
        while made < 1000:
            k = policy.drafts(1)
            kept = k if next(turn) else 0
            policy.observe(rows=1, drafted=k, accepted=[kept])
            made, cost = made + 1 + kept, cost + costs[k]
            assert cost <= 1.005 * made + 1.92 + 1e-9


@pytest.mark.parametrize(
    ("machine", "rates", "least"),
    [
        ("eager", (0.8, 0.8, 0.8, 0.8), 0.97),
        ("eager", (0.6, 0.6, 0.55, 0.5), 0.96),
        ("eager", (0.45, 0.45, 0.45, 0.45), 0.94),
        ("compiled", (0.45, 0.45, 0.45, 0.45), 0.97),
        ("compiled", (0.3, 0.3, 0.3, 0.3), 0.95),
        ("compiled", (0.7, 0.1, 0.1, 0.1), 0.95),
        ("free", (0.2, 0.2, 0.2, 0.2), 0.95),
    ],
)
def test_a_useful_head_keeps_nearly_all_it_gains(machine: str, rates: Sequence[float], least: float) -> None:
    """Against the number of drafts that is best on average, which the policy does not know."""
    costs = MACHINES[machine]
    best = max(tokens / cost for tokens, cost in zip(chain_tokens(rates), costs, strict=True))
    runs = [simulate(measured(costs), costs, always(*rates), seed=seed) for seed in range(60)]
    assert sum(made for made, _, _ in runs) / sum(cost for _, cost, _ in runs) > least * best


def test_long_drafts_where_they_are_kept_and_short_ones_where_not() -> None:
    costs = MACHINES["eager"]
    _, _, long = simulate(measured(costs), costs, always(0.9, 0.9, 0.9, 0.9), tokens=500)
    assert set(long[20:]) == {4}
    _, _, short = simulate(measured(costs), costs, always(0.9, 0.0, 0.0, 0.0), tokens=500)
    assert 1 <= min(short[20:]) <= mean(short[20:]) < 2  # one is best; a second is tried now and then


def test_tries_grow_rarer_while_they_fail() -> None:
    costs = MACHINES["eager"]
    _, _, drafted = simulate(measured(costs), costs, always(0, 0, 0, 0), tokens=1200)
    tries = [i for i, k in enumerate(drafted) if k]
    gaps = [b - a - 1 for a, b in itertools.pairwise(tries) if b - a > 1]
    assert gaps == [FIRST_GAP * 2**i for i in range(len(gaps))]
    assert len(gaps) >= 5


def test_drafting_comes_back_when_it_pays_again() -> None:
    costs = MACHINES["eager"]
    changing: Rates = lambda t: (0.0,) * 4 if t < 100 else (0.8,) * 4  # noqa: E731
    _, _, drafted = simulate(measured(costs), costs, changing, tokens=600)
    assert sum(drafted[20:80]) <= 3
    assert mean(drafted[-50:]) > 3


def test_drafting_ends_when_the_text_changes() -> None:
    costs = MACHINES["eager"]
    changing: Rates = lambda t: (0.8,) * 4 if t < 300 else (0.0,) * 4  # noqa: E731
    made, cost, drafted = simulate(measured(costs), costs, changing, tokens=600)
    assert sum(drafted[-150:]) <= 6
    assert cost < made


def test_it_depends_on_nothing_but_what_it_is_told() -> None:
    costs = MACHINES["eager"]
    first, second = (simulate(measured(costs), costs, always(0.5, 0.4, 0.3, 0.2), rows=3) for _ in range(2))
    assert first == second
    policy = measured(costs)
    assert len({policy.drafts(1) for _ in range(10)}) == 1


def test_costs_of_the_rows_at_hand_decide() -> None:
    class Batches(Table):
        def cycle(self, rows: int, drafts: int, *, sampled: int = 0) -> float:
            return 0.07 * (MACHINES["compiled"] if rows == 1 else MACHINES["compute-bound"])[drafts]

    policy = Measured(Batches(()), ChainExpectation(HORIZON))
    for kept in (1, 0) * 20:
        policy.observe(rows=1, drafted=4, accepted=[kept])
    assert policy.drafts(1) > 0
    assert policy.drafts(8) == 0


def test_costs_of_sampled_rows_decide() -> None:
    class Kinds(Table):
        def cycle(self, rows: int, drafts: int, *, sampled: int = 0) -> float:
            return 0.07 * (MACHINES["compute-bound"] if 2 * sampled > rows else MACHINES["compiled"])[drafts]

    policy = Measured(Kinds(()), ChainExpectation(HORIZON))
    for kept in (1, 0) * 20:
        policy.observe(rows=8, drafted=4, accepted=[kept] * 8)
    assert policy.drafts(8, sampled=2) > 0
    assert policy.drafts(8, sampled=6) == 0


# -- trees ------------------------------------------------------------------------------------------

TREE_COSTS = {"eager": (0.25, 0.03), "compute-bound": (0.6, 0.3)}
"""Of the first node, and of each further one, in plain forwards."""


def grow(
    costs: tuple[float, float], kept: Callable[[int], float], *, tokens: int = 400, seed: int = 0
) -> tuple[float, float, list[int]]:
    """Decode by chance with trees of up to 16 nodes, `kept` of N nodes on average; as `simulate`."""

    class Trees:
        def cycle(self, rows: int, drafts: int, *, sampled: int = 0) -> float:
            return 1 + (costs[0] + costs[1] * (drafts - 1) if drafts else 0.0)

    policy, rng = Measured(Trees(), TreeExpectation(16)), random.Random(seed)
    made, cost, drafted = 0.0, 0.0, []
    while made < tokens:
        nodes = policy.drafts(1)
        found = sum(rng.random() < kept(nodes) / 4 for _ in range(4)) if nodes else 0
        policy.observe(rows=1, drafted=nodes, accepted=[found])
        drafted.append(nodes)
        made += 1 + found
        cost += Trees().cycle(1, nodes)
    return made, cost, drafted


def test_what_trees_usually_keep_is_what_was_measured() -> None:
    measured_ones = {1: 0.459, 3: 0.808, 4: 0.882, 6: 0.991, 8: 1.101, 12: 1.223, 16: 1.305, 32: 1.501}
    for nodes, tokens in measured_ones.items():
        assert usual_tokens(nodes) == pytest.approx(tokens, abs=0.02)
    assert TreeExpectation(32).tokens[0] == 1.0


def test_what_trees_keep_is_learnt_size_by_size() -> None:
    expectation = TreeExpectation(16)
    for _ in range(200):
        expectation.observe(16, [3, 3])
        expectation.observe(5, [1, 1])  # counts for the tree of 4
    found = dict(zip(expectation.sizes, expectation.tokens, strict=True))
    assert found[16] == pytest.approx(4.0, abs=0.2)
    assert found[4] == pytest.approx(2.0, abs=0.2)
    assert found[4] < found[8] < found[16]


@pytest.mark.parametrize(
    ("machine", "scale", "least"),
    [
        *(("eager", scale, 0.95) for scale in (0.0, 0.05, 0.5, 1.0, 2.0)),
        *(("compute-bound", scale, 0.95) for scale in (0.0, 0.05, 0.5, 1.0)),
        ("compute-bound", 2.0, 0.9),  # what is expected at first says no: only tries show otherwise
    ],
)
def test_trees_cost_little_where_useless_and_gain_nearly_all_where_not(
    machine: str, scale: float, least: float
) -> None:
    costs = TREE_COSTS[machine]
    kept = lambda nodes: scale * usual_tokens(nodes)  # noqa: E731
    rates = [(1 + kept(n)) / (1 + (costs[0] + costs[1] * (n - 1) if n else 0)) for n in range(17)]
    runs = [grow(costs, kept, seed=seed) for seed in range(20)]
    assert sum(made for made, _, _ in runs) / sum(cost for _, cost, _ in runs) > least * max(rates)
    assert all(cost <= 1.005 * made + 1.92 for made, cost, _ in runs)
    assert grow(costs, lambda nodes: 0.0, tokens=128)[1] <= 1.03 * 128


# -- fixed ------------------------------------------------------------------------------------------


def test_fixed_drafts_the_same_always() -> None:
    policy = Fixed(3)
    policy.observe(rows=2, drafted=3, accepted=[0, 0])
    assert policy.drafts(1) == policy.drafts(9) == 3
    with pytest.raises(InputError, match="drafts must be 0 or more"):
        Fixed(-1)


def test_few_tokens_are_copied_where_wide_forwards_are_dear() -> None:
    """Nine of ten copies kept: E(k) = sum of .9^j, to 15. Wide forwards free: all; at 0.3 a token: few."""
    free = Costs({(1, 1): 1.0, (1, 16): 1.2}, {(1, 1): 9.0})
    expensive = Costs({(1, 1): 1.0, (1, 16): 5.5}, {(1, 1): 9.0})
    chosen = {}
    for name, costs in (("free", free), ("expensive", expensive)):
        policy = Measured(costs.copying(), ChainExpectation(15, likely=0.9))
        chosen[name] = policy.drafts(1)
        rates = [sum(0.9**j for j in range(k + 1)) / costs.forward_seconds(1, k + 1) for k in range(16)]
        assert chosen[name] == max(range(16), key=rates.__getitem__)
    assert chosen["expensive"] < 8 < chosen["free"]
