"""Seconds of a training step of a head on given hidden states, and of the trunk's forward that gives them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lab.overhead.cycle import now
from polydraft.heads import DraftHead
from polydraft.training.anchors import build_anchors
from polydraft.training.losses import Anchors, head_losses
from polydraft.training.weights import LOSSES

LOSS = "distill"
"""The preset that heads are trained with."""


def training_batch(*, positions: int, tokens: int, device: torch.device) -> dict[str, Tensor]:
    """One row with `positions` places to learn from, of the first `tokens` tokens, which can be drafted."""
    ids = torch.arange(positions + 2, device=device)[None] * 7919 % tokens
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}


def trunk_forward(model: PreTrainedModel, head: DraftHead, batch: dict[str, Tensor]) -> tuple[float, Anchors]:
    """Seconds of what a step asks of the frozen trunk: hidden states, and rows to distil from."""
    began = now(model.device)
    anchors = build_anchors(head, model, batch, teacher=LOSSES[LOSS].needs_teacher)
    return now(model.device) - began, anchors


@dataclass
class Step:
    """A head under training: its parameters in float32, AdamW, and hidden states that stay.

    Attributes:
        head: attached. anchors: all positions of the batch.
    """

    head: DraftHead
    anchors: Anchors

    def __post_init__(self) -> None:
        self._optimizer = torch.optim.AdamW(self.head.parameters(), lr=1e-5)

    @torch.enable_grad()
    def __call__(self) -> dict[str, float]:
        """One step: seconds of loss and gradients ("loss"), of AdamW ("optimizer"), of both ("step").

        Afterwards no gradients are held, as between steps of the trainer.
        """
        device = self.head.device
        began = now(device)
        head_losses(self.head, self.anchors, LOSSES[LOSS]).total.backward()
        middle = now(device)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        end = now(device)
        return {"loss": middle - began, "optimizer": end - middle, "step": end - began}
