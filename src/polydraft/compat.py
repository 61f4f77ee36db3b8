"""What polydraft uses of transformers and torch beyond their documented interfaces, in one place.

Each function has a test in tests/test_compat.py, which fails where a new release has changed what it uses.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils import _pytree
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.generation.logits_process import PrefixConstrainedLogitsProcessor
from transformers.masking_utils import create_causal_mask

NAMES = ("cache", "past_key_values")
"""What transformers calls the cache of keys and values: the first since 5.24, the second before."""


@cache
def cache_name(function: Callable[..., Any]) -> str | None:
    """The name under which `function` takes a cache of keys and values; None if it takes none.

    A user's own model may keep the older name under a newer transformers.
    """
    parameters = inspect.signature(function).parameters
    return next((name for name in NAMES if name in parameters), None)


CACHE = cache_name(create_causal_mask) or NAMES[0]
"""The name that the installed transformers uses."""


def attention_implementation(config: PreTrainedConfig) -> str:
    """The name of the attention that a model computes: "eager", "sdpa", ..."""
    return str(config._attn_implementation)


def set_attention_implementation(config: PreTrainedConfig, name: str) -> None:
    """Choose the attention of layers that are made from `config` outside a model."""
    config._attn_implementation = name


GENERATION_STEPS = (
    "prepare_inputs_for_generation",
    "_update_model_kwargs_for_generation",
    "_prefill",
    "_sample",
)
"""The methods by which plain `generate` goes from one forward to the next."""


def hooks_before(module: nn.Module) -> list[Callable[..., Any]]:
    """The functions that run before every forward of `module`."""
    return list(module._forward_pre_hooks.values())


def is_stateful(model: PreTrainedModel) -> bool:
    """Whether transformers itself says that the model's state cannot be taken back (`_is_stateful`)."""
    return bool(model._is_stateful)


def commit_of(config: PreTrainedConfig) -> str | None:
    """The commit of the hub repository that a model came from; None for a folder."""
    return cast("str | None", getattr(config, "_commit_hash", None))


def set_commit(config: PreTrainedConfig, commit: str | None) -> None:
    """Record the commit that a model came from, which a head records of its base model."""
    config._commit_hash = commit


def has_adapter(model: PreTrainedModel) -> bool:
    """Whether `model.add_adapter` or `load_adapter` has put an adapter of PEFT into the model."""
    return bool(getattr(model, "_hf_peft_config_loaded", False))


def can_pack() -> bool:
    """Whether oneDNN multiplies in bfloat16 on this CPU."""
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def pack_weight(weight: Tensor, rows: int) -> Tensor:
    """A copy of W (N, K) in the layout that oneDNN chooses for products with `rows` rows; opaque."""
    with torch.no_grad():
        return cast(Tensor, torch.ops.mkldnn._reorder_linear_weight(weight.detach(), rows))


def packed_product(x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    """x (..., K) -> x W^T + bias (..., N), with W as `pack_weight` gives it."""
    return cast(Tensor, torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], ""))


def has_cpp_compiler() -> bool:
    """Whether torch's compiler finds a C++ compiler on this machine."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return False
    return True


def prefix_function(processor: PrefixConstrainedLogitsProcessor) -> Callable[[int, Tensor], list[int]]:
    """The `prefix_allowed_tokens_fn` that a processor was made with."""
    return processor._prefix_allowed_tokens_fn


def tensors_within(nested: Any) -> list[Tensor]:
    """All tensors within nested lists, tuples and dictionaries."""
    return [leaf for leaf in _pytree.tree_leaves(nested) if isinstance(leaf, Tensor)]


def mark_size_dynamic(tensor: Tensor, dim: int) -> None:
    """Let torch's compiler take the size of a dimension for a symbol, where it can."""
    import torch._dynamo

    torch._dynamo.maybe_mark_dynamic(tensor, dim)


def layer_programs(*, variants: int) -> AbstractContextManager[None]:
    """A context in which one program serves many layers: their number is no constant of it.

    Args:
        variants: programs of one function that may be compiled, at most.
    """
    import torch._dynamo

    return cast(
        "AbstractContextManager[None]",
        torch._dynamo.config.patch(allow_unspec_int_on_nn_module=True, recompile_limit=variants),
    )
