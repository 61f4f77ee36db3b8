"""One step with a drawn tree gives the base model's own distribution: every draw made every way.

The text that a step begins goes on with p itself. What comes out differs from p by float64 rounding; the
planted faults are off by far more. A chi-square test of the real draws stands beside it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from polydraft.decoding import tree_drawn, tree_verify
from polydraft.decoding.tree import DraftTree
from polydraft.decoding.tree_drawn import draw_tree
from polydraft.decoding.tree_verify import verify_tree
from polydraft.joint import JointDistribution, Warp
from tests.decoding.outcomes import Choices
from tests.joint.enumeration import Array, chi_square_p_value
from tests.joint.members import FALSE_ALARM_RATE, random_case

Prefix = tuple[int, ...]
DRAFT_IDS = torch.tensor([2, 0, 3])
"""Base ids of the three draft tokens; tokens 1 and 4 cannot be drafted."""
SIZE, DEPTH = 5, 2
ROUNDING, FAULT = 1e-12, 1e-3


def target(seed: int) -> Callable[[Prefix], Tensor]:
    """p(. | prefix), far from even, the same for a prefix at any time; here and there zero."""

    def row(prefix: Prefix) -> Tensor:
        rng = np.random.default_rng([seed, *(token + 1 for token in prefix)])
        out = rng.dirichlet(np.full(SIZE, 0.6))
        out[rng.random(SIZE) < 0.1] = 0
        return torch.tensor(out / out.sum())

    return row


def continued(p: Callable[[Prefix], Tensor], prefix: Prefix) -> Array:
    """Probability of each way to go on after `prefix`, up to `DEPTH` + 1 tokens in all."""
    if len(prefix) > DEPTH:
        return np.ones(())
    row = p(prefix).numpy()
    return np.stack([row[token] * continued(p, (*prefix, token)) for token in range(SIZE)])


def step(p: Callable[[Prefix], Tensor], tree: DraftTree, generator: torch.Generator | None = None) -> Prefix:
    """What one step emits."""
    drafts = DRAFT_IDS[tree.tokens].tolist()

    def told(column: int) -> Prefix:
        node, out = column - 1, []
        while node >= 0:
            out.append(drafts[node])
            node = tree.parents[node]
        return tuple(out[::-1])

    path, token = verify_tree(lambda c: p(told(c)), drafts, tree, DRAFT_IDS, generator=generator)
    assert told(path[-1] + 1 if path else 0) == tuple(drafts[node] for node in path)
    return (*(drafts[node] for node in path), token)


class EveryWay(Choices):
    """Makes the draws of trees and of their verification every way."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(monkeypatch)
        monkeypatch.setattr(tree_verify, "happens", lambda chance, *_: not self.choose([chance, 1 - chance]))
        monkeypatch.setattr(tree_verify, "draw", lambda weights, _: self.choose(weights.tolist()))

        def multinomial(rows: Tensor, count: int, *, generator: torch.Generator | None) -> Tensor:
            assert count == 1 and generator is None
            return torch.tensor([[self.choose(row.tolist())] for row in rows])

        monkeypatch.setattr(torch, "multinomial", multinomial)


@pytest.fixture
def every_way(monkeypatch: pytest.MonkeyPatch) -> EveryWay:
    return EveryWay(monkeypatch)


def joint_of(name: str, seed: int) -> JointDistribution:
    return random_case(name, rank=2, horizon=DEPTH, vocab_size=len(DRAFT_IDS), seed=seed).joint()


def error(
    every_way: EveryWay, name: str, *, nodes: int, seed: int, warp: Warp | None = None
) -> tuple[float, float]:
    """Largest difference to p's probability of a text, and the mean number of drafts kept."""
    p, joint = target(seed), joint_of(name, seed)
    text, kept = np.zeros((SIZE,) * (DEPTH + 1)), 0.0

    def run() -> Prefix:
        (tree,) = draw_tree(joint, nodes=nodes, depth=DEPTH, warp=warp)
        return step(p, tree)

    for chance, emitted in every_way.every(run):
        text[emitted] += chance * continued(p, emitted)
        kept += chance * (len(emitted) - 1)
    return float(np.abs(text - continued(p, ())).max()), kept


def top_two(_: Tensor, rows: Tensor) -> Tensor:
    """A temperature, and the two likeliest tokens alone."""
    return (rows / 0.6).masked_fill(rows < rows.topk(2).values[:, -1:], -torch.inf)


