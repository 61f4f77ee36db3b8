"""What the Trainer trains: a module whose forward is the loss, so that DDP and FSDP see all of it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from polydraft.files import saving
from polydraft.heads import DraftHead
from polydraft.training.anchors import build_anchors
from polydraft.training.losses import Anchors, head_losses
from polydraft.training.trunk import Trunk
from polydraft.training.weights import LossWeights

HEAD = "head."
"""Prefix of the head's parameters in the objective's state."""
TERMS = ("nll", "kl", "tv", "balance", "z_loss")
"""Terms of the loss that `Losses` has sums of and `LossWeights` has weights for."""


class Output(NamedTuple):
    """The loss of one micro-batch on one process.

    Attributes:
        loss: scalar, a sum over anchors, differentiable. anchors: how many it was computed from.
        load: (r,) mean gate weight of each component. likeliest: (r,) share of anchors where it is largest.
        terms: sums over anchors and positions of the terms that have a weight, by their names; and "lm", a
            trained trunk's own next-token loss with its weight.
    """

    loss: Tensor
    anchors: int
    load: Tensor
    likeliest: Tensor
    terms: dict[str, Tensor]


class Objective(nn.Module):
    """A head and the loss it is trained on.

    Args:
        head: attached to `model`. model: the base model; no submodule while it is frozen, so that it is
            neither trained, sharded nor saved. weights: terms of the loss.
        anchors_per_window: positions learnt from per window, on average, drawn at random; 0 is all.
        trunk: trains the base model too; a submodule. None leaves the base model frozen.
    """

    def __init__(
        self,
        head: DraftHead,
        model: PreTrainedModel,
        *,
        weights: LossWeights,
        anchors_per_window: int = 0,
        trunk: Trunk | None = None,
    ) -> None:
        super().__init__()
        self.head = head
        self.trunk = trunk
        self._base = [model if trunk is not None else model.requires_grad_(False).eval()]
        self.weights = weights
        self.anchors_per_window = anchors_per_window

    @property
    def base(self) -> PreTrainedModel:
        """The base model."""
        return self._base[0]

    def forward(self, batch: dict[str, Tensor]) -> Output:
        """The loss of a batch as `data.collate` makes it."""
        if self.trunk is None:
            with torch.autocast(batch["input_ids"].device.type, enabled=False):  # the base in its own dtype
                anchors = self._anchors(batch)
            own = None
        else:
            states = self.trunk(self.head, batch)
            anchors = self._anchors(batch | {"hidden": states.hidden, "logits": states.teacher})
            own = self.trunk.loss(states, batch)
        losses = head_losses(self.head, anchors, self.weights)
        loss = losses.total if len(anchors.hidden) else self._nothing()
        sums = losses._asdict()
        terms = {name: sums[name].sum() for name in TERMS if getattr(self.weights, name) > 0}
        if own is not None:
            loss, terms["lm"] = loss + own, own.detach()
        return Output(loss, len(anchors.hidden), losses.load, losses.likeliest, terms)

    def _anchors(self, batch: dict[str, Tensor]) -> Anchors:
        teacher = self.weights.needs_teacher
        return build_anchors(self.head, self.base, batch, teacher=teacher, most=self.anchors_per_window)

    def _nothing(self) -> Tensor:
        """Zero, with a gradient of zero for every parameter: other processes wait for each of them."""
        return torch.stack([p.sum() * 0.0 for p in self.parameters() if p.requires_grad]).sum()

    # -- checkpoints ------------------------------------------------------------------------------

    def save(self, folder: str | Path, state: dict[str, Tensor]) -> None:
        """Write a checkpoint, a head folder.

        Args:
            state: of the whole objective, gathered where it is sharded.
        """
        own = {name.removeprefix(HEAD): value for name, value in state.items() if name.startswith(HEAD)}
        with saving(Path(folder)):
            self.head.save_pretrained(folder, state_dict=own)
            if self.trunk is not None:
                self.trunk.save(Path(folder))

    @torch.no_grad()
    def load(self, folder: str | Path) -> None:
        """Read back what `save` wrote; before the objective is wrapped or sharded."""
        self.head.load_state_dict(DraftHead.from_pretrained(folder, dtype=self.head.dtype).state_dict())
        if self.trunk is not None:
            self.trunk.load(Path(folder))
