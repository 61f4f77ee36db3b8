"""Packed rows against the same documents alone: states, anchors, losses; and which models are refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from polydraft.errors import InputError
from polydraft.heads import DraftHead
from polydraft.heads.block import block_sizes
from polydraft.hidden import HiddenTap
from polydraft.training.anchors import build_anchors
from polydraft.training.cache import cache_hidden
from polydraft.training.data import Document, collate
from polydraft.training.losses import head_losses
from polydraft.training.packing import PackedDataset, check_packing, collate_packed, first_fit
from polydraft.training.weights import LossWeights
from tests.tiny import KINDS, tiny_head, tiny_model
from tests.training.runs import StopAt, Stopped, run, same_weights, write_corpus

KINDS_AND_ATTENTION = [
    (kind, attention)
    for kind in KINDS
    for attention in ("sdpa", "eager")
    if (kind, attention) != ("gemma2", "sdpa")  # transformers has no such thing
]


def some_documents(*, count: int = 7, vocab_size: int = 64) -> list[Document]:
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(3, 19, (count,), generator=generator).tolist()
    return [
        Document(torch.randint(vocab_size, (n,), generator=generator).tolist(), learn_from=i % 3 * (n // 4))
        for i, n in enumerate(lengths)
    ]


def batch_of(documents: Sequence[Document], *, size: int) -> dict[str, Tensor]:
    packed = PackedDataset(documents, size=size)
    return collate_packed([packed[i] for i in range(len(packed))])


class TestFirstFit:
    def test_by_hand(self) -> None:
        assert first_fit([5, 6, 4, 1, 5, 3], size=10) == [[0, 2, 3], [1, 5], [4]]
        assert first_fit([], size=10) == []

    @settings(max_examples=100, deadline=None)
    @given(st.lists(st.integers(1, 16), max_size=40))
    def test_equals_a_plain_search(self, lengths: list[int]) -> None:
        rows: list[list[int]] = []
        for index, length in enumerate(lengths):
            fitting = (row for row in rows if sum(lengths[i] for i in row) + length <= 16)
            row = next(fitting, None)
            if row is None:
                rows.append([index])
            else:
                row.append(index)
        assert first_fit(lengths, size=16) == rows


def test_collate_by_hand() -> None:
    documents = [Document([1, 2, 3]), Document([4, 5, 6, 7], 2), Document([8, 9, 10, 11, 12])]
    packed = PackedDataset(documents, size=8)
    assert packed.lengths == [7, 5]
    batch = packed.collate([packed[0], packed[1]])
    assert {name: value.tolist() for name, value in batch.items()} == {
        "input_ids": [[1, 2, 3, 4, 5, 6, 7], [8, 9, 10, 11, 12, 0, 0]],
        "position_ids": [[0, 1, 2, 0, 1, 2, 3], [0, 1, 2, 3, 4, 0, 1]],
        "labels": [[-100, 2, 3, -100, -100, 6, 7], [-100, 9, 10, 11, 12, -100, -100]],
    }


class TestIsolation:
    @pytest.mark.parametrize(("kind", "attention"), KINDS_AND_ATTENTION)
    def test_states_equal_those_of_each_document_alone(self, kind: str, attention: str) -> None:
        model: Any = tiny_model(kind)
        model.set_attn_implementation(attention)
        check_packing(model)
        documents = some_documents()
        packed = PackedDataset(documents, size=32)
        batch = packed.collate([packed[i] for i in range(len(packed))])
        names = ("input_ids", "position_ids")
        with torch.no_grad(), HiddenTap(model) as tap:
            model(**{name: batch[name] for name in names}, use_cache=False)
            together = tap.hidden
            for row, states in enumerate(together):
                start = 0
                for document in packed[row]["documents"]:
                    model(input_ids=torch.tensor([document["input_ids"]]), use_cache=False)
                    end = start + len(document["input_ids"])
                    torch.testing.assert_close(states[start:end], tap.hidden[0], rtol=1e-4, atol=1e-4)
                    start = end

    @pytest.mark.parametrize(
        ("kind", "sizes"),
        [
            ("opt", {"num_hidden_layers": 2, "num_attention_heads": 4, "word_embed_proj_dim": 32}),
            ("bloom", {"n_layer": 2, "n_head": 4}),
            ("mamba", {"num_hidden_layers": 2, "state_size": 4}),
        ],
    )
    def test_a_model_that_leaks_is_refused_by_name(self, kind: str, sizes: dict[str, Any]) -> None:
        config = AutoConfig.for_model(kind, vocab_size=64, hidden_size=32, initializer_range=0.5, **sizes)
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        words = f"{type(model).__name__} does not keep packed documents apart: leave --packing off"
        with pytest.raises(InputError) as error:
            check_packing(model)
        assert str(error.value) == words

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma3"])
    def test_rounding_is_no_leak(self, kind: str, dtype: torch.dtype) -> None:
        model: Any = tiny_model(kind)
        check_packing(model.to(dtype))

    def test_restarts_are_what_keeps_documents_apart(self) -> None:
        """Were positions to run on, states would differ by far more than `check_packing` lets pass."""
        model: Any = tiny_model()
        forward = model.forward

        def run_on(input_ids: Tensor, position_ids: Tensor, **rest: Any) -> Any:
            return forward(input_ids=input_ids, **rest)

        model.forward = run_on
        with pytest.raises(InputError, match="LlamaForCausalLM does not keep"):
            check_packing(model)


def brute_force(document: Document, head: DraftHead) -> list[tuple[Any, ...]]:
    """Anchors of one document from their definition: the next token, and the drafts that can be learnt."""
    ids, drafted = document.input_ids, set(head.draft_ids.tolist())
    found = []
    for t in range(max(document.learn_from - 1, 0), len(ids) - 2):
        drafts = ids[t + 2 : t + 2 + head.config.horizon]
        known = next((i for i, token in enumerate(drafts) if token not in drafted), len(drafts))
        found.append((ids[t + 1], drafts[:known]))
    return sorted(found)


@pytest.mark.parametrize("features", ["fused", "hidden"])
def test_anchors_and_targets_never_cross_a_boundary(features: str) -> None:
    model = tiny_model()
    head = tiny_head(model, features=features, draft_vocab_size=40)
    documents = some_documents(count=12)
    anchors = build_anchors(head, model, batch_of(documents, size=32), teacher=False)
    skip = anchors.targets.shape[1] - head.config.horizon
    rows = zip(anchors.next_tokens, anchors.targets[:, skip:], anchors.valid[:, skip:], strict=True)
    found = [(int(token), head.draft_ids[targets[valid]].tolist()) for token, targets, valid in rows]
    assert sorted(found) == sorted(row for document in documents for row in brute_force(document, head))


WEIGHTS = LossWeights(nll=0.3, kl=0.7, balance=0.0)
"""But for the balancing term, which is that of a batch."""


def summed(head: DraftHead, model: PreTrainedModel, batch: dict[str, Tensor]) -> tuple[float, Tensor]:
    """The loss over all anchors, and its gradient as one vector."""
    head.zero_grad()
    losses = head_losses(head, build_anchors(head, model, batch, teacher=True), WEIGHTS)
    losses.total.backward()
    return float(losses.total.detach()), torch.cat(
        [p.grad.flatten() for p in head.parameters() if p.grad is not None]
    )


@pytest.mark.parametrize("features", ["fused", "hidden", "block"])
@pytest.mark.parametrize("cached", [False, True])
def test_the_packed_loss_is_the_sum_of_those_of_the_documents(features: str, cached: bool) -> None:
    model = tiny_model()
    sizes: dict[str, Any] = {"block": block_sizes(model.config)} if features == "block" else {}
    head = tiny_head(model, features=features, draft_vocab_size=40, **sizes)
    documents = some_documents()
    alone = [summed(head, model, collate([vars(document)])) for document in documents]
    if cached:
        documents = cache_hidden(model, documents)
    loss, gradient = summed(head, model, batch_of(documents, size=32))
    assert loss == pytest.approx(sum(part for part, _ in alone), rel=1e-5)
    torch.testing.assert_close(gradient, sum(g for _, g in alone), rtol=1e-3, atol=1e-4)


def test_cached_states_lie_where_their_documents_do() -> None:
    documents = [
        replace(d, hidden=torch.full((n, 2), i), log_normaliser=torch.full((n,), -i))
        for i, (d, n) in enumerate((d, len(d.input_ids)) for d in some_documents())
    ]
    packed = PackedDataset(documents, size=32)
    batch = packed.collate([packed[i] for i in range(len(packed))])
    for row, index in enumerate(first_fit([len(d.input_ids) for d in documents], size=32)):
        owners = [i for i in index for _ in documents[i].input_ids]
        assert batch["hidden"][row, : len(owners), 1].tolist() == owners
        assert batch["log_normaliser"][row, : len(owners)].tolist() == [-owner for owner in owners]


def test_a_packed_run_resumes_and_learns(tmp_path: Path) -> None:
    data = write_corpus(tmp_path / "corpus.jsonl")
    changes: dict[str, Any] = {"packing": True, "max_length": 48, "batch_size": 2}
    run(data, tmp_path / "whole", **changes)
    with pytest.raises(Stopped):
        run(data, tmp_path / "cut", callbacks=[StopAt(6)], **changes)
    run(data, tmp_path / "cut", resume=True, **changes)
    assert same_weights(tmp_path / "whole", tmp_path / "cut")
