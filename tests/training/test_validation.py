"""Expected acceptance against enumeration of all continuations, and the held-out figures by hand."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from polydraft.heads import DraftHead
from polydraft.training.anchors import build_anchors
from polydraft.training.data import Document, collate
from polydraft.training.losses import Anchors, LossWeights, head_losses
from polydraft.training.validation import expected_acceptance, validate
from tests.tiny import tiny_head, tiny_model

VOCAB_SIZE, HORIZON = 4, 3
PREFIX = [1, 3, 0, 2]  # h_t is that of the 0, x[t+1] = 2


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return tiny_model(vocab_size=VOCAB_SIZE, initializer_range=0.2)


def continuations() -> list[list[int]]:
    return [list(x) for x in itertools.product(range(VOCAB_SIZE), repeat=HORIZON)]


def anchors_of(head: DraftHead, model: PreTrainedModel) -> Anchors:
    """One anchor per continuation of PREFIX: the last position with all its drafts in the text."""
    rows = [vars(Document(PREFIX + x, len(PREFIX) - 1)) for x in continuations()]
    every = build_anchors(head, model, collate(rows), teacher=True)
    first = torch.arange(0, len(every.hidden), len(every.hidden) // len(rows))
    assert every.next_tokens[first].unique().tolist() == [PREFIX[-1]]
    assert every.teacher_index is not None
    return every._replace(
        hidden=every.hidden[first],
        next_tokens=every.next_tokens[first],
        targets=every.targets[first],
        valid=every.valid[first],
        teacher_index=every.teacher_index[first],
    )


@torch.no_grad()
def plain_rows(model: PreTrainedModel, tokens: list[int]) -> Tensor:
    """p of the base model after `tokens`; (V,)."""
    row: Tensor = model(torch.tensor([tokens])).logits[0, -1].softmax(-1)
    return row


@torch.no_grad()
def draft_rows(head: DraftHead, anchors: Anchors, drafts: list[int]) -> Tensor:
    """q after `drafts`, over base tokens; (V,)."""
    joint = head(anchors.hidden[:1], anchors.next_tokens[:1])
    prefix = head.draft_index(torch.tensor([drafts], dtype=torch.long))
    out = torch.zeros(VOCAB_SIZE)
    out[head.draft_ids] = joint.conditional(prefix)[0].exp()
    return out


@pytest.mark.parametrize("features", ["fused", "hidden"])
@pytest.mark.parametrize("draft_vocab_size", [VOCAB_SIZE, VOCAB_SIZE - 1])
def test_sampled_estimate_has_the_exact_expectation(
    model: PreTrainedModel, features: str, draft_vocab_size: int
) -> None:
    head = tiny_head(model, rank=2, horizon=HORIZON, features=features, draft_vocab_size=draft_vocab_size)
    anchors = anchors_of(head, model)
    with torch.no_grad():
        _, sampled = expected_acceptance(head, anchors)
    average, exact = torch.zeros(HORIZON), torch.zeros(HORIZON)
    for i, x in enumerate(continuations()):
        p = [plain_rows(model, PREFIX + x[:s])[x[s]] for s in range(HORIZON)]
        average += math.prod(map(float, p)) * sampled[i]
    for s in range(1, HORIZON + 1):
        for x in itertools.product(range(VOCAB_SIZE), repeat=s):
            overlap = 1.0
            for j in range(s):
                prefix = list(x[:j])
                if any(int(head.draft_index(torch.tensor(v))) < 0 for v in x[: j + 1]):
                    overlap = 0.0
                    break
                p_row, q_row = plain_rows(model, PREFIX + prefix), draft_rows(head, anchors, prefix)
                overlap *= float(torch.minimum(p_row, q_row)[x[j]])
            exact[s - 1] += overlap
    assert torch.allclose(average, exact, atol=1e-5)
    assert 0.05 < exact[0] < 0.999


@pytest.mark.parametrize("features", ["fused", "hidden"])
def test_greedy_counts_the_drafts_that_equal_the_text(model: PreTrainedModel, features: str) -> None:
    head = tiny_head(model, rank=2, horizon=HORIZON, features=features)
    anchors = anchors_of(head, model)
    with torch.no_grad():
        greedy, _ = expected_acceptance(head, anchors)
        chain = head.draft_ids[head(anchors.hidden[:1], anchors.next_tokens[:1]).argmax().tokens[0]].tolist()
    for i, x in enumerate(continuations()):
        agree = [float(x[: s + 1] == chain[: s + 1]) for s in range(HORIZON)]
        assert greedy[i].tolist() == agree
    assert greedy.sum(0).tolist() == [16.0, 4.0, 1.0]


def test_a_chunk_at_a_time_is_the_same(model: PreTrainedModel) -> None:
    head = tiny_head(model, horizon=HORIZON)
    batch = collate([vars(Document([i % VOCAB_SIZE for i in range(k, 3 * k)])) for k in range(5, 20)])
    anchors = build_anchors(head, model, batch, teacher=True)
    assert len(anchors.hidden) > 128
    last = slice(-10, None)
    per_anchor = ("hidden", "next_tokens", "targets", "valid", "teacher_index")
    part = anchors._replace(**{name: getattr(anchors, name)[last] for name in per_anchor})
    with torch.no_grad():
        whole, tail = expected_acceptance(head, anchors), expected_acceptance(head, part)
    for table, end in zip(whole, tail, strict=True):
        assert torch.allclose(table[last], end, atol=1e-6)


class TestValidate:
    greedy = Document([1, 2, 3, 0, 1, 2], 1, 0.0)
    sampled = Document([3, 3, 1, 0, 2], 0, 1.0)
    warm = Document([0, 1, 1, 2], 0, 0.7)

    def figures(self, model: PreTrainedModel, *documents: Document) -> dict[str, float]:
        head = tiny_head(model, rank=2, horizon=HORIZON, draft_vocab_size=3)
        found = validate(head, model, documents, batch_size=2)
        assert all(math.isfinite(v) for v in found.values())
        return found

    def test_is_that_of_each_document_alone(self, model: PreTrainedModel) -> None:
        head = tiny_head(model, rank=2, horizon=HORIZON, draft_vocab_size=3)
        nll, counts, anchors_seen, drafts = torch.zeros(3), torch.zeros(3), 0, 0.0
        lengths = {}
        for document in (self.greedy, self.sampled, self.warm):
            anchors = build_anchors(head, model, collate([vars(document)]), teacher=True)
            with torch.no_grad():
                losses = head_losses(head, anchors, LossWeights())
                tables = expected_acceptance(head, anchors)
            nll, counts = nll + losses.nll, counts + losses.counts
            anchors_seen, drafts = anchors_seen + len(anchors.hidden), drafts + float(losses.counts[0])
            lengths[document.temperature] = [float(t.sum(1).mean()) for t in tables]
        found = self.figures(model, self.greedy, self.sampled, self.warm)
        assert found["nll"] == pytest.approx(float(nll.sum()) / anchors_seen, rel=1e-4)
        for s in range(3):
            assert found[f"nll_{s + 1}"] == pytest.approx(float(nll[s] / counts[s].clamp(min=1)), rel=1e-4)
        assert found["coverage"] == pytest.approx(drafts / anchors_seen)
        assert found["greedy_acceptance_length"] == pytest.approx(1 + lengths[0.0][0], rel=1e-4)
        assert found["sampled_acceptance_length"] == pytest.approx(1 + lengths[1.0][1], rel=1e-4)

    def test_acceptance_only_where_the_temperature_fits(self, model: PreTrainedModel) -> None:
        assert "sampled_acceptance_length" not in self.figures(model, self.greedy)
        assert "greedy_acceptance_length" not in self.figures(model, self.sampled)
        unknown = self.figures(model, Document([1, 2, 3, 0]))
        assert {"greedy_acceptance_length", "sampled_acceptance_length"} <= set(unknown)

    def test_nothing_to_learn_gives_no_figures(self, model: PreTrainedModel) -> None:
        assert self.figures(model, Document([1, 2, 3], 2)) == {}
