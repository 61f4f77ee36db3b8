"""Acceptance along a path against enumeration of all continuations, and the held-out figures by hand."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from polydraft.heads import DraftHead
from polydraft.training.anchors import build_anchors
from polydraft.training.cache import cache_hidden
from polydraft.training.data import Document, collate
from polydraft.training.losses import Anchors, head_losses
from polydraft.training.paths import paths
from polydraft.training.validation import by_temperature, choose, end_tokens, missing_figures, validate
from polydraft.training.weights import LossWeights
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
    sampled = paths(head, anchors).sampled
    assert sampled is not None
    average, exact = torch.zeros(HORIZON, dtype=torch.float64), torch.zeros(HORIZON, dtype=torch.float64)
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
    greedy = paths(head, anchors).greedy
    assert greedy is not None
    with torch.no_grad():
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
    whole, tail = paths(head, anchors), paths(head, part)
    for name in ("log_q", "valid", "greedy", "sampled"):
        assert torch.allclose(getattr(whole, name)[last], getattr(tail, name), atol=1e-6)


def test_only_what_is_asked_for(model: PreTrainedModel) -> None:
    head = tiny_head(model, joint="cp-markov", rank=2, horizon=HORIZON, draft_vocab_size=3)
    anchors = anchors_of(head, model)
    both, alone = paths(head, anchors), paths(head, anchors._replace(teacher=None), sampled=False)
    other = paths(head, anchors, greedy=False)
    assert alone.sampled is None and other.greedy is None
    assert alone.greedy is not None and torch.equal(alone.greedy, both.greedy)
    torch.testing.assert_close(other.sampled, both.sampled)
    torch.testing.assert_close(other.log_q[both.valid], both.log_q[both.valid])


def test_single_tokens_of_the_teacher_are_those_of_its_rows(model: PreTrainedModel) -> None:
    head = tiny_head(model, horizon=HORIZON, draft_vocab_size=3)
    batch = collate([vars(Document([1, 3, 0, 2, 1])), vars(Document([2, 2, 0]))])
    states = cache_hidden(model, [Document([1, 3, 0, 2, 1]), Document([2, 2, 0])])
    for rows in (batch, collate([vars(d) for d in states])):
        teacher = build_anchors(head, model, rows, teacher=True).teacher
        assert teacher is not None
        index, tokens = torch.tensor([[1, 6], [3, 2]]), torch.tensor([[2, 0], [1, -1]])
        found = teacher.log_probs(index, tokens)
        expected = teacher.log_rows(index.flatten()).view(2, 2, -1).gather(-1, tokens.clamp(min=0)[..., None])
        torch.testing.assert_close(found, expected[..., 0])


def plain_length(table: Tensor, *, ended: bool) -> tuple[float, float]:
    """Expected cycles and accepted drafts, going from token to token with the chance of a cycle there."""
    anchors, n = table.shape
    chance, cycles, accepted = [1.0] + [0.0] * (anchors + n), 0.0, 0.0
    for i in range(anchors):
        room = anchors - 1 - i + ended
        reached = [1.0] + [float(table[i, s]) if s < room else 0.0 for s in range(n)] + [0.0]
        cycles += chance[i]
        accepted += chance[i] * sum(reached[1:])
        for a in range(n + 1):
            chance[i + a + 1] += chance[i] * (reached[a] - reached[a + 1])
    return cycles, accepted


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
        lengths: dict[float | None, list[float]] = {}
        for document in (self.greedy, self.sampled, self.warm):
            anchors = build_anchors(head, model, collate([vars(document)]), teacher=True)
            with torch.no_grad():
                losses = head_losses(head, anchors, LossWeights())
            found_here = paths(head, anchors)
            nll, counts = nll + losses.nll, counts + losses.counts
            anchors_seen, drafts = anchors_seen + len(anchors.hidden), drafts + float(losses.counts[0])
            for table in (found_here.greedy, found_here.sampled):
                assert table is not None
                cycles, accepted = plain_length(table, ended=False)
                lengths.setdefault(document.temperature, []).append(1 + accepted / cycles)
        found = self.figures(model, self.greedy, self.sampled, self.warm)
        assert found["nll"] == pytest.approx(float(nll.sum()) / anchors_seen, rel=1e-4)
        for s in range(3):
            assert found[f"nll_{s + 1}"] == pytest.approx(float(nll[s] / counts[s].clamp(min=1)), rel=1e-4)
        assert found["coverage"] == pytest.approx(drafts / anchors_seen)
        assert found["greedy_acceptance_length"] == pytest.approx(lengths[0.0][0], rel=1e-4)
        assert found["sampled_acceptance_length"] == pytest.approx(lengths[1.0][1], rel=1e-4)

    def test_acceptance_only_where_the_temperature_fits(self, model: PreTrainedModel) -> None:
        assert "sampled_acceptance_length" not in self.figures(model, self.greedy)
        assert "greedy_acceptance_length" not in self.figures(model, self.sampled)
        unknown = self.figures(model, Document([1, 2, 3, 0]))
        assert {"greedy_acceptance_length", "sampled_acceptance_length"} <= set(unknown)

    def test_nothing_to_learn_gives_no_figures(self, model: PreTrainedModel) -> None:
        assert self.figures(model, Document([1, 2, 3], 2)) == {}

    def test_texts_weigh_by_their_cycles(self, model: PreTrainedModel) -> None:
        head = tiny_head(model, rank=2, horizon=HORIZON)
        documents = [Document([1, 2, 3, 0, 1, 2, 0, 0], 1, 1.0), Document([3, 3, 1, 0], 0, 1.0)]
        cycles, accepted = 0.0, 0.0
        for document in documents:
            table = paths(head, build_anchors(head, model, collate([vars(document)]), teacher=True)).sampled
            assert table is not None
            more = plain_length(table, ended=False)
            cycles, accepted = cycles + more[0], accepted + more[1]
        found = validate(head, model, documents)
        assert found["sampled_acceptance_length"] == pytest.approx(1 + accepted / cycles, rel=1e-5)

    def test_an_end_token_may_be_drafted(self) -> None:
        model = tiny_model(vocab_size=VOCAB_SIZE, initializer_range=0.2, eos_token_id=2)
        assert end_tokens(model) == {2}
        head = tiny_head(model, rank=2, horizon=HORIZON)
        lengths = []
        for ids, ended in (([1, 2, 3, 0, 1, 2], True), ([1, 2, 3, 0, 1, 3], False)):
            document = Document(ids, 1, 1.0)
            table = paths(head, build_anchors(head, model, collate([vars(document)]), teacher=True)).sampled
            assert table is not None
            cycles, accepted = plain_length(table, ended=ended)
            found = validate(head, model, [document])["sampled_acceptance_length"]
            assert found == pytest.approx(1 + accepted / cycles, rel=1e-5)
            lengths.append(plain_length(table, ended=True) != (cycles, accepted))
        assert lengths == [False, True]

    def test_progress_counts_the_windows(self, model: PreTrainedModel) -> None:
        shown: list[tuple[int, int]] = []
        validate(
            tiny_head(model, horizon=HORIZON),
            model,
            [self.greedy, self.sampled, self.warm, self.greedy],
            batch_size=1,
            on_progress=lambda done, total: shown.append((done, total)),
        )
        assert shown == [(1, 4), (2, 4), (3, 4), (4, 4)]


class TestChoose:
    written = tuple(Document(list(range(1 + i, 9 + i)), 3, 0.0) for i in range(6))
    others = (Document(list(range(20, 32))),)

    def test_as_many_of_each_temperature_and_always_the_same(self) -> None:
        documents = [*self.written, *(Document(d.input_ids[1:], 2, 1.0) for d in self.written), *self.others]
        found = choose(documents, max_length=16, most=4, seed=3)
        counts = Counter(d.temperature for d in found)
        assert counts == {0.0: 4, 1.0: 4, None: 1}
        assert found == choose(documents, max_length=16, most=4, seed=3)
        assert found != choose(documents, max_length=16, most=4, seed=4)
        lengths = [len(d.input_ids) for d in found]
        assert lengths == sorted(lengths)

    def test_written_text_is_cut_not_continued(self) -> None:
        found = choose([*self.written[:1], *self.others], max_length=5, most=9, seed=0)
        assert sorted((d.input_ids, d.temperature) for d in found) == [
            ([1, 2, 3, 4, 5], 0.0),
            ([20, 21, 22, 23, 24], None),
            ([25, 26, 27, 28, 29], None),
        ]

    def test_a_prompt_as_long_as_the_window_leaves_nothing(self) -> None:
        assert choose([Document(list(range(12)), 9, 1.0)], max_length=8, most=9, seed=0) == []


def test_what_is_missing_is_said() -> None:
    def held_out(*temperatures: float | None) -> list[Document]:
        return [Document([1, 2, 3], temperature=temperature) for temperature in temperatures]

    greedy = "no held-out text at temperature 0, so no greedy acceptance length"
    sampled = "no held-out text at temperature 1, so no sampled acceptance length"
    assert missing_figures(held_out(0.0, 1.0)) == missing_figures(held_out(None)) == []
    assert missing_figures(held_out(1.0, 0.7)) == [greedy]
    assert missing_figures(held_out(0.0)) == [sampled]
    assert missing_figures(held_out(0.7)) == [greedy, sampled]
    assert by_temperature(held_out(1.0, 0.0, 1.0, None)) == "1 at temperature 0, 2 at temperature 1"
    assert by_temperature(held_out(None)) == ""
