"""What the gate of a head does over text: the weight of every component at every drafted position."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from transformers import PreTrainedModel

from polydraft.errors import InputError
from polydraft.heads import DraftHead
from polydraft.joint import Latent
from polydraft.training.anchors import build_anchors
from polydraft.training.data import Document, collate, windows
from polydraft.training.losses import Anchors, chunk_size


@dataclass(frozen=True, kw_only=True)
class TextSample:
    """Which positions of a text are looked at.

    Attributes:
        windows: at most, drawn at random. anchors_per_window: positions of them, on average at most, drawn
            at random; 0 is all.
        max_length: tokens of a window. batch_size: windows per forward. seed: of what is drawn.

    Raises:
        InputError: a number outside its range.
    """

    windows: int = 64
    anchors_per_window: int = 64
    max_length: int = 512
    batch_size: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("windows", 1), ("anchors_per_window", 0), ("max_length", 3), ("batch_size", 1)):
            if getattr(self, name) < least:
                raise InputError(f"{name} must be at least {least}, got {getattr(self, name)}")

    def draw(self, documents: Sequence[Document], *, most: int | None = None) -> list[Document]:
        """The windows, of like length side by side; `most`: tokens of them that the model has positions for.

        Raises:
            InputError: no document is long enough.
        """
        found = windows(documents, max_length=min(self.max_length, most or self.max_length))
        if not found:
            raise InputError("the data is too short: no document has three tokens to look at")
        chosen = random.Random(self.seed).sample(found, min(self.windows, len(found)))
        return sorted(chosen, key=lambda window: len(window.input_ids))


class Drafting:
    """What a head makes of a few anchors before any draft is known, component by component.

    Positions are 0-based among the n drafted ones. All r components are looked at, whatever the head
    evaluates when it drafts.

    Args:
        features: `Anchors.features`. part: which of them.
    """

    def __init__(self, head: DraftHead, anchors: Anchors, features: Tensor, part: slice) -> None:
        self.head = head
        self.features = features[part]
        self.targets = anchors.targets[part]
        self.sampled = head.draft_index(anchors.next_tokens[part])
        self.skip = head.config.positions - head.config.horizon

    @cached_property
    def mapped(self) -> Tensor:
        """z, (C, S, r, d)."""
        out: Tensor = self.head.maps(self.features)
        return out

    @cached_property
    def contexts(self) -> Tensor | None:
        """Return what members that see the token before read of it, (C, S, k); None for others."""
        return None if self.head.previous is None else self.head.previous.contexts(self.features)

    def log_weights(self) -> Tensor:
        """log P(z_s = a) of the drafted positions; (C, n, r).

        With features "hidden", given x[t+1]: it enters by the posterior.
        """
        latent: Latent = self.head.gate(self.features)
        if not self.skip:
            return latent.marginals()
        known = (self.sampled >= 0)[:, None]
        index = self.sampled.clamp(min=0)[:, None, None].expand(-1, latent.rank, 1)
        told = torch.where(known, self._log_factors(0).gather(-1, index).squeeze(-1), 0.0)
        state, out = latent.advance(latent.start(), 0, told), []
        for s in range(1, latent.horizon):
            out.append(latent.log_weights(state, s))
            if s + 1 < latent.horizon:
                state = latent.advance(state, s, torch.zeros_like(told))
        return torch.stack(out, dim=1)

    def log_factors(self, position: int) -> Tensor:
        """log P_a^(s)(v), the token before it taken from the text where rows see it; (C, r, V')."""
        return self._log_factors(position + self.skip)

    def _log_factors(self, s: int) -> Tensor:
        z = self.mapped[:, s]
        if self.contexts is not None and s > 0:
            z = z + self.head.shift(self.contexts[:, s], self.targets[:, s - 1])[:, None]
        out: Tensor = self.head.logits(z, s).log_softmax(-1)
        return out


@torch.no_grad()
def draftings(
    head: DraftHead, model: PreTrainedModel, drawn: Sequence[Document], sample: TextSample
) -> Iterator[Drafting]:
    """The anchors of `drawn`, windows that `sample` drew, a few at a time."""
    size = chunk_size(head.config)
    for i in range(0, len(drawn), sample.batch_size):
        batch = collate([vars(window) for window in drawn[i : i + sample.batch_size]])
        with torch.random.fork_rng():
            torch.manual_seed(sample.seed * 1_000_003 + i)
            anchors = build_anchors(
                head,
                model,
                {name: value.to(head.device) for name, value in batch.items()},
                teacher=False,
                most=sample.anchors_per_window,
            )
        features = anchors.features(head)
        for start in range(0, len(features), size):
            yield Drafting(head, anchors, features, slice(start, start + size))
