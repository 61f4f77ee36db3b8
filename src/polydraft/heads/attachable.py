"""What a head borrows of its base model, embedding and unembedding: they are never copied or saved."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from polydraft.errors import InputError, PolydraftError
from polydraft.heads.config import DraftConfig
from polydraft.heads.fingerprint import check_base, unembedding


class Attachable(PreTrainedModel):
    """A model that reads the embedding and the unembedding of another one, once they are lent to it.

    Buffer `draft_ids` (V',) holds the base token id of every draft token, -1 until it is filled.
    """

    config: DraftConfig
    draft_ids: Tensor

    def __init__(self, config: DraftConfig) -> None:
        super().__init__(config)
        self.register_buffer("draft_ids", torch.full((config.draft_vocab_size,), -1, dtype=torch.long))
        self._base: list[PreTrainedModel] = []  # a list, so that the base is no submodule of the head
        self._rows: Tensor | None = None
        self._index: Tensor | None = None

    def attach(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None = None) -> Self:
        """Lend the base model's embedding and unembedding to this head; moves it to their device.

        Args:
            model: the base model. tokenizer: checked too when given.

        Raises:
            InputError: this is not the model the head was trained for.
            PolydraftError: `draft_ids` are not set yet.
        """
        if self.config.base_model is not None:
            check_base(self.config.base_model, model, tokenizer)
        weight = unembedding(model)
        if weight.shape != (self.config.vocab_size, self.config.hidden_size):
            raise InputError(
                f"this head needs an unembedding of {self.config.vocab_size} x {self.config.hidden_size}, "
                f"{type(model).__name__} has {weight.shape[0]} x {weight.shape[1]}: give its own base model"
            )
        if bool((self.draft_ids < 0).any()):
            raise PolydraftError("the head has no draft vocabulary: fill head.draft_ids before head.attach")
        nn.Module.to(self, weight.device)
        self._base = [model]
        self.refresh()
        self._index = torch.full((self.config.vocab_size,), -1, dtype=torch.long, device=weight.device)
        self._index[self.draft_ids] = torch.arange(len(self.draft_ids), device=weight.device)
        return self

    def refresh(self) -> None:
        """Take U' anew from the attached model: its unembedding has been trained."""
        self._rows = unembedding(self._base[0]).detach()[self.draft_ids].contiguous()

    @property
    def is_attached(self) -> bool:
        """Whether `attach` has lent a base model's matrices to this head."""
        return bool(self._base)

    def is_attached_to(self, model: PreTrainedModel) -> bool:
        """Whether `model` itself is the one attached."""
        return self.is_attached and self._base[0] is model

    @property
    def rows(self) -> Tensor:
        """U' (V', d), the base model's unembedding of the draft vocabulary."""
        if self._rows is None:
            raise PolydraftError("the head has no base model yet: call head.attach(model) first")
        return self._rows

    def draft_index(self, tokens: Tensor) -> Tensor:
        """Index in the draft vocabulary of base token ids, -1 outside it; any shape."""
        _ = self.rows
        assert self._index is not None
        return self._index[tokens]

    def embed(self, tokens: Tensor) -> Tensor:
        """The base model's input embedding of `tokens`; (...) -> (..., d), in the head's dtype."""
        _ = self.rows
        out: Tensor = self._base[0].get_input_embeddings()(tokens)
        return out.to(self.dtype)

    def told(self, tokens: Tensor) -> Tensor:
        """Embeddings of draft indices (B,), zero for -1; (B, d)."""
        return torch.where((tokens >= 0)[:, None], self.embed(self.draft_ids[tokens.clamp(min=0)]), 0.0)
