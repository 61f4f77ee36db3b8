"""A head that computes no probabilities costs time and nothing else: the text stays the base model's own."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

import polydraft
from polydraft.decoding import LiveBatch, new_row
from polydraft.decoding.block import verify_block
from polydraft.decoding.plan import Plan
from polydraft.decoding.tree import DraftTree, choose_tree
from polydraft.decoding.tree_drawn import draw_tree
from polydraft.decoding.tree_verify import verify_tree
from polydraft.decoding.verify import UndrawableError, Verified, ratio, verify_sampled
from polydraft.heads import DraftHead
from polydraft.joint import JointDistribution, LatentMixture, Warp
from tests.decoding import test_exact_steps as steps
from tests.decoding.cases import CASES, WARPED
from tests.decoding.outcomes import Choices
from tests.decoding.test_tree_verify import DEPTH, EveryWay, continued, joint_of, step, target
from tests.joint.members import HORIZON, random_joint
from tests.tiny import BLOCK, tiny_head, tiny_model

PROMPTS = torch.tensor([[5, 6, 7, 8], [9, 9, 1, 2]])
NUMBERS = {"nan": torch.nan, "inf": torch.inf, "-inf": -torch.inf}


class Broken(JointDistribution):
    """A joint whose rows are spoilt at every second position, or for a row of the batch.

    Args:
        how: "nan": all of a row; "one nan", "one inf": an entry; "-inf": all; "scaled": not normalised.
    """

    def __init__(self, joint: JointDistribution, how: str, positions: Sequence[int]) -> None:
        self.horizon, self.vocab_size, self.batch_size = joint.horizon, joint.vocab_size, joint.batch_size
        self.device = joint.device
        self._joint, self._how, self._positions = joint, how, positions

    def start(self) -> Any:
        return self._joint.start()

    def row(self, state: Any, position: int) -> Tensor:
        row = self._joint.row(state, position).clone()
        if position not in self._positions:
            return row
        if self._how in ("nan", "-inf"):
            return torch.full_like(row, float(self._how))
        if self._how == "scaled":
            return row - 1.0
        row[:, 1] = float(self._how.split()[1])
        return row

    def advance(self, state: Any, position: int, tokens: Tensor) -> Any:
        return self._joint.advance(state, position, tokens)

    def select(self, rows: Tensor) -> Broken:
        return Broken(self._joint.select(rows), self._how, self._positions)


HOWS = ("nan", "one nan", "one inf", "-inf", "scaled")


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("positions", [(0,), (1,)])
class TestDrawnFromBrokenRows:
    """Enumerated: every draw made every way."""

    @pytest.mark.parametrize("warped", [False, True])
    def test_trees(self, every_way: EveryWay, how: str, positions: tuple[int], warped: bool) -> None:
        """Unlike rows of a joint, those that a warp has processed may be spoilt in places."""
        if not warped and how.startswith("one"):
            pytest.skip("a joint's own row has a NaN everywhere or nowhere")
        p, joint = target(0), Broken(joint_of("markov", 0), how, positions)
        warp: Warp | None = (lambda _, rows: rows / 0.8) if warped else None
        text = np.zeros((5,) * (DEPTH + 1))

        def run() -> tuple[int, ...]:
            (tree,) = draw_tree(joint, nodes=4, depth=DEPTH, warp=warp)
            return step(p, tree)

        for chance, emitted in every_way.every(run):
            text[emitted] += chance * continued(p, emitted)
        assert np.abs(text - continued(p, ())).max() < 1e-6

    @pytest.mark.parametrize("case", [CASES[1], WARPED], ids=str)
    def test_chains(
        self, monkeypatch: pytest.MonkeyPatch, how: str, positions: tuple[int], case: Any
    ) -> None:
        found = steps.Steps(case, Choices(monkeypatch))
        head = found.engine.head
        found.engine.head = cast(Any, BrokenHead(head, how, positions))
        expected = steps.enumerated(found.table, case.processors)
        for name in ("token", "block"):
            assert float(np.abs(found.text(name) - expected).max()) < steps.ROUNDING, name


class BrokenHead:
    """A `TableHead` with broken rows."""

    def __init__(self, head: Any, how: str, positions: Sequence[int]) -> None:
        self._head, self._how, self._positions = head, how, positions

    def __getattr__(self, name: str) -> Any:
        return getattr(self._head, name)

    def __call__(self, hidden: Tensor, next_tokens: Tensor) -> Broken:
        return Broken(self._head(hidden, next_tokens), self._how, self._positions)


@pytest.fixture
def every_way(monkeypatch: pytest.MonkeyPatch) -> EveryWay:
    return EveryWay(monkeypatch)


def test_a_broken_row_ends_the_chain_of_its_text_alone() -> None:
    joint = random_joint("cp", batch=3)
    assert isinstance(joint, LatentMixture)
    joint.logits[1, 1] = torch.nan
    chain = joint.sample(generator=torch.Generator().manual_seed(0))
    assert chain.lengths is not None and chain.log_rows is not None
    assert chain.lengths.tolist() == [HORIZON, 1, HORIZON]
    assert torch.allclose(chain.log_rows[0].exp().sum(-1), torch.ones(HORIZON, dtype=chain.log_rows.dtype))
    greedy = joint.argmax()
    assert greedy.lengths is not None and greedy.lengths.tolist() == [HORIZON, 1, HORIZON]


@pytest.mark.parametrize("grow", ["choose", "draw"])
def test_a_broken_row_leaves_the_trees_of_other_texts(grow: str) -> None:
    def trees(joint: JointDistribution) -> list[DraftTree]:
        if grow == "choose":
            return choose_tree(joint, nodes=5, depth=3)
        return draw_tree(joint, nodes=5, depth=3, generator=torch.Generator().manual_seed(0))

    whole = random_joint("cp", batch=2)
    spoilt = copy.deepcopy(whole)
    assert isinstance(spoilt, LatentMixture)
    spoilt.logits[1, 0] = torch.nan
    first, second = trees(spoilt)
    assert len(second.tokens) == 0 and len(first.tokens) == 5
    if grow == "choose":
        assert first.tokens.tolist() == trees(whole)[0].tokens.tolist()


class TestVerifiersGivenBrokenRows:
    """As a joint with a `sample` of its own might hand them over: the drafts are refused, and p decides."""

    P = torch.tensor([0.5, 0.3, 0.2])

    @pytest.mark.parametrize("value", [torch.nan, -torch.inf])
    def test_nothing_is_kept(self, value: float) -> None:
        drafts, index, ids = [1, 2], torch.tensor([1, 2]), torch.arange(3)
        rows = torch.full((2, 3), value)
        tree = DraftTree(index, (-1, 0), (0, 1), rows)
        seen = []
        for seed in range(200):
            generator = torch.Generator().manual_seed(seed)
            for verify in (verify_sampled, verify_block):
                found = verify(lambda _: self.P, drafts, index, rows, ids, generator=generator)
                assert isinstance(found, Verified) and found.accepted == 0
                seen.append(found.token)
            path, token = verify_tree(lambda _: self.P, drafts, tree, ids, generator=generator)
            assert path == []
            seen.append(token)
        assert [abs(seen.count(k) / 600 - float(self.P[k])) < 0.08 for k in range(3)] == [True] * 3

    def test_ratios(self) -> None:
        assert [ratio(0.5, 0.25), ratio(0.5, 0.0), ratio(0.0, 0.0), ratio(0.5, torch.nan)] == [2.0, 0, 0, 0]


HEADS: dict[str, dict[str, Any]] = {
    "cp": {"rank": 3},
    "hidden": {"rank": 3, "features": "hidden", "joint": "hmm"},
    "block": {"features": "block", "block": BLOCK, "layers": [1], "joint": "markov", "rank": 1},
    "recurrent": {"features": "block", "block": BLOCK, "joint": "recurrent", "rank": 1},
    "sequential": {"joint": "sequential", "rank": 1},
}


def spoilt(model: Any, name: str, value: float) -> DraftHead:
    """A head with weights that are no numbers: a few entries of the first matrix of each of its parts."""
    head = tiny_head(model, **HEADS[name])
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.view(-1)[:3] = value
    return head


OPTIONS: list[dict[str, Any]] = [
    {},
    {"top_k": 0},
    {"temperature": 0.7, "repetition_penalty": 1.2},
    {"seed": 3},
]
SPOILT = itertools.product(["chain", "tree"], OPTIONS, HEADS)


@pytest.mark.parametrize(
    ("drafting", "options", "head", "number"),
    [(*case, number) for case, number in zip(SPOILT, itertools.cycle(NUMBERS), strict=False)],
    ids=str,
)
def test_generation_with_a_spoilt_head(
    drafting: str, options: dict[str, Any], head: str, number: str
) -> None:
    model = tiny_model()
    method = {"drafting": drafting, "draft_length": 3}
    sampled = {"do_sample": True, "max_new_tokens": 8, "pad_token_id": 0} | options
    for how in ({}, {"verification": "block"}) if drafting == "chain" and "seed" not in options else ({},):
        out = polydraft.generate(
            model, spoilt(model, head, NUMBERS[number]), PROMPTS, **sampled, **method, **how
        )
        assert cast(Tensor, out.sequences).shape == (2, 12)
    if not options:
        plain = cast(Any, model).generate(PROMPTS, do_sample=False, max_new_tokens=8, pad_token_id=0)
        greedy = polydraft.generate(
            model, spoilt(model, head, NUMBERS[number]), PROMPTS, max_new_tokens=8, pad_token_id=0, **method
        )
        assert torch.equal(cast(Tensor, greedy.sequences), plain)
    if "seed" in options:
        plainly = polydraft.generate(model, tiny_head(model), PROMPTS, **sampled, draft_length=0)
        assert torch.equal(cast(Tensor, plainly.sequences), cast(Tensor, out.sequences))


def test_a_trace_says_nothing_of_a_spoilt_head() -> None:
    """Its log probabilities would be no numbers, which JSON cannot say."""
    model = tiny_model()
    batch = LiveBatch(
        model, spoilt(model, "cp", torch.nan), rows=1, plan=Plan(draft_length=3, drafting="tree")
    )
    row = new_row([3, 4], device=model.device, max_new_tokens=6, trace=2)
    batch.admit([row])
    while batch.active:
        batch.step()
    assert [(token.draft_log_prob, token.weights) for token in row.trace] == [(None, ())] * 6


class Spoil(LogitsProcessor):
    """Makes the row of one place what plain sampling cannot draw from."""

    stateless = True

    def __init__(self, value: float, *, at: int, whole: bool) -> None:
        self._value, self._at, self._whole = value, at, whole

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        if input_ids.shape[1] == self._at:
            scores = scores.clone()
            scores[:, slice(None) if self._whole else 3] = self._value
        return scores


@pytest.mark.parametrize(
    ("value", "whole"), [(torch.nan, False), (torch.inf, False), (-torch.inf, True), (torch.nan, True)]
)
@pytest.mark.parametrize(
    "way", list(itertools.product(["chain", "tree"], ["seed", "generator", "block"])), ids=str
)
def test_a_row_that_cannot_be_drawn_from_raises_as_plain_sampling_does(
    value: float, whole: bool, way: tuple[str, str]
) -> None:
    drafting, draws = way
    model = tiny_model()
    given: dict[str, Any] = {"do_sample": True, "max_new_tokens": 12, "top_k": 0}
    given["logits_processor"] = LogitsProcessorList([Spoil(value, at=9, whole=whole)])
    with pytest.raises(RuntimeError):
        cast(Any, model).generate(PROMPTS[:1], **given)
    if draws == "block":
        drafting, given["verification"] = "chain", "block"
    elif draws == "seed":
        given["seed"] = 3
    with pytest.raises(UndrawableError, match="cannot be drawn: the scores, after all processors, hold NaN"):
        polydraft.generate(model, tiny_head(model), PROMPTS[:1], drafting=drafting, draft_length=3, **given)


def test_one_such_row_leaves_a_live_batch_to_the_others() -> None:
    model = tiny_model()
    batch = LiveBatch(model, tiny_head(model), rows=3, plan=Plan(draft_length=3, drafting="chain"))
    options: dict[str, Any] = {"device": model.device, "max_new_tokens": 10, "temperature": 1.0}
    rows = [new_row([3, 4 + k], seed=k, **options) for k in range(3)]
    lonely = [new_row([3, 4 + k], seed=k, **options) for k in (0, 2)]
    rows[1].processors.insert(0, Spoil(torch.nan, at=5, whole=True))  # type: ignore[union-attr]
    batch.admit(rows)
    raised = 0
    while batch.active:
        try:
            batch.step()
        except UndrawableError:
            raised += 1
            assert rows[1].failed and len(rows[1].generated) == 3
    assert raised == 1 and not batch.dead
    for one, row in zip(lonely, (rows[0], rows[2]), strict=True):
        batch.admit([one])
        while batch.active:
            batch.step()
        assert one.generated == row.generated and not row.failed
