"""A base model from scratch: a transformers configuration, random weights, and a tokenizer for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from polydraft.embedded import EMBEDDED, embedded_model
from polydraft.errors import InputError
from polydraft.loading import default_device
from polydraft.sources import one_line_errors, pinned, resolve

BYTES = "bytes"
"""Name of the byte-level tokenizer."""
SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>")


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, after `SPECIAL_TOKENS`; 259 tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: index for index, token in enumerate([*SPECIAL_TOKENS, *alphabet])}
    core = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    pad, bos, eos = SPECIAL_TOKENS
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=pad,
        bos_token=bos,
        eos_token=eos,
        clean_up_tokenization_spaces=False,
    )


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer called `name`: `bytes`, a folder, a hub id, or the embedded model's.

    Raises:
        InputError: nothing can be loaded under `name`.
    """
    if name == BYTES:
        return byte_tokenizer()
    path = Path(name)
    if name == EMBEDDED:
        source = str(embedded_model())
    elif path.is_dir() and (path / "tokenizer_config.json").is_file():
        source = name
    else:
        source = resolve(name, what="tokenizer")
    with one_line_errors(name, what="tokenizer"):
        source, revision = pinned(source)
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source, revision=revision)
    return tokenizer


def own_tokenizer(source: Path) -> PreTrainedTokenizerBase:
    """The tokenizer that lies beside a configuration, where it is a folder with one; else bytes.

    Raises:
        InputError: it is damaged.
    """
    return load_tokenizer(str(source) if (source / "tokenizer_config.json").is_file() else BYTES)


def scratch_model(
    source: Path, tokenizer: PreTrainedTokenizerBase, *, seed: int, dtype: torch.dtype
) -> PreTrainedModel:
    """A causal model of random weights, in eval mode on `default_device()`; one seed, one model.

    Args:
        source: a JSON file as transformers' `config.json`, or a folder that holds one. Its vocabulary is
            the tokenizer's where it names none, and its first and last tokens are the tokenizer's.

    Raises:
        InputError: no such file, no configuration of a causal model, or a vocabulary below the tokenizer's.
    """
    fields = read_config(source)
    size = fields.setdefault("vocab_size", len(tokenizer))
    if not isinstance(size, int) or size < len(tokenizer):
        raise InputError(
            f"{source}: vocab_size must be at least the tokenizer's {len(tokenizer)}, got {size!r}"
        )
    fields |= {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    with one_line_errors(str(source), what="configuration"), torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            config = AutoConfig.for_model(fields.pop("model_type"), **fields)
        except StrictDataclassError as error:
            raise InputError(f"{source}: {' '.join(str(error).split())}") from error
        model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.config.name_or_path = model.name_or_path = str(source)
    out: PreTrainedModel = model.to(default_device(), dtype).eval()
    return out


def read_config(source: Path) -> dict[str, Any]:
    """The fields of a transformers configuration; `source` is the JSON file or its folder.

    Raises:
        InputError: there is none.
    """
    path = source / "config.json" if source.is_dir() else source
    if not path.is_file():
        raise InputError(
            f"no configuration at {str(path)!r}: --trunk scratch wants --model FILE.json, a transformers "
            "config such as lab/configs/scratch-tiny.json"
        )
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: not JSON") from error
    if not isinstance(fields, dict) or not isinstance(fields.get("model_type"), str):
        raise InputError(f"{path}: names no model_type, such as llama")
    return fields
