"""Tap the hidden state that feeds a causal model's unembedding."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from polydraft.errors import InputError


class HiddenTap:
    """Context manager; after a forward, `hidden` is what the output embedding was fed, (B, kept, d).

    A forward hook on the output embedding: it works on every model whose logits come from one, and
    sees just the rows that `logits_to_keep` kept.

    Raises:
        InputError: the model has no output embedding.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        output = model.get_output_embeddings()
        if output is None:
            raise InputError(f"{type(model).__name__} has no output embeddings: give a causal language model")
        self._output = output
        self._hidden: Tensor | None = None

    @property
    def hidden(self) -> Tensor:
        """The hidden states of the last forward."""
        if self._hidden is None:
            raise RuntimeError("no forward has run under this tap")
        return self._hidden

    def _keep(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._hidden = inputs[0]

    def __enter__(self) -> HiddenTap:
        self._handle = self._output.register_forward_pre_hook(self._keep)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._handle.remove()
        self._hidden = None
