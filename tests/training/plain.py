"""The losses said plainly, an anchor and a position at a time, and random anchors to say them of."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import kl_div

from polydraft.heads import DraftHead
from polydraft.joint import LatentMixture
from polydraft.joint.mixture import ALL, Rows
from polydraft.training.losses import Anchors
from polydraft.training.teacher import Teacher
from tests.tiny import HIDDEN_SIZE, tiny_head, tiny_model


def make_head(**form: Any) -> DraftHead:
    """A random head with a draft vocabulary of 24 of the 64 tokens."""
    return tiny_head(tiny_model(), draft_vocab_size=24, **form)


def make_anchors(head: DraftHead, *, count: int = 7, seed: int = 1, outside: float = 0.0) -> Anchors:
    """Random anchors with teacher rows of a random model; a share of the drafts lies outside V'."""
    config, generator = head.config, torch.Generator().manual_seed(seed)
    skip = config.positions - config.horizon
    targets = torch.randint(config.draft_vocab_size, (count, config.positions), generator=generator)
    targets[torch.rand(targets.shape, generator=generator) < outside] = -1
    next_tokens = torch.randint(config.vocab_size, (count,), generator=generator)
    if skip:  # the first target is x[t+1] itself
        known = targets[:, 0] >= 0
        outsiders = [v for v in range(config.vocab_size) if int(head.draft_index(torch.tensor(v))) < 0]
        next_tokens = torch.where(known, head.draft_ids[targets[:, 0].clamp(min=0)], outsiders[0])
    known = targets >= 0
    valid = torch.cat([known[:, :skip], known[:, skip:].cumprod(-1).bool()], -1)
    logits = torch.randn(count + 5, config.vocab_size, generator=generator)
    return Anchors(
        hidden=torch.randn(count, HIDDEN_SIZE, generator=generator),
        next_tokens=next_tokens,
        targets=targets,
        valid=valid,
        teacher=Teacher(logits.logsumexp(-1), logits=logits, draft_ids=head.draft_ids),
        teacher_index=torch.randint(count + 5, targets.shape, generator=generator),
    )


def whole_joint(head: DraftHead, anchors: Anchors) -> LatentMixture:
    """The joint over every modelled position, x[t+1] included for `hidden` features; no conditioning."""
    features = head.features(anchors.hidden, anchors.next_tokens)
    mapped, previous = head.maps(features), head.previous
    logits = torch.stack([head.logits(mapped[:, s], s) for s in range(head.config.positions)], dim=1)
    if previous is None:
        return LatentMixture(head.gate(features), logits)

    def bias(position: int, before: Tensor, rows: Rows = ALL) -> Tensor:
        shift = head.shift(previous.contexts(features)[rows, position], before)
        return head.logits(mapped[rows, position] + shift[:, None], position) - logits[rows, position]

    return LatentMixture(head.gate(features), logits, bias)


def reference(head: DraftHead, anchors: Anchors) -> tuple[Tensor, Tensor, Tensor]:
    """nll, kl and tv (S,), one anchor and one position at a time, through `joint.conditional`.

    kl by a library's formula, of the base model's row confined to the draft vocabulary, times its mass there;
    tv as half the sum of differences over all of the base model's tokens, most of which q cannot say.
    A position outside V' is unknown; only x[t+1] (position 0 of `hidden` features) can be such a gap
    before a target that counts.
    """
    assert anchors.teacher is not None and anchors.teacher_index is not None
    nll, kl, tv = ([torch.zeros(()) for _ in range(head.config.positions)] for _ in range(3))
    base = anchors.teacher.logits
    assert base is not None
    for i, line in enumerate(anchors.targets):
        own = slice(i, i + 1)
        one = whole_joint(
            head, anchors._replace(hidden=anchors.hidden[own], next_tokens=anchors.next_tokens[own])
        )
        for s in anchors.valid[i].nonzero().flatten().tolist():
            row = one.conditional(line[None, :s])[0]
            p = anchors.teacher.log_rows(anchors.teacher_index[own, s])[0].exp()
            nll[s] = nll[s] - row[line[s]]
            kl[s] = kl[s] + p.sum() * kl_div(row, (p / p.sum()).log(), log_target=True, reduction="sum")
            whole = torch.zeros(head.config.vocab_size).index_put((head.draft_ids,), row.exp())
            differences = base[anchors.teacher_index[i, s]].softmax(-1) - whole
            tv[s] = tv[s] + differences.abs().sum() / 2
    return torch.stack(nll), torch.stack(kl), torch.stack(tv)


def gradients(head: DraftHead, total: Tensor) -> dict[str, Tensor]:
    """Of every parameter; zeros where it has none."""
    found = torch.autograd.grad(total, list(head.parameters()), allow_unused=True)
    named = zip(head.named_parameters(), found, strict=True)
    return {name: torch.zeros_like(p) if g is None else g for (name, p), g in named}


def assert_close(found: Tensor, expected: Tensor) -> None:
    """Equal up to the rounding of float32."""
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5), (found - expected).abs().max()