@pytest.mark.parametrize("name", ["markov", "cp", "hmm", "tree", "cp-markov"])
@pytest.mark.parametrize("nodes", [1, 3, 5])
def test_what_comes_out_is_p(every_way: EveryWay, name: str, nodes: int) -> None:
    for seed in range(3):
        assert error(every_way, name, nodes=nodes, seed=seed)[0] < ROUNDING


@pytest.mark.parametrize("nodes", [2, 4])
def test_with_rows_that_are_processed(every_way: EveryWay, nodes: int) -> None:
    """Some nodes then have no room for a drawn child."""
    for seed in range(3):
        assert error(every_way, "markov", nodes=nodes, seed=seed, warp=top_two)[0] < ROUNDING


def test_larger_trees_keep_more(every_way: EveryWay) -> None:
    kept = [
        np.mean([error(every_way, "markov", nodes=nodes, seed=seed)[1] for seed in range(4)])
        for nodes in (1, 2, 3, 5)
    ]
    assert kept == sorted(kept)
    assert kept[-1] > 1.5 * kept[0]


def test_the_chance_to_keep_a_child(every_way: EveryWay) -> None:
    """sum_x min(p, q) + sum_{x in S} max(0, p - q), of the only level."""
    for seed in range(10):
        p, joint = target(seed), joint_of("independent", seed)
        row = joint.row(joint.start(), 0)[0].exp().double()
        for nodes in (1, 2, 3):
            best = row.topk(nodes - 1).indices
            q = row.index_fill(0, best, 0.0)
            own = torch.zeros(SIZE, dtype=torch.float64)
            own[DRAFT_IDS] = q / q.sum()
            chance = torch.minimum(p(()), own).sum() + (p(()) - own).clamp(min=0)[DRAFT_IDS[best]].sum()
            found = 0.0
            for weight, emitted in every_way.every(
                lambda nodes=nodes, joint=joint, p=p: step(p, draw_tree(joint, nodes=nodes, depth=1)[0])
            ):
                found += weight * (len(emitted) - 1)
            assert found == pytest.approx(float(chance), abs=1e-9)


class TestPlantedFaults:
    def test_residual_skipped(self, every_way: EveryWay, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tree_verify, "residual", lambda target, draft, draft_ids: target)
        assert error(every_way, "markov", nodes=4, seed=0)[0] > FAULT

    def test_rows_that_forget_the_chosen(self, every_way: EveryWay, monkeypatch: pytest.MonkeyPatch) -> None:
        """The drawn child is judged by q with the chosen tokens still in it."""
        whole = tree_drawn.draw_children

        def forgetful(rows: Tensor, scores: Tensor, **options: object) -> tree_drawn.Children:
            found = whole(rows, scores, **options)  # type: ignore[arg-type]
            return found._replace(log_rows=rows[0][found.parents[found.drawn]])

        monkeypatch.setattr(tree_drawn, "draw_children", forgetful)
        assert error(every_way, "markov", nodes=4, seed=0)[0] > FAULT

    def test_a_chosen_child_taken_for_granted(
        self, every_way: EveryWay, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """All children count as drawn from the first one's row."""
        monkeypatch.setattr(tree_verify, "happens", lambda chance, *_: chance > 0)
        assert error(every_way, "markov", nodes=4, seed=0)[0] > FAULT


@pytest.mark.parametrize("seed", [0, 1])
def test_real_draws_are_distributed_as_p(seed: int) -> None:
    """Chi-square over all texts of two tokens; fails on a correct sampler at `FALSE_ALARM_RATE`."""
    draws, p = 6_000, target(seed)
    known: dict[Prefix, Tensor] = {}

    def row(prefix: Prefix) -> Tensor:
        if prefix not in known:
            known[prefix] = p(prefix)
        return known[prefix]

    joint = random_case("cp-markov", rank=2, horizon=DEPTH, vocab_size=len(DRAFT_IDS), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    trees = draw_tree(joint.repeated(draws).joint(), nodes=4, depth=DEPTH, generator=generator)
    counts = np.zeros((SIZE, SIZE))
    long = 0
    for tree in trees:
        emitted = step(row, tree, generator)
        if len(emitted) == 1:
            emitted = (*emitted, int(torch.multinomial(row(emitted), 1, generator=generator)))
        long += len(emitted) > 2
        counts[emitted[:2]] += 1
    expected = draws * np.array(
        [[float(p(())[a] * p((a,))[b]) for b in range(SIZE)] for a, _ in itertools.product(range(SIZE), [0])]
    )
    assert long > draws / 20
    assert counts[expected == 0].sum() == 0
    assert chi_square_p_value(counts.ravel(), expected.ravel()) > FALSE_ALARM_RATE
