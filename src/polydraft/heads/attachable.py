"""What a head borrows of its base model, embedding and unembedding: they are never copied or saved."""

from __future__ import annotations

from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from polydraft.errors import InputError, PolydraftError
from polydraft.heads.config import DraftConfig
from polydraft.heads.fingerprint import check_base, unembedding


def check_draft_ids(ids: Tensor, *, size: int, vocab_size: int) -> None:
    """Refuse a draft vocabulary that is none: verification is exact for different tokens of the model alone.

    Args:
        ids: should be (`size`,) int64, each of 0 to `vocab_size` - 1 at most once.

    Raises:
        InputError: says what is wrong with them.
    """
    if ids.dtype != torch.long or ids.shape != (size,):
        raise InputError(
            f"draft_ids must be {size} token ids of int64, got shape {tuple(ids.shape)} of {ids.dtype}"
        )
    outside = ids[(ids < 0) | (ids >= vocab_size)]
    if len(outside):
        raise InputError(
            f"draft_ids must be token ids from 0 to {vocab_size - 1}, got {int(outside[0])}: the head is "
            "damaged, get or train it again"
        )
    ordered = ids.sort().values
    repeated = ordered[1:][ordered[1:] == ordered[:-1]]
    if len(repeated):
        raise InputError(
            f"draft_ids must be different tokens, got {int(repeated[0])} more than once: the head is "
            "damaged, get or train it again"
        )


class Attachable(PreTrainedModel):
    """A model that reads the embedding and the unembedding of another one, once they are given to it.

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

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *model_args: Any, **kwargs: Any) -> Any:
        """Load as `PreTrainedModel` does, but refuse a folder that lacks a weight instead of making it up.

        Raises:
            InputError: weights are missing or of another shape, or the draft vocabulary is none.
        """
        source, with_info = pretrained_model_name_or_path, kwargs.pop("output_loading_info", False)
        kwargs |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
        loaded: Any = super().from_pretrained(source, *model_args, **kwargs)
        head, info = cast(tuple[Self, dict[str, Any]], loaded)
        wrong = sorted({*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])})
        if wrong:
            raise InputError(
                f"the head {str(source)!r} is damaged: {wrong[0]} is missing or has another shape"
            )
        if not head.is_unfilled:
            head.check_draft_ids()
        return (head, info) if with_info else head

    @property
    def is_unfilled(self) -> bool:
        """Whether no draft vocabulary has been set yet."""
        return bool((self.draft_ids == -1).all())

    def check_draft_ids(self) -> None:
        """Refuse a draft vocabulary that does not fit the configuration; see `check_draft_ids`."""
        config = self.config
        check_draft_ids(self.draft_ids, size=config.draft_vocab_size, vocab_size=config.vocab_size)

    def attach(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None = None) -> Self:
        """Lend the base model's embedding and unembedding to this head; moves it to their device.

        Args:
            model: the base model. tokenizer: checked too when given.

        Raises:
            InputError: this is not the model the head was trained for, or `draft_ids` are no vocabulary.
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
        if self.is_unfilled:
            raise PolydraftError("the head has no draft vocabulary: fill head.draft_ids before head.attach")
        self.check_draft_ids()
        nn.Module.to(self, weight.device)
        self._base = [model]
        self.refresh()
        self._index = torch.full((self.config.vocab_size,), -1, dtype=torch.long, device=weight.device)
        self._index[self.draft_ids] = torch.arange(len(self.draft_ids), device=weight.device)
        return self

    def refresh(self) -> None:
        """Take U' again from the attached model: its unembedding has been trained."""
        self._rows = unembedding(self._base[0]).detach()[self.draft_ids].contiguous()

    @property
    def is_attached(self) -> bool:
        """Whether `attach` has given a base model's matrices to this head."""
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
