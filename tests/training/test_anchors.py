"""Which positions are learnt from, and that the cache of hidden states changes none of it."""

from __future__ import annotations

import resource
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from polydraft.errors import InputError, PolydraftError
from polydraft.heads import DraftHead
from polydraft.training.anchors import anchor_mask, build_anchors
from polydraft.training.cache import cache_bytes, cache_hidden, cache_path, load_or_cache
from polydraft.training.data import Document, collate
from polydraft.training.losses import Anchors
from tests.tiny import tiny_head, tiny_model

DRAFTABLE = tuple(range(40))
PROMPTED = Document([10, 11, 12, 13, 14, 15], learn_from=3)
PLAIN = Document([1, 2, 50, 4])  # 50 cannot be drafted


def batch_of(*documents: Document) -> dict[str, Tensor]:
    return collate([vars(d) for d in documents])


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return tiny_model()


def head_of(model: PreTrainedModel, features: str) -> DraftHead:
    """Horizon 3; token v < 40 has draft index 39 - v, others none."""
    head = tiny_head(model, horizon=3, features=features, draft_vocab_size=len(DRAFTABLE))
    head.draft_ids.copy_(torch.tensor(DRAFTABLE).flip(0))
    return head.attach(model)


def tokens_of(anchors: Anchors) -> list[list[int]]:
    """The targets as base tokens, -1 where there is none."""
    return torch.where(anchors.targets >= 0, 39 - anchors.targets, -1).tolist()


def test_mask_needs_two_labelled_tokens_ahead() -> None:
    batch = batch_of(PROMPTED, PLAIN)
    expected = [[0, 0, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0]]
    assert anchor_mask(batch["input_ids"], batch["labels"]).int().tolist() == expected


def test_fused_anchors_by_hand(model: PreTrainedModel) -> None:
    anchors = build_anchors(head_of(model, "fused"), model, batch_of(PROMPTED, PLAIN), teacher=True)
    assert anchors.next_tokens.tolist() == [13, 14, 2, 50]
    assert tokens_of(anchors) == [[14, 15, -1], [15, -1, -1], [-1, 4, -1], [4, -1, -1]]
    assert anchors.valid.int().tolist() == [[1, 1, 0], [1, 0, 0], [0, 0, 0], [1, 0, 0]]
    assert anchors.teacher_index is not None
    rows = torch.where(anchors.valid, anchors.teacher_index, -1)
    assert rows.tolist() == [[3, 4, -1], [4, -1, -1], [-1, -1, -1], [8, -1, -1]]


def test_hidden_anchors_by_hand(model: PreTrainedModel) -> None:
    anchors = build_anchors(head_of(model, "hidden"), model, batch_of(PROMPTED, PLAIN), teacher=True)
    assert tokens_of(anchors) == [[13, 14, 15, -1], [14, 15, -1, -1], [2, -1, 4, -1], [-1, 4, -1, -1]]
    # x[t+1] = 50 is unknown, but what follows it is still learnt
    assert anchors.valid.int().tolist() == [[1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0]]
    assert anchors.teacher_index is not None
    rows = torch.where(anchors.valid, anchors.teacher_index, -1)
    assert rows.tolist() == [[2, 3, 4, -1], [3, 4, -1, -1], [6, -1, -1, -1], [-1, 8, -1, -1]]


def test_states_and_teacher_rows_are_the_models_own(model: PreTrainedModel) -> None:
    head = head_of(model, "fused")
    anchors = build_anchors(head, model, batch_of(PROMPTED, PLAIN), teacher=True)
    assert anchors.teacher is not None and anchors.teacher_index is not None
    places = [(PROMPTED, 2), (PROMPTED, 3), (PLAIN, 0), (PLAIN, 1)]
    for i, (document, t) in enumerate(places):
        with torch.no_grad():
            alone = model(torch.tensor([document.input_ids]), output_hidden_states=True)
        assert torch.allclose(anchors.hidden[i], alone.hidden_states[-1][0, t], atol=1e-5)
        for s in anchors.valid[i].nonzero().flatten().tolist():
            expected = alone.logits[0, t + 1 + s].log_softmax(-1)[head.draft_ids]
            found = anchors.teacher.log_rows(anchors.teacher_index[i, s : s + 1])[0]
            assert torch.allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("features", ["fused", "hidden"])
def test_no_target_crosses_the_end_of_a_document(model: PreTrainedModel, features: str) -> None:
    documents = [Document([d + 1] * n) for d, n in enumerate((3, 9, 4, 6))]
    anchors = build_anchors(head_of(model, features), model, batch_of(*documents), teacher=False)
    own = anchors.next_tokens[:, None].expand_as(anchors.targets)
    known = anchors.targets >= 0
    assert torch.equal((39 - anchors.targets)[known], own[known])
    assert len(own) == sum(len(d.input_ids) - 2 for d in documents)
    ahead = [n - 2 - t for d in documents for n in [len(d.input_ids)] for t in range(n - 2)]
    skip = int(features == "hidden")
    assert known[:, skip:].sum(1).tolist() == [min(left, 3) for left in ahead]


