"""What a forward of the base model takes and does, whoever runs it."""

from __future__ import annotations

import inspect
import threading
from weakref import WeakKeyDictionary

from torch import nn
from transformers import PreTrainedModel

EXTRAS = ("output_attentions", "output_hidden_states", "output_router_logits")
"""Flags of a model's configuration that make every forward compute and return more than logits."""

_locks: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()
_locks_of_all = threading.Lock()


def lean(model: PreTrainedModel) -> dict[str, bool]:
    """Arguments of a forward that switch off what the configuration of `model` adds to the logits.

    The auxiliary loss of a mixture of experts, for one, takes no masks of trees and ragged rows.
    """
    configs = (model.config, model.config.get_text_config(decoder=True))
    return {name: False for name in EXTRAS if any(getattr(config, name, False) for config in configs)}


def arguments(model: PreTrainedModel) -> frozenset[str]:
    """What the forward of `model` takes by name."""
    return frozenset(inspect.signature(type(model).forward).parameters)


def turn(model: PreTrainedModel) -> threading.RLock:
    """The lock of `model`: held for a forward, and for as long as the model itself is changed.

    Threads that decode with one model take turns at its forwards. While its layers are compiled, or an
    adapter is switched on, the others wait until it is as it was.
    """
    with _locks_of_all:
        return _locks.setdefault(model, threading.RLock())
