"""What tells one base model from another, cheaply and on every version of transformers."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from polydraft.adapters import adapter_fingerprint
from polydraft.compat import commit_of
from polydraft.errors import InputError

CONFIG_KEYS = (
    "model_type",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
)
SAMPLED_ROWS = 64
LENGTH = 32
"""The length of a fingerprint, in characters."""


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:LENGTH]


def config_fingerprint(model: PreTrainedModel) -> str:
    """Hash of the sizes that define the architecture."""
    config = model.config.get_text_config()
    return _digest(json.dumps({key: getattr(config, key, None) for key in CONFIG_KEYS}).encode())


def weights_fingerprint(model: PreTrainedModel) -> str:
    """Hash of the signs in evenly spaced rows of the unembedding: rounding to another dtype keeps signs."""
    weight = unembedding(model)
    step = max(weight.shape[0] // SAMPLED_ROWS, 1)
    return _digest(weight[::step].detach().signbit().cpu().numpy().tobytes())


def _vocabulary(tokenizer: PreTrainedTokenizerBase) -> list[tuple[str, int]]:
    return sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash of the vocabulary, token and id."""
    return _digest(json.dumps(_vocabulary(tokenizer)).encode())


def has_grown(recorded: str, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether `tokenizer` has the vocabulary of a fingerprint, and added tokens after it.

    A model often has rows for more tokens than its tokenizer: one that is added there, to pad with for
    instance, changes no other, and makes no other tokenizer.
    """
    items, added = _vocabulary(tokenizer), set(tokenizer.get_added_vocab().values())
    least = len(items)
    while least and items[least - 1][1] in added:
        least -= 1
    digest = hashlib.sha256(b"[")
    for count, item in enumerate(items, start=1):
        if count > least:
            cut = digest.copy()
            cut.update(b"]")
            if cut.hexdigest()[:LENGTH] == recorded:
                return True
        digest.update(((", " if count > 1 else "") + json.dumps(item)).encode())
    return False


def describe_base(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None = None) -> dict[str, Any]:
    """The record a head keeps of its base model."""
    return {
        "id": model.config.name_or_path,
        "revision": commit_of(model.config),
        "config": config_fingerprint(model),
        "weights": weights_fingerprint(model),
        "tokenizer": tokenizer_fingerprint(tokenizer) if tokenizer is not None else None,
        "adapter": adapter_fingerprint(model),
    }


def check_base(
    record: dict[str, Any], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None = None
) -> None:
    """Refuse a base model other than the one in `record`.

    Raises:
        InputError: names what differs.
    """
    found = describe_base(model, tokenizer)
    for part in ("config", "weights", "tokenizer"):
        if record.get(part) and found[part] and record[part] != found[part]:
            if part == "tokenizer" and tokenizer is not None and has_grown(record[part], tokenizer):
                continue
            raise InputError(
                f"this head was trained for {record.get('id')!r}; {found['id']!r} has another {part}: "
                "give the model it was trained for, or train a head for this one with `polydraft train`"
            )
    if record.get("adapter") != found["adapter"]:
        wanted = (
            "the adapter in the folder of the head with --adapter"
            if record.get("adapter")
            else "no --adapter"
        )
        raise InputError(
            f"this head was trained on {record.get('id')!r} with another adapter or none: give {wanted}"
        )


def unembedding(model: PreTrainedModel) -> torch.Tensor:
    """The output matrix (V, d) of a causal model.

    Raises:
        InputError: the model has none.
    """
    output = model.get_output_embeddings()
    if output is None:
        raise InputError(f"{type(model).__name__} has no output embeddings: give a causal language model")
    weight = output.weight
    assert isinstance(weight, torch.Tensor)
    return weight
