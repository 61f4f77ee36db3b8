"""Trees of chosen and of drawn tokens: what they hold, against plain searches over all prefixes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from polydraft.decoding.tree import DraftTree, choose_tree
from polydraft.decoding.tree_drawn import KEPT, draw_tree, level_sizes
from polydraft.joint import JointDistribution, LatentMixture, Warp
from tests.joint.members import HORIZON, VOCAB_SIZE, random_joint

Prefix = tuple[int, ...]
MEMBERS = ("independent", "cp", "hmm", "tree", "markov", "cp-markov")
every_member = pytest.mark.parametrize("name", MEMBERS)
BATCH = 3


def paths(tree: DraftTree) -> list[Prefix]:
    """The tokens up to each node."""
    out: list[Prefix] = []
    for token, parent in zip(tree.tokens.tolist(), tree.parents, strict=True):
        assert parent < len(out)
        out.append((*(out[parent] if parent >= 0 else ()), token))
    return out


def log_row(joint: JointDistribution, row: int, prefix: Prefix, warp: Warp | None) -> Tensor:
    """log q(. | prefix) of one row, by itself."""
    told = torch.tensor([prefix], dtype=torch.long).view(1, len(prefix))
    out = joint.select(torch.tensor([row])).conditional(told)
    if warp is not None:
        out = warp(told, out)
        out = out.log_softmax(-1) if bool(out.isfinite().any()) else out
    return out[0]


def likeliest(
    joint: JointDistribution, row: int, *, nodes: int, depth: int, warp: Warp | None = None
) -> dict[Prefix, float]:
    """The N best prefixes, level by level, the best N / 2 of each level looked behind."""
    every: dict[Prefix, float] = {}
    level: dict[Prefix, float] = {(): 0.0}
    for position in range(min(depth, nodes)):
        new = {
            (*prefix, token): score + value
            for prefix, score in level.items()
            for token, value in enumerate(log_row(joint, row, prefix, warp).tolist())
            if math.isfinite(value)
        }
        every |= new
        width = min((nodes + 1) // 2, nodes - 1 - position)
        level = dict(sorted(new.items(), key=lambda item: -item[1])[:width])
    return dict(sorted(every.items(), key=lambda item: -item[1])[:nodes])


@every_member
@pytest.mark.parametrize("nodes", [1, 2, 3, 5, 8, 13])
def test_chosen_trees_hold_the_likeliest_prefixes(name: str, nodes: int) -> None:
    joint = random_joint(name, batch=BATCH)
    for row, tree in enumerate(choose_tree(joint, nodes=nodes, depth=HORIZON)):
        found = paths(tree)
        assert set(found) == set(likeliest(joint, row, nodes=nodes, depth=HORIZON))
        assert len(set(found)) == len(found) == nodes
        assert tree.drawn == () and tree.log_rows is None


@every_member
def test_the_likeliest_of_all_where_half_of_a_level_is_enough(name: str) -> None:
    """A search of all prefixes finds no better: the score is that of `log_prob`."""
    joint = random_joint(name, scale=4.0)
    every = {
        tuple(tokens): float(joint.log_prob(torch.tensor([tokens])))
        for length in (1, 2, 3)
        for tokens in torch.cartesian_prod(*[torch.arange(VOCAB_SIZE)] * length).view(-1, length).tolist()
    }
    best = sorted(every, key=lambda prefix: -every[prefix])
    (tree,) = choose_tree(joint, nodes=3, depth=HORIZON)
    assert set(paths(tree)) == set(best[:3])


@every_member
def test_a_chosen_tree_of_one_level_is_the_best_tokens(name: str) -> None:
    joint = random_joint(name, batch=BATCH)
    expected = joint.row(joint.start(), 0).topk(3).indices
    for tree, best in zip(choose_tree(joint, nodes=3, depth=1), expected, strict=True):
        assert set(tree.tokens.tolist()) == set(best.tolist())
        assert tree.parents == (-1, -1, -1)


def ban(tokens: Tensor, rows: Tensor) -> Tensor:
    """Token 2 nowhere, after token 1 nothing, and a temperature."""
    out = (rows / 0.7).index_fill(-1, torch.tensor([2]), -torch.inf)
    return out.masked_fill((tokens == 1).any(-1, keepdim=True), -torch.inf)


@every_member
def test_trees_heed_the_warp(name: str) -> None:
    joint = random_joint(name, batch=BATCH)
    for row, tree in enumerate(choose_tree(joint, nodes=7, depth=HORIZON, warp=ban)):
        assert set(paths(tree)) == set(likeliest(joint, row, nodes=7, depth=HORIZON, warp=ban))
    for tree in draw_tree(
        joint, nodes=7, depth=HORIZON, warp=ban, generator=torch.Generator().manual_seed(0)
    ):
        assert all(2 not in path and 1 not in path[:-1] for path in paths(tree))


def test_the_warp_sees_the_nodes_of_each_row_together() -> None:
    seen: list[Tensor] = []

    def warp(tokens: Tensor, rows: Tensor) -> Tensor:
        assert len(tokens) == len(rows)
        seen.append(tokens)
        return rows

    joint = random_joint("markov", batch=2)
    trees = choose_tree(joint, nodes=4, depth=2, warp=warp)
    first, second = seen
    assert first.shape == (2, 0) and second.shape == (4, 1)
    for row, tree in enumerate(trees):
        tops = joint.row(joint.start(), 0)[row].topk(2).indices.tolist()
        assert second[2 * row : 2 * row + 2, 0].tolist() == tops
        assert all(path[0] in tops for path in paths(tree) if len(path) > 1)


@pytest.mark.parametrize("grow", [choose_tree, draw_tree])
def test_where_nothing_can_be_drafted(grow: object) -> None:
    def nothing(_: Tensor, rows: Tensor) -> Tensor:
        return torch.full_like(rows, -torch.inf)

    joint = random_joint("markov", batch=2)
    for options in ({"nodes": 4, "depth": 3, "warp": nothing}, {"nodes": 4, "depth": 0}):
        trees = grow(joint, **options)  # type: ignore[operator]
        assert [(len(tree.tokens), tree.parents, tree.drawn) for tree in trees] == [(0, (), ())] * 2


def test_sizes_of_levels() -> None:
    assert level_sizes(8, 4) == [4, 2, 1, 1]
    assert level_sizes(8, 2) == [4, 4]
    assert level_sizes(5, 4) == [3, 1, 1]
    assert level_sizes(1, 4) == [1]
    assert level_sizes(0, 4) == []
    assert all(sum(level_sizes(n, d)) == n for n in range(30) for d in range(1, 6))


@every_member
@pytest.mark.parametrize("nodes", [1, 4, 9])
def test_drawn_trees_follow_the_plan(name: str, nodes: int) -> None:
    """Level by level: the children that score best, one of each node drawn from what the others leave."""
    joint = random_joint(name, batch=BATCH)
    trees = draw_tree(joint, nodes=nodes, depth=HORIZON, generator=torch.Generator().manual_seed(3))
    for row, tree in enumerate(trees):
        found = paths(tree)
        assert len(set(found)) == len(found) == nodes
        assert tree.log_rows is not None and len(tree.log_rows) == len(tree.drawn)
        level: dict[Prefix, float] = {(): 1.0}
        drawn = {found[node]: source for node, source in zip(tree.drawn, tree.log_rows, strict=True)}
        for depth, size in enumerate(level_sizes(nodes, HORIZON), start=1):
            here = {path for path in found if len(path) == depth}
            wanted: list[tuple[float, Prefix, int]] = []
            for prefix, score in level.items():
                q = log_row(joint, row, prefix, None).exp()
                wanted.append((score, prefix, -1))
                wanted += [(score * float(q[token]), prefix, token) for token in range(VOCAB_SIZE)]
            wanted = sorted(wanted, reverse=True)[:size]
            slots = {prefix for _, prefix, token in wanted if token < 0}
            assert {(*prefix, token) for _, prefix, token in wanted if token >= 0} == here - set(drawn)
            assert sorted(path[:-1] for path in here & set(drawn)) == sorted(slots)
            after: dict[Prefix, float] = {}
            for path in here:
                q = log_row(joint, row, path[:-1], None).exp()
                own = [p[-1] for p in here - set(drawn) if p[:-1] == path[:-1]]
                rest = q.index_fill(0, torch.tensor(own, dtype=torch.long), 0.0)
                if path in drawn:
                    torch.testing.assert_close(drawn[path].exp(), rest / rest.sum())
                share = KEPT * float(rest.sum()) if path in drawn else float(q[path[-1]])
                after[path] = level[path[:-1]] * share
            level = after


def test_a_generator_fixes_the_draws() -> None:
    joint = random_joint("cp-markov", batch=20)
    first, again, other = (
        draw_tree(joint, nodes=6, depth=3, generator=torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    )
    same = [
        all(torch.equal(a.tokens, b.tokens) for a, b in zip(first, x, strict=True)) for x in (again, other)
    ]
    assert same == [True, False]


def test_rows_do_not_depend_on_each_other() -> None:
    joint = random_joint("hmm", batch=BATCH)
    together = choose_tree(joint, nodes=6, depth=HORIZON)
    assert isinstance(joint, LatentMixture)
    for row, tree in enumerate(together):
        (alone,) = choose_tree(joint.select(torch.tensor([row])), nodes=6, depth=HORIZON)
        assert torch.equal(alone.tokens, tree.tokens) and alone.parents == tree.parents
