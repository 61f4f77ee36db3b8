"""Drafts from a model with an adapter, verified by the same model without it."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from polydraft.adapters import AdapterSwitch, has_adapter
from polydraft.errors import InputError
from polydraft.heads import DraftHead
from polydraft.hidden import HiddenTap


def verify_with_base(model: PreTrainedModel, head: DraftHead) -> None:
    """Switch the adapter inside `model` off, but for the forward that `head` drafts from.

    From then on all that is generated, drafted or not, is the base model's.

    Args:
        head: trained with the adapter, and attached.

    Raises:
        InputError: the model has no adapter.
    """
    if not has_adapter(model):
        raise InputError(
            "verifier 'base' needs an adapter, which drafts: give that of the head with --adapter"
        )
    head.switch = AdapterSwitch(model)
    head.switch.set(on=False)


class AdaptedTrunk:
    """Hidden states of a text that grows, from a forward of the adapted model with a cache of its own.

    Every token it reads is one that stays, so nothing is rolled back.
    """

    def __init__(self, model: PreTrainedModel, head: DraftHead, switch: AdapterSwitch) -> None:
        self._model = cast(Any, model)
        self._head = head
        self._switch = switch
        self._cache = DynamicCache(config=model.config)
        self._keep = {"logits_to_keep": 1} if self._model._supports_logits_to_keep() else {}

    @torch.no_grad()
    def __call__(self, tokens: Tensor) -> Tensor:
        """States of the next k tokens (1, k), of all with features "block", else at least of the last."""
        with self._switch.on(), HiddenTap(self._model, **self._head.config.taps) as tap:
            self._model(input_ids=tokens, past_key_values=self._cache, use_cache=True, **self._keep)
            return tap.hidden
