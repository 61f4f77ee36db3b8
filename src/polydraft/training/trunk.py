"""How the base model takes part in training: frozen, with a LoRA adapter, whole, or from scratch.

A trained trunk learns from the head's loss, through the hidden states it is fed, and from its own next-token
loss, so that what verifies stays a language model:

    loss = head loss + lm_weight * sum_t -log p(x[t+1] | x_<=t)

U', the rows of the unembedding that the head shares, are constants in the head's loss: the unembedding
learns from the next-token loss alone, and `refresh` hands its new rows to the head. The rows p that the
head is taught with are constants too: the trunk is not pulled towards its own draft.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from polydraft.adapters import AdapterSwitch, add_adapter, read_adapter, trained_parameters
from polydraft.errors import InputError
from polydraft.files import write_folder
from polydraft.heads import DraftHead
from polydraft.sources import ADAPTER
from polydraft.training.anchors import run_trunk
from polydraft.training.data import Document
from polydraft.training.language import language_loss, next_token_loss
from polydraft.training.options import TrainOptions

MODEL = "model"
"""Folder of a trained base model, below that of its head."""
LEARNING_RATES = {"lora": 2e-4, "full": 2e-5, "scratch": 1e-3}
"""The base model's learning rate by mode, unless one is given."""


def make_trunk(
    model: PreTrainedModel, options: TrainOptions, *, held_out: Sequence[Document]
) -> Trunk | None:
    """The trunk that `options` asks for; None where it stays frozen."""
    return None if options.trunk == "frozen" else Trunk(model, options, held_out=held_out)


def check_trunk(options: TrainOptions, *, cached: bool, online: bool) -> None:
    """What a trained trunk rules out.

    Raises:
        InputError: hidden states from a cache, text that it writes meanwhile, or shards.
    """
    if options.trunk == "frozen":
        return
    if cached:
        raise InputError(
            f"--cache-hidden needs --trunk frozen: {options.trunk!r} changes the hidden states at every step"
        )
    if online:
        raise InputError(
            f"--online needs --trunk frozen: {options.trunk!r} would learn from its own text: collect it"
        )
    if options.fsdp:
        raise InputError(
            f"--fsdp needs --trunk frozen: {options.trunk!r} runs on several processes without it"
        )


class States(NamedTuple):
    """What a trained trunk gives for a batch of T tokens a row.

    Attributes:
        hidden: (B, T, D) and logits: (B, T, V), with gradients where they are enabled.
        teacher: (B, T, V) logits of the model that verifies, without.
    """

    hidden: Tensor
    logits: Tensor
    teacher: Tensor


class Trunk(nn.Module):
    """A base model that is trained; its parameters that want a gradient are those of `options.trunk`.

    Weights of `full` and `scratch` are float32 until `settle`, those of an adapter too; what an adapter
    leaves alone stays as it is.

    Args:
        model: changed in place. options: `trunk` names the kind, and is not "frozen".
        held_out: text that tells what the training did to the model's own loss.

    Raises:
        InputError: `lora` without PEFT, or for layers that the model does not have.
    """

    def __init__(
        self, model: PreTrainedModel, options: TrainOptions, *, held_out: Sequence[Document]
    ) -> None:
        super().__init__()
        self.held_out, self.batch_size = held_out, options.batch_size
        self.before = language_loss(model, held_out, batch_size=options.batch_size)
        self.kind, self.lm_weight = options.trunk, options.lm_weight
        self.dtype = model.dtype
        self.learning_rate = options.trunk_learning_rate or LEARNING_RATES[self.kind]
        if self.kind == "lora":
            alpha = options.lora_alpha or 2.0 * options.lora_rank
            add_adapter(model, rank=options.lora_rank, alpha=alpha, targets=options.lora_targets)
        else:
            cast(Any, model).to(torch.float32).requires_grad_(True)
        self.model = model
        self._base = AdapterSwitch(model) if options.verifier == "base" else None

    def forward(self, head: DraftHead, batch: dict[str, Tensor]) -> States:
        """One forward of the trunk over a batch, and one of the base model where that verifies."""
        head.refresh()
        hidden, logits = run_trunk(head, self.model, batch)
        if self._base is None:
            return States(hidden, logits, logits.detach())
        with self._base.off(), torch.no_grad():
            return States(hidden, logits, run_trunk(head, self.model, batch)[1])

    @torch.no_grad()
    def extend(self, head: DraftHead, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The batch with states, as `build_anchors` takes them; without the trunk's own loss."""
        states = self(head, batch)
        return batch | {"hidden": states.hidden, "logits": states.teacher}

    def loss(self, states: States, batch: dict[str, Tensor]) -> Tensor:
        """The trunk's own next-token loss, weighted, summed over the labelled tokens; scalar."""
        if self.lm_weight == 0:
            return states.logits.new_zeros((), dtype=torch.float32)
        return self.lm_weight * next_token_loss(states.logits, batch["labels"])

    def trained(self) -> list[nn.Parameter]:
        """The parameters that are trained."""
        return trained_parameters(self.model)

    # -- folders ----------------------------------------------------------------------------------

    @property
    def folder(self) -> str:
        """Name of the folder that holds what is trained."""
        return ADAPTER if self.kind == "lora" else MODEL

    def save(self, folder: Path) -> None:
        """Write what is trained below `folder`, as transformers and PEFT read it."""
        self._write(folder / self.folder)

    def _write(self, folder: Path) -> None:
        with warnings.catch_warnings():  # PEFT looks for the base model on a hub, to compare vocabularies
            warnings.filterwarnings("ignore", message="Could not find a config file", category=UserWarning)
            self.model.save_pretrained(folder)

    @torch.no_grad()
    def load(self, folder: Path) -> None:
        """Read back what `save` wrote, in place, without a change of dtype."""
        path = folder / self.folder
        if self.kind == "lora":
            read_adapter(self.model, path)
            return
        saved = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        self.model.load_state_dict(saved.state_dict())

    def settle(self) -> None:
        """End training: weights in the dtype that the model came in, frozen, in eval mode."""
        for parameter in self.trained():
            parameter.data = parameter.data.to(self.dtype)
        self.model.requires_grad_(False).eval()

    def own_loss(self) -> float:
        """Held-out nats per token of the model as it is now."""
        return language_loss(self.model, self.held_out, batch_size=self.batch_size)

    def publish(self, out: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        """Write the model with its tokenizer, or the adapter, into `out`, whole or not at all."""
        with write_folder(out / self.folder) as partial:
            self._write(partial)
            if self.kind != "lora":
                tokenizer.save_pretrained(partial)
        if self.kind != "lora":
            self.model.config.name_or_path = self.model.name_or_path = str(out / self.folder)
