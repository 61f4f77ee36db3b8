"""Heads that run a module per draft: their rows by hand, over whole texts, read bit by bit, and in trees."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import rms_norm, silu

from polydraft.errors import InputError
from polydraft.heads import DraftConfig, DraftHead
from polydraft.joint import select_state
from polydraft.training.options import TrainOptions
from tests.tiny import BLOCK, HIDDEN_SIZE, tiny_head, tiny_model

HORIZON, DRAFT_VOCAB_SIZE, VOCAB_SIZE = 4, 20, 64
FORMS: tuple[dict[str, Any], ...] = (
    {"joint": "sequential"},
    {"joint": "sequential", "own_unembedding": True, "map_rank": 0},
    {"joint": "sequential", "features": "block", "block": BLOCK},
    {"joint": "recurrent", "features": "block", "block": BLOCK},
    {"joint": "recurrent", "features": "block", "block": BLOCK, "layers": [1], "own_unembedding": True},
)
forms = pytest.mark.parametrize("form", FORMS, ids=lambda form: "-".join(str(x) for x in form.values())[:40])


def make(form: dict[str, Any]) -> DraftHead:
    fields = {"rank": 1, "horizon": HORIZON, "draft_vocab_size": DRAFT_VOCAB_SIZE} | form
    return tiny_head(tiny_model(), **fields)


def text(head: DraftHead, length: int, *, seed: int = 1) -> tuple[Tensor, Tensor]:
    """States (L, D) of a text and the token after each (L,)."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(length, head.config.state_size, generator=generator)
    return hidden, torch.randint(VOCAB_SIZE, (length,), generator=generator)


def z_by_hand(head: DraftHead, hidden: Tensor, after: Tensor, drafts: Sequence[int]) -> Tensor:
    """z behind one text and some drafts, everything computed anew; (d,)."""
    d = head.config.hidden_size
    told = [head.embed(head.draft_ids[x]) if x >= 0 else torch.zeros(d) for x in drafts]
    if head.config.joint == "sequential":
        u = head.features(hidden[None], after[None])[0, -1]
        seen = torch.cat([rms_norm(part, (d,)) for part in (u, *told)])
        weights = head.state_dict(keep_vars=True)
        name = f"steps.networks.{len(drafts)}"
        return u + weights[f"{name}.outer.weight"] @ silu(weights[f"{name}.inner.weight"] @ seen)
    assert head.fuse is not None and head.block is not None
    fused = head.fuse(hidden, head.embed(after))
    for embedding in told:  # the layer over the whole text again, longer by one
        states = torch.zeros(head.config.state_size)
        states[:d] = head.block(fused[None])[0, -1]
        fused = torch.cat([fused, head.fuse(states, embedding)[None]])
    return head.block(fused[None])[0, -1]


def row_by_hand(head: DraftHead, hidden: Tensor, after: Tensor, drafts: Sequence[int]) -> Tensor:
    """log q(. | drafts); (V',)."""
    z = z_by_hand(head, hidden, after, drafts)
    rows = head.own[len(drafts), 0] if head.config.own_unembedding else head.rows
    return (rows @ z).log_softmax(-1)


