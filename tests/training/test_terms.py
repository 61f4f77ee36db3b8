"""The terms that shape the gate, and thinning: each by hand."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from polydraft.training.anchors import build_anchors, thinned
from polydraft.training.data import Document, collate
from polydraft.training.losses import head_losses
from polydraft.training.terms import balance_loss, router_z_loss
from polydraft.training.weights import LossWeights
from tests.tiny import tiny_head, tiny_model
from tests.training.plain import assert_close, gradients, make_anchors, make_head


class TestBalance:
    def test_balanced_is_one(self) -> None:
        rows = torch.full((4, 4), 0.1).fill_diagonal_(0.7)
        assert balance_loss(rows.log()) == pytest.approx(1.0)

    def test_collapsed_is_the_rank(self) -> None:
        rows = torch.tensor([[1 - 3e-6, 1e-6, 1e-6, 1e-6]] * 5)
        assert balance_loss(rows.log()) == pytest.approx(4.0, abs=1e-4)

    def test_by_hand(self) -> None:
        rows = torch.tensor([[0.8, 0.2], [0.6, 0.4], [0.1, 0.9]])
        expected = 2 * (2 / 3 * 0.5 + 1 / 3 * 0.5)  # both mean weights are 1/2
        assert balance_loss(rows.log()) == pytest.approx(expected)

    def test_counts_once_per_anchor_and_not_at_rank_one(self) -> None:
        for rank in (1, 3):
            head = make_head(rank=rank)
            anchors = make_anchors(head, count=5)
            without, with_it = (
                head_losses(head, anchors, LossWeights(nll=1.0, balance=b)).total.item() for b in (0.0, 0.1)
            )
            weights = head.gate.scores(head.features(anchors.hidden, anchors.next_tokens)).log_softmax(-1)
            expected = 0.1 * 5 * balance_loss(weights).item() if rank > 1 else 0.0
            assert with_it - without == pytest.approx(expected, abs=1e-3)


class TestZLoss:
    def test_by_hand(self) -> None:
        scores = torch.tensor([[0.0, 0.0], [3.0, -1.0]])
        expected = (math.log(2) ** 2 + math.log(math.exp(3) + math.exp(-1)) ** 2) / 2
        assert router_z_loss(scores) == pytest.approx(expected)

    def test_sees_the_scale_that_a_softmax_does_not(self) -> None:
        scores = torch.randn(6, 4)
        assert torch.allclose(scores.softmax(-1), (scores + 5).softmax(-1))
        assert router_z_loss(scores + 5) > router_z_loss(scores) + 5

    @pytest.mark.parametrize("joint", ["cp", "hmm", "tree", "cp-markov"])
    def test_counts_once_per_anchor(self, joint: str) -> None:
        head = make_head(rank=3, joint=joint)
        anchors = make_anchors(head, count=5)
        totals = [head_losses(head, anchors, LossWeights(balance=0.0, z_loss=z)).total for z in (0.0, 0.1)]
        scores = head.gate.scores(head.features(anchors.hidden, anchors.next_tokens))
        expected = 0.1 * 5 * router_z_loss(scores)
        assert (totals[1] - totals[0]).item() == pytest.approx(expected.item(), abs=1e-3)
        plain = gradients(head, expected)
        found = [gradients(head, total) for total in totals]
        for name, gradient in plain.items():
            assert torch.allclose(found[1][name] - found[0][name], gradient, rtol=1e-3, atol=1e-4)
        assert plain["gate.weight"].abs().max() > 1e-3

    def test_none_at_rank_one(self) -> None:
        head = make_head(rank=1)
        anchors = make_anchors(head)
        totals = [head_losses(head, anchors, LossWeights(balance=0.0, z_loss=z)).total for z in (0.0, 0.1)]
        assert totals[0] == totals[1]


class TestNoise:
    @pytest.mark.parametrize("joint", ["cp", "hmm", "tree", "cp-markov"])
    def test_only_while_training(self, joint: str) -> None:
        head = make_head(rank=3, joint=joint)
        anchors = make_anchors(head)
        quiet, noisy = LossWeights(), LossWeights(gate_noise=1.0)

        def total(weights: LossWeights) -> float:
            return head_losses(head, anchors, weights).total.item()

        assert total(noisy) == total(quiet)
        head.train()
        assert total(quiet) == pytest.approx(head_losses(head.eval(), anchors, quiet).total.item())
        head.train()
        assert len({total(noisy) for _ in range(3)}) == 3

    def test_has_the_deviation_that_was_asked_for(self) -> None:
        head = make_head(rank=2)
        features = torch.randn(1, 32).expand(20_000, -1)
        scores = head.gate.scores(features[:1])[0]
        noisy = head.gate(features, 0.5).prior
        difference = noisy[:, 0] - noisy[:, 1]  # of two noises: sqrt(2) as wide
        assert difference.mean().item() == pytest.approx((scores[0] - scores[1]).item(), abs=0.03)
        assert difference.std().item() == pytest.approx(0.5 * math.sqrt(2), rel=0.03)

    def test_the_craft_is_that_of_the_scores_themselves(self) -> None:
        head = make_head(rank=3).train()
        anchors = make_anchors(head)
        loads = [head_losses(head, anchors, LossWeights(gate_noise=n)).load for n in (0.0, 2.0)]
        assert torch.equal(*loads)


class TestThinning:
    mask = torch.tensor([[1, 1, 0, 1, 1, 1, 0, 1], [0, 0, 0, 0, 0, 1, 0, 0]], dtype=torch.bool)

    @pytest.mark.parametrize("most", [0, 4, 7, 100])
    def test_keeps_all_where_there_are_no_more(self, most: int) -> None:
        kept, share = thinned(self.mask, most)
        assert torch.equal(kept, self.mask)
        assert share == 1

    @pytest.mark.parametrize("most", [1, 2, 3])
    def test_every_position_counts_as_much_on_average(self, most: int) -> None:
        draws = 4000
        total = torch.zeros(self.mask.shape)
        for _ in range(draws):
            kept, share = thinned(self.mask, most)
            assert kept.sum() == 2 * most
            assert not (kept & ~self.mask).any()
            total += share * kept
        # a share of 7 / 2m with chance 2m / 7: deviation below sqrt(2.5 / draws), here five of them
        assert (total / draws - self.mask.float()).abs().max() < 5 * math.sqrt(2.5 / draws)

    def test_a_loss_over_all_choices_is_the_whole_loss(self) -> None:
        head = make_head(rank=3)
        anchors = make_anchors(head, count=5)
        weights = LossWeights(nll=0.5, kl=0.5, tv=0.5, balance=0.0)
        whole = head_losses(head, anchors, weights)
        expected = gradients(head, whole.total)
        fields = ("hidden", "next_tokens", "targets", "valid", "teacher_index")
        choices = list(itertools.combinations(range(5), 2))
        parts = [
            anchors._replace(share=5 / 2, **{name: getattr(anchors, name)[list(kept)] for name in fields})
            for kept in choices
        ]
        mean = torch.stack([head_losses(head, part, weights).total for part in parts]).mean()
        assert_close(mean, whole.total)
        for name, gradient in gradients(head, mean).items():
            assert_close(gradient, expected[name])

    def test_of_a_batch(self) -> None:
        model = tiny_model()
        head = tiny_head(model, horizon=3)
        batch = collate([vars(Document(list(range(n)))) for n in (12, 4)])
        whole = build_anchors(head, model, batch, teacher=True)
        thin = build_anchors(head, model, batch, teacher=True, most=3)
        assert (len(whole.hidden), whole.share) == (12, 1.0)
        assert (len(thin.hidden), thin.share) == (6, 2.0)
        rows = {tuple(row) for row in whole.targets.tolist()}
        assert all(tuple(row) in rows for row in thin.targets.tolist())
