"""Tap the hidden states of a causal model that a draft head reads."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from polydraft.errors import InputError


class HiddenTap:
    """Context manager; after a forward, `hidden` is what the output embedding was fed, (B, kept, d).

    A forward hook on the output embedding: it works on every model whose logits come from one, and
    sees just the rows that `logits_to_keep` kept. With `every` or `layers`, hooks on the decoder and its
    layers: all T rows, whatever `logits_to_keep` says, and (1 + len(layers)) d columns, the final state
    first, then the output of each layer. Then a forward of the decoder alone is enough.

    Only forwards of the thread that entered it count: others may run the same model meanwhile.

    Args:
        layers: 1-based, counted from the embedding: k is what the k-th layer gives.
        every: all rows, even without layers.

    Attributes:
        every: whether all rows are kept.

    Raises:
        InputError: the model has no output embedding, or fewer layers; after a forward, layers whose
            states have another shape than the last one.
        RuntimeError: after a forward, if the decoder's last state is not what the output embedding was fed.
    """

    def __init__(self, model: PreTrainedModel, *, layers: Sequence[int] = (), every: bool = False) -> None:
        output = model.get_output_embeddings()
        if output is None:
            raise InputError(f"{type(model).__name__} has no output embeddings: give a causal language model")
        self._output = output
        self._hidden: Tensor | None = None
        self._last: Tensor | None = None
        self.every = every or bool(layers)
        self._decoder = model.get_decoder() if self.every else None
        found = decoder_layers(model, upto=max(layers)) if layers else []
        self._layers = [found[k - 1] for k in layers]
        self._states: list[Tensor] = []
        self._thread = threading.get_ident()

    @property
    def hidden(self) -> Tensor:
        """The hidden states of the last forward."""
        if self._last is None:
            if self._hidden is None:
                raise RuntimeError("no forward has run under this tap")
            return self._hidden
        if self._hidden is not None and not torch.equal(self._last[:, -1], self._hidden[:, -1]):
            raise RuntimeError(
                "the decoder's last state is not what the output embedding is fed: "
                "use a head with features 'hidden' or 'fused' and no further layers"
            )
        if any(states.shape != self._last.shape for states in self._states):
            raise InputError(
                "the layers of this model give states of another shape: use a head without further layers"
            )
        return torch.cat([self._last, *self._states], -1) if self._states else self._last

    @property
    def _asked(self) -> bool:
        return threading.get_ident() == self._thread

    def _keep(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if self._asked:
            self._hidden = inputs[0]

    def _begin(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if self._asked:
            self._states = []

    def _keep_layer(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if self._asked:
            self._states.append(output if isinstance(output, Tensor) else output[0])

    def _keep_last(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if self._asked:
            self._last = output[0]

    def __enter__(self) -> HiddenTap:
        self._thread = threading.get_ident()
        self._handles = [self._output.register_forward_pre_hook(self._keep)]
        if self._decoder is not None:
            self._handles.append(self._decoder.register_forward_pre_hook(self._begin))
            self._handles += [layer.register_forward_hook(self._keep_layer) for layer in self._layers]
            self._handles.append(self._decoder.register_forward_hook(self._keep_last))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._hidden = self._last = None
        self._states = []


def decoder_layers(model: PreTrainedModel, *, upto: int) -> list[nn.Module]:
    """The layers of the model's decoder, in order.

    Raises:
        InputError: it has no list of them, or fewer than `upto`.
    """
    count = model.config.get_text_config().num_hidden_layers
    for module in model.get_decoder().modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            if upto > count:
                raise InputError(f"{type(model).__name__} has {count} layers, not {upto}: name layers it has")
            return list(module)
    raise InputError(f"{type(model).__name__} keeps its layers in no list: leave layers out")