@torch.no_grad()
@forms
def test_rows_of_ragged_texts_read_bit_by_bit(form: dict[str, Any]) -> None:
    head, sizes = make(form), (5, 9, 2)
    texts = [text(head, size, seed=size) for size in sizes]
    reader = head.reader(rows=3)
    for begin, end in ((0, 1), (1, 2), (2, 9)):
        if begin == 2:
            reader.select([1, 0])
            texts = [texts[1], texts[0]]
        reader.tell([h[begin:end] for h, _ in texts], [a[begin:end] for _, a in texts])
        joint = reader.joint()
        drafts = torch.randint(-1, DRAFT_VOCAB_SIZE, (len(texts), HORIZON - 1))
        for s in range(HORIZON):
            found = joint.conditional(drafts[:, :s])
            assert (found.exp().sum(-1) - 1).abs().max() < 1e-5
            for b, (hidden, after) in enumerate(texts):
                expected = row_by_hand(head, hidden[:end], after[:end], drafts[b, :s].tolist())
                torch.testing.assert_close(found[b], expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@forms
def test_forward_over_whole_texts(form: dict[str, Any]) -> None:
    head = make(form)
    hidden, after = (
        torch.stack(parts) for parts in zip(*(text(head, 6, seed=s) for s in (1, 2)), strict=True)
    )
    drafts = torch.randint(DRAFT_VOCAB_SIZE, (2, 2))
    found = head(hidden, after).conditional(drafts)
    for b in range(2):
        expected = row_by_hand(head, hidden[b], after[b], drafts[b].tolist())
        torch.testing.assert_close(found[b], expected, rtol=1e-4, atol=1e-4)
    one = head(hidden[:, -1], after[:, -1])  # with no text before
    expected = row_by_hand(head, hidden[0, -1:], after[0, -1:], [3])
    torch.testing.assert_close(one.conditional(torch.tensor([[3], [3]]))[0], expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@forms
def test_a_tree_branches(form: dict[str, Any]) -> None:
    """Nodes of two rows, two and two, whose paths part at each level."""
    head = make(form)
    reader, texts = head.reader(rows=2), [text(head, size, seed=size) for size in (7, 3)]
    reader.tell(*([part[i] for part in texts] for i in (0, 1)))
    joint = reader.joint()
    rows, paths = torch.tensor([0, 0, 1, 1]), torch.tensor([[1, 5], [2, 5], [7, 0], [7, 3]])
    state = select_state(joint.start(), rows)
    joint = joint.select(rows)
    state = joint.advance(state, 0, paths[:, 0])
    order = torch.tensor([1, 0, 2, 3, 3])
    joint, state, paths, rows = joint.select(order), select_state(state, order), paths[order], rows[order]
    found = joint.row(joint.advance(state, 1, paths[:, 1]), 2)
    for i, row in enumerate(rows.tolist()):
        expected = row_by_hand(head, *texts[row], paths[i].tolist())
        torch.testing.assert_close(found[i], expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@forms
def test_round_trip_and_bfloat16(form: dict[str, Any], tmp_path: Path) -> None:
    head = make(form)
    head.save_pretrained(tmp_path)
    again, found = DraftHead.from_pretrained(tmp_path, output_loading_info=True)
    assert not found["missing_keys"] and not found["unexpected_keys"]
    hidden, after = (part[None] for part in text(head, 5))
    drafts = torch.tensor([[3, 9, 1]])
    exact = head(hidden, after).conditional(drafts)
    torch.testing.assert_close(again.state_dict(), head.state_dict(), rtol=0, atol=0)
    loaded = again.attach(tiny_model())(hidden, after).conditional(drafts)
    torch.testing.assert_close(loaded, exact, rtol=1e-5, atol=1e-4)  # a file's weights lie at other addresses
    rough = head.to(torch.bfloat16)(hidden, after).conditional(drafts)
    assert rough.dtype == torch.float32
    assert float((rough.exp() - exact.exp()).abs().sum() / 2) < 0.3


@forms
def test_every_parameter_learns(form: dict[str, Any]) -> None:
    head = make(form)
    hidden, after = (part[None] for part in text(head, 5))
    head(hidden, after).log_prob(torch.tensor([[3, 9, 1, 4]])).sum().backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


@torch.no_grad()
@forms
def test_a_fresh_head_says_what_the_last_state_says(form: dict[str, Any]) -> None:
    made = make(form)
    head = DraftHead(made.config).eval()
    head.draft_ids.copy_(made.draft_ids)
    head.attach(tiny_model())
    hidden, after = text(head, 5)
    joint = head(hidden[None], after[None])
    if not head.config.own_unembedding:
        expected = (head.rows @ hidden[-1, :HIDDEN_SIZE]).log_softmax(-1)
        for s in range(HORIZON):
            torch.testing.assert_close(joint.conditional(torch.full((1, s), 3))[0], expected)


@pytest.mark.parametrize(
    ("joint", "features", "wanted"),
    [
        ("recurrent", "fused", "'block'"),
        ("recurrent", "hidden", "'block'"),
        ("sequential", "hidden", "'fused' or 'block'"),
    ],
)
def test_features_that_it_cannot_have_are_refused(joint: str, features: str, wanted: str) -> None:
    for options in (DraftConfig, TrainOptions):
        with pytest.raises(InputError) as error:
            options(joint=joint, rank=1, features=features)
        assert str(error.value) == f"joint {joint!r} needs features {wanted}, got {features!r}"


def test_a_recurrent_head_needs_its_past() -> None:
    head = make(FORMS[3])
    with pytest.raises(ValueError, match="needs the past of every chain"):
        head.joint(torch.randn(1, HIDDEN_SIZE), torch.tensor([1]))
