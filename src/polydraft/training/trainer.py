"""A thin layer on the transformers Trainer: the model it trains is the head, the base stays frozen."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler
from transformers import PreTrainedModel, Trainer, TrainingArguments
from transformers.trainer_pt_utils import get_length_grouped_indices

from polydraft.errors import PolydraftError
from polydraft.heads import DraftHead
from polydraft.training.anchors import build_anchors
from polydraft.training.data import Document, collate
from polydraft.training.losses import LossWeights, head_losses
from polydraft.training.validation import validate


class DocumentDataset(Dataset[dict[str, Any]]):
    """Documents as the Trainer wants them: dicts with `input_ids`."""

    def __init__(self, documents: list[Document]) -> None:
        self.rows = [vars(d) for d in documents]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index]


class EpochOrder(Sampler[int]):
    """Documents of like length together, in an order that the seed and the epoch fix.

    The Trainer's own sampler draws from torch's global generator, whose state at the start of an epoch
    a resumed run cannot know.

    Args:
        lengths: of the documents, in tokens. batch_size: documents per optimiser step.
        epoch: tells the current epoch, from 0.
    """

    def __init__(
        self, lengths: Sequence[int], *, batch_size: int, seed: int, epoch: Callable[[], int]
    ) -> None:
        self.lengths = list(lengths)
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch())
        yield from get_length_grouped_indices(self.lengths, self.batch_size, generator=generator)


class DraftTrainer(Trainer):
    """Trains an attached `DraftHead`; checkpoints are head folders and hold no base weights.

    The loss is a sum over anchors divided by the labelled tokens of the whole optimiser step, so
    gradient accumulation is exact, but for the balancing term: it is taken over a micro-batch.

    Args:
        model: the base model, frozen. head: attached to it.
        training, held_out: documents. weights: terms of the loss. arguments: of the Trainer.
        anchors_per_window: positions learnt from per window, on average, drawn at random; 0 is all.
    """

    def __init__(
        self,
        *,
        model: PreTrainedModel,
        head: DraftHead,
        training: list[Document],
        held_out: list[Document],
        weights: LossWeights,
        anchors_per_window: int = 0,
        arguments: TrainingArguments,
    ) -> None:
        super().__init__(
            model=head,
            args=arguments,
            data_collator=collate,
            train_dataset=DocumentDataset(training),
            eval_dataset=DocumentDataset(held_out),
        )
        self.base = model.requires_grad_(False).eval()
        self.head = head
        self.weights = weights
        self.anchors_per_window = anchors_per_window
        self.lengths = [len(d.input_ids) for d in training]
        self.held_out = held_out
        self.model_accepts_loss_kwargs = True
        self._reset_window()

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        return EpochOrder(
            self.lengths,
            batch_size=self.args.train_batch_size * self.args.gradient_accumulation_steps,
            seed=self.args.seed,
            epoch=lambda: int(self.state.epoch or 0),
        )

    def _reset_window(self) -> None:
        self._window_start = time.perf_counter()
        self._window_anchors = 0
        self._load: Tensor | None = None

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """The weighted loss of one micro-batch.

        Raises:
            PolydraftError: the loss is not finite; names the step.
        """
        anchors = build_anchors(
            self.head, self.base, inputs, teacher=self.weights.kl > 0, most=self.anchors_per_window
        )
        losses = head_losses(self.head, anchors, self.weights)
        if not bool(losses.total.isfinite()):
            raise PolydraftError(
                f"the loss became {losses.total.item()} at step {self.state.global_step + 1}: "
                "start again in another --out with a lower --learning-rate"
            )
        self._window_anchors += len(anchors.hidden)
        self._load = losses.load
        items = num_items_in_batch if num_items_in_batch is not None else (inputs["labels"] != -100).sum()
        return losses.total / items

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds positions per second and the component load to the Trainer's own figures."""
        if "loss" in logs and self._window_anchors:
            logs["positions_per_second"] = self._window_anchors / (time.perf_counter() - self._window_start)
            if self._load is not None:
                logs |= {f"load_{a + 1}": round(float(x), 4) for a, x in enumerate(self._load)}
            self._reset_window()
        super().log(logs, start_time)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Held-out figures of `validate`, under `eval_` names."""
        began = time.perf_counter()
        self.head.train(mode=False)
        found = validate(
            self.head,
            self.base,
            self.held_out,
            batch_size=self.args.per_device_eval_batch_size,
            anchors_per_window=self.anchors_per_window,
        )
        self.head.train()
        figures = {f"{metric_key_prefix}_{name}": value for name, value in found.items()}
        self.log(figures)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, figures)
        self._window_start += time.perf_counter() - began
        return figures

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Not counted."""
        return 0

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        assert output_dir is not None
        self.head.save_pretrained(output_dir, state_dict=state_dict)
        torch.save(self.args, f"{output_dir}/training_args.bin")