def test_a_batch_may_hold_no_anchor(model: PreTrainedModel) -> None:
    anchors = build_anchors(head_of(model, "fused"), model, batch_of(Document([1, 2, 3], 2)), teacher=True)
    assert anchors.hidden.shape == (0, 32)
    assert anchors.targets.shape == (0, 3)


class TestCache:
    documents = (Document(list(range(12)), 4, 1.0), PLAIN, PROMPTED)

    def test_same_anchors_as_on_the_fly(self, model: PreTrainedModel) -> None:
        head = head_of(model, "fused")
        filled = cache_hidden(model, self.documents, batch_size=2)
        assert [(d.input_ids, d.learn_from, d.temperature) for d in filled] == [
            (d.input_ids, d.learn_from, d.temperature) for d in self.documents
        ]
        fresh = build_anchors(head, model, batch_of(*self.documents), teacher=True)
        cached = build_anchors(head, model, batch_of(*filled), teacher=True)
        for name in ("next_tokens", "targets", "valid", "teacher_index"):
            assert torch.equal(getattr(cached, name), getattr(fresh, name))
        assert torch.allclose(cached.hidden, fresh.hidden, atol=1e-5)
        assert cached.teacher is not None and fresh.teacher is not None
        assert fresh.teacher_index is not None
        asked = fresh.teacher_index[fresh.valid].unique()
        assert len(asked) > 8
        assert torch.allclose(cached.teacher.log_rows(asked), fresh.teacher.log_rows(asked), atol=1e-4)

    def test_file_is_written_once_and_read_back_equal(self, model: PreTrainedModel, tmp_path: Path) -> None:
        calls: list[tuple[int, int]] = []
        for _ in range(2):
            found = load_or_cache(
                tmp_path, model, self.documents, batch_size=2, on_progress=lambda *done: calls.append(done)
            )
            for document, expected in zip(found, cache_hidden(model, self.documents), strict=True):
                assert document.hidden is not None and expected.hidden is not None
                assert torch.allclose(document.hidden, expected.hidden, atol=1e-5)
        assert calls == [(2, 3), (3, 3)]
        (file,) = tmp_path.iterdir()
        assert file.stat().st_size == pytest.approx(cache_bytes(model, self.documents), abs=400)

    def test_key_tells_data_models_and_dtypes_apart(self, tmp_path: Path) -> None:
        model, documents = tiny_model(), self.documents
        paths = [
            cache_path(tmp_path, model, documents),
            cache_path(tmp_path, model, documents[:2]),
            cache_path(tmp_path, tiny_model(seed=1), documents),
            cache_path(tmp_path, tiny_model("qwen3"), documents),
            cache_path(tmp_path, tiny_model().to(torch.bfloat16), documents),  # type: ignore[arg-type]
        ]
        assert len(set(paths)) == 5
        assert cache_path(tmp_path, tiny_model(), documents) == paths[0]

    def test_refuses_states_of_a_model_fine_tuned_under_one_unembedding(self, tmp_path: Path) -> None:
        model = tiny_model()
        load_or_cache(tmp_path, model, self.documents)
        with torch.no_grad():
            model.model.layers[0].mlp.down_proj.weight.neg_()
        with pytest.raises(InputError, match="another model with the same unembedding"):
            load_or_cache(tmp_path, model, self.documents)

    def test_refuses_soft_capped_logits(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="changes its logits after the unembedding"):
            load_or_cache(tmp_path, tiny_model("gemma2"), self.documents)
        assert list(tmp_path.iterdir()) == []

    def test_bfloat16_is_read_back_without_complaint(self, tmp_path: Path) -> None:
        model = tiny_model().to(torch.bfloat16)  # type: ignore[arg-type]
        documents = [Document(torch.randint(64, (n,)).tolist()) for n in (5, 9, 30, 31)]
        for _ in range(2):
            found = load_or_cache(tmp_path, model, documents)
        assert found[0].hidden is not None and found[0].hidden.dtype == torch.bfloat16

    def test_full_disks_are_told_before_and_meanwhile(
        self, model: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        usage = shutil.disk_usage(tmp_path)
        needed = cache_bytes(model, self.documents)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=needed - 1))
        with pytest.raises(InputError, match=r"hidden states need .* make room"):
            load_or_cache(tmp_path, model, self.documents)
        monkeypatch.undo()
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
        try:
            with pytest.raises(PolydraftError, match=r"cannot write .* make room"):
                load_or_cache(tmp_path, model, self.documents)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert list(tmp_path.iterdir()) == []

    def test_further_layers(self, model: PreTrainedModel, tmp_path: Path) -> None:
        assert cache_path(tmp_path, model, self.documents) != cache_path(
            tmp_path, model, self.documents, layers=[1]
        )
        for _ in range(2):
            found = load_or_cache(tmp_path, model, self.documents, layers=[1])
        for document in found:
            ids = torch.tensor([document.input_ids])
            states = model(ids, output_hidden_states=True).hidden_states
            expected = torch.cat([states[-1], states[1]], -1)[0]
            assert document.hidden is not None
            torch.testing.assert_close(document.hidden, expected, rtol=1e-4, atol=1e-5)
