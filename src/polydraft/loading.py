"""Load a base model and its draft head by name or folder, with errors a user can act on."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from polydraft.adapters import load_adapter
from polydraft.compat import set_commit
from polydraft.embedded import EMBEDDED, OnProgress, embedded_model
from polydraft.errors import InputError
from polydraft.heads import DraftConfig, DraftHead
from polydraft.sources import MAIN, adapter_folder, commit, head_source, one_line_errors, pinned, resolve

DTYPES = {
    "auto": torch.bfloat16,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


class Loaded(NamedTuple):
    """What `load` returns: a base model, its tokenizer, and a draft head attached to the model."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    head: DraftHead


def load(model: str, head: str | None = None, *, dtype: str = "auto", adapter: str | None = None) -> Loaded:
    """Load a base model, its tokenizer and a draft head, ready for `polydraft.generate`.

        model, tokenizer, head = polydraft.load("smollm2-135m-instruct")

    Args:
        model: a folder, a hub id (`owner/name` or `owner/name@revision`), or `smollm2-135m-instruct`, the
            embedded model.
        head: likewise; only the embedded model has a head of its own, which is the default there.
        dtype: "auto" (bfloat16), "float32", "bfloat16" or "float16", of both.
        adapter: a LoRA adapter to put into the model: a folder, or the head that was trained with it.

    Raises:
        InputError: nothing can be loaded under a name, the head was trained for another model, or no head
            is given for a model that comes without one.
    """
    if head is None:
        if model != EMBEDDED:
            raise InputError(f"give the head of {model!r}: polydraft.load(model, head)")
        head = EMBEDDED
    chosen = parse_dtype(dtype)
    find_head(head)
    base, tokenizer = load_model(model, dtype=chosen, adapter=adapter)
    return Loaded(base, tokenizer, load_head(head, model=base, tokenizer=tokenizer))


def parse_dtype(name: str) -> torch.dtype:
    """The dtype called `name`; "auto" is bfloat16.

    Raises:
        InputError: none of `DTYPES`.
    """
    if name not in DTYPES:
        raise InputError(f"unknown dtype {name!r}: choose one of {', '.join(DTYPES)}")
    return DTYPES[name]


def default_device() -> torch.device:
    """CUDA where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def set_threads(threads: int | None) -> str:
    """Set torch's CPU threads; `None` chooses. Returns the choice with its reason, for the user to read.

    On one or two cores one thread is the fastest: OpenMP's threads spin while they wait, and two that
    share a core with anything else spend most of their time waiting.

    Raises:
        InputError: `threads` is below 1.
    """
    if threads is not None:
        if threads < 1:
            raise InputError(f"threads must be at least 1, got {threads}")
        torch.set_num_threads(threads)
        return f"{threads} CPU thread{'s' * (threads > 1)}, as asked"
    cores = os.cpu_count() or 1
    if cores <= 2:
        torch.set_num_threads(1)
        return f"1 CPU thread: more spin against each other on {cores} core{'s' * (cores > 1)}"
    return f"{torch.get_num_threads()} CPU threads, torch's own choice on {cores} cores"


def source_of(name: str, *, on_progress: OnProgress | None = None) -> str:
    """The folder, or the hub id perhaps with its revision, that the model called `name` is loaded from.

    Args:
        name, on_progress: as of `load_model`.
    """
    return str(embedded_model(on_progress=on_progress)) if name == EMBEDDED else resolve(name, what="model")


def load_model(
    name: str,
    *,
    dtype: torch.dtype,
    adapter: str | None = None,
    on_progress: OnProgress | None = None,
    check: Callable[[PreTrainedTokenizerBase], object] | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model and its tokenizer, in eval mode on `default_device()`.

    Args:
        name: `smollm2-135m-instruct` (the embedded model), a folder, or a hub id, `owner/name` or
            `owner/name@revision`. A local folder of the embedded model's name is written
            `./smollm2-135m-instruct`.
        adapter: a LoRA adapter to put into the model, as `adapter_folder` takes it.
        on_progress: called with a line for each stage when the embedded model is converted.
        check: called with the tokenizer before the model itself is loaded, to raise where it will not do.

    Raises:
        InputError: nothing can be loaded under `name`; one line says why.
    """
    source = source_of(name, on_progress=on_progress)
    with one_line_errors(name, what="model"):
        source, revision = pinned(source)
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision)
    if check is not None:
        check(tokenizer)
    with one_line_errors(name, what="model"):
        model = AutoModelForCausalLM.from_pretrained(source, revision=revision, dtype=dtype)
    set_commit(model.config, commit(source, revision))
    if name == EMBEDDED:
        model.config.name_or_path = model.name_or_path = EMBEDDED
    model = cast(Any, model).to(default_device())
    if adapter is not None:
        load_adapter(model, adapter_folder(adapter))
    return model.eval(), tokenizer


def load_head(
    name: str,
    *,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None = None,
    components: int | None = None,
) -> DraftHead:
    """A draft head in the model's dtype, attached to `model`, in eval mode.

    Args:
        name: `smollm2-135m-instruct` (the shipped head), a folder, or a hub id, `owner/name` or
            `owner/name@revision`.
        tokenizer: checked against the one the head was trained with, when given.
        components: how many components it evaluates when it drafts, 0 for all; None for as many as it
            was trained to.

    Raises:
        InputError: no head is there, it is damaged, it was trained for another model, or it does not have
            that many components.
    """
    source, revision, config = find_head(name, components=components)
    with one_line_errors(name, what="head"):
        head = DraftHead.from_pretrained(source, revision=revision, config=config, dtype=model.dtype)
    return cast(DraftHead, head).attach(model, tokenizer)


def find_head(name: str, *, components: int | None = None) -> tuple[str, str, DraftConfig]:
    """Folder or hub id of a head, its revision and its configuration; nothing else is read.

    Args:
        components: as of `load_head`.

    Raises:
        InputError: no head is there, or it has fewer components.
    """
    source = head_source(name)
    with one_line_errors(name, what="head"):
        source, revision = pinned(source)
        check_is_head(source, revision=revision)
        config = DraftConfig.from_pretrained(source, revision=revision)
        if components is not None:
            config = DraftConfig(**config.to_dict() | {"components": components})
    return source, revision, config


def check_is_head(source: str, *, revision: str = MAIN) -> None:
    """Refuse what is not a polydraft head, by its `config.json`.

    Raises:
        InputError: it is of another kind. OSError: there is no such file.
    """
    kind = DraftConfig.get_config_dict(source, revision=revision)[0].get("model_type")
    if kind != DraftConfig.model_type:
        raise InputError(f"{source} holds no polydraft head: its config.json is of model_type {kind!r}")
