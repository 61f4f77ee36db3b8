"""A thin layer on the transformers Trainer, which trains an `Objective`: on one process or many."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.utils.data import Sampler
from transformers import Trainer, TrainingArguments

from polydraft.heads import DraftHead
from polydraft.training import distributed, guards
from polydraft.training.data import Document
from polydraft.training.objective import Objective, Output
from polydraft.training.order import DocumentDataset, micro_batch_seed
from polydraft.training.validation import validate


class DraftTrainer(Trainer):
    """Trains an `Objective`; checkpoints are head folders and hold no frozen weights.

    The loss is a sum over anchors divided by the labelled tokens of the whole optimiser step, of all
    micro-batches on all processes. So two processes or two micro-batches learn what one larger batch does,
    but for the balancing term, which is that of each micro-batch, and for what is drawn at random.

    Args:
        training: what to train on, and in which order. held_out: documents. arguments: of the Trainer.
    """

    objective: Objective

    def __init__(
        self,
        *,
        objective: Objective,
        training: DocumentDataset,
        held_out: Sequence[Document],
        arguments: TrainingArguments,
    ) -> None:
        self.objective = objective
        self.held_out = held_out
        self.training = training
        super().__init__(
            model=objective,
            args=arguments,
            data_collator=training.collate,
            train_dataset=training,
            eval_dataset=DocumentDataset(held_out),
        )
        self.model_accepts_loss_kwargs = True
        self._micro_batch = (-1, 0)
        self._reset_window()

    def create_accelerator_and_postprocess(self) -> None:
        """Let FSDP run on CPUs too, where accelerate knows DDP alone."""
        super().create_accelerator_and_postprocess()
        settings = self.args.fsdp_plugin_args
        if settings is not None and not self.is_fsdp_enabled:
            self.accelerator.state.distributed_type = DistributedType.FSDP
            self.accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(**settings)
            self.is_fsdp_enabled = True

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The Trainer's own, with the trunk's parameters at their own learning rate."""
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        if self.objective.trunk is not None:
            own = {id(p) for p in self.objective.trunk.trained()}
            for group in list(optimizer.param_groups):
                trunk = [p for p in group["params"] if id(p) in own]
                group["params"] = [p for p in group["params"] if id(p) not in own]
                rate = self.objective.trunk.learning_rate
                optimizer.add_param_group({**group, "params": trunk, "lr": rate})
        return optimizer

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        micro_batches = self.args.gradient_accumulation_steps * self.args.world_size
        return self.training.order(
            batch_size=self.args.train_batch_size * micro_batches,
            seed=self.args.seed,
            epoch=lambda: int(self.state.epoch or 0),
        )

    # -- the loss ---------------------------------------------------------------------------------

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """What one micro-batch adds to the loss of its step, times the number of processes.

        Gradients of the processes are averaged, hence the factor. Random draws are those of this
        micro-batch, whatever ran before it.

        Args:
            num_items_in_batch: labelled tokens of the whole step, of all processes.

        Raises:
            PolydraftError: the loss is not finite on some process; names the step and the terms.
        """
        with self._seeded(inputs["input_ids"].device):
            out: Output = model(inputs)
        guards.check_loss(out.loss, out.terms, **self._where())
        self._note(out)
        items = num_items_in_batch if num_items_in_batch is not None else (inputs["labels"] != -100).sum()
        loss: Tensor = out.loss * self.args.world_size / items
        return loss

    def training_step(
        self, model: nn.Module, inputs: dict[str, Tensor], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Forward and backward of one micro-batch.

        Raises:
            PolydraftError: the loss or, at the last micro-batch of a step, a gradient is not finite. A
                float16 scaler skips such steps by itself.
        """
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        if self.accelerator.sync_gradients and self.accelerator.scaler is None:
            guards.check_gradients(model, **self._where())
        return loss

    def _where(self) -> dict[str, Any]:
        """The step under way, and where checkpoints lie, for what stops the run."""
        return {"step": self.state.global_step + 1, "checkpoints": Path(str(self.args.output_dir))}

    @contextmanager
    def _seeded(self, device: torch.device) -> Iterator[None]:
        """Random draws that the seed, the step, the micro-batch and the process fix."""
        step, number = self._micro_batch
        number = number + 1 if step == self.state.global_step else 0
        step = self.state.global_step
        self._micro_batch = (step, number)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(micro_batch_seed(self.args.seed, step, number, self.args.process_index))
            yield

    # -- figures ----------------------------------------------------------------------------------

    def _reset_window(self) -> None:
        self._window_start = time.perf_counter()
        self._sums: dict[str, Tensor] = {}
        self._gates: Tensor | None = None

    def _note(self, out: Output) -> None:
        """Add up the figures of a micro-batch until they are logged."""
        anchors = torch.tensor(float(out.anchors), device=out.loss.device)
        for name, value in {"anchors": anchors, **out.terms}.items():
            self._sums[name] = self._sums.get(name, torch.zeros_like(anchors)) + value.detach().float()
        gates = torch.stack([out.load, out.likeliest]).detach() * anchors
        self._gates = gates if self._gates is None else self._gates + gates

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the terms per anchor, positions per second (of all processes) and the component load."""
        if "loss" in logs and self._gates is not None:
            names = list(self._sums)
            sums = distributed.total(torch.stack([self._sums[name] for name in names])).tolist()
            found = dict(zip(names, sums, strict=True))
            anchors = found.pop("anchors")
            logs |= {f"loss_{name}": round(value / max(anchors, 1.0), 4) for name, value in found.items()}
            logs["positions_per_second"] = anchors / (time.perf_counter() - self._window_start)
            load, likeliest = distributed.total(self._gates) / max(anchors, 1.0)
            logs |= guards.gate_figures(load, likeliest, rows=anchors)
            self._reset_window()
        super().log(logs, start_time)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Held-out figures of `validate`, under `eval_` names; every process computes them."""
        began = time.perf_counter()
        objective = self.objective
        objective.eval()
        with self._whole():
            found = validate(
                objective.head,
                objective.base,
                self.held_out,
                batch_size=self.args.per_device_eval_batch_size,
                trunk=objective.trunk,
                on_progress=self._validated,
            )
            if objective.trunk is not None:
                found["base_loss"] = objective.trunk.own_loss()
        objective.train()
        figures = {f"{metric_key_prefix}_{name}": value for name, value in found.items()}
        self.log(figures)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, figures)
        self._window_start += time.perf_counter() - began
        return figures

    def _validated(self, done: int, total: int) -> None:
        """Tell callbacks how far the held-out figures are."""
        self.callback_handler.call_event(
            "on_prediction_step", self.args, self.state, self.control, done=done, total=total
        )

    @contextmanager
    def _whole(self) -> Iterator[None]:
        """All parameters in full on every process, where they are sharded."""
        shards = [module for module in self.objective.modules() if isinstance(module, FSDPModule)]
        for module in shards:
            module.unshard()
        yield
        for module in shards:
            module.reshard()

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Not counted."""
        return 0

    # -- checkpoints ------------------------------------------------------------------------------

    def _whole_state(self, module: nn.Module) -> dict[str, Tensor]:
        """Parameters and buffers in full; `state_dict` of a sharded module would shard them again."""
        if not self.is_fsdp_enabled:
            return module.state_dict()
        with self._whole():
            found = [*module.named_parameters(), *module.named_buffers()]
            return {name: value.detach().clone() for name, value in found}

    def whole_head(self) -> DraftHead:
        """The head; where it is sharded a whole copy of it, on every process."""
        own = self.objective.head
        if not self.is_fsdp_enabled:
            return own
        head = DraftHead(own.config)
        head.load_state_dict(self._whole_state(own))
        return head.attach(self.objective.base)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write a head folder; all processes take part, the first one writes."""
        folder = Path(output_dir or str(self.args.output_dir))
        state = self._whole_state(self.objective)
        if self.args.should_save:
            self.objective.save(folder, state)
            torch.save(self.args, folder / "training_args.bin")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Nothing: `Objective.load` has done it, before the objective was wrapped."""

    def _save_rng_state(self, output_dir: str) -> None:
        """The last of what all processes write; what the first one writes next says that all is there."""
        super()._save_rng_state(output_dir)
        distributed.wait()
