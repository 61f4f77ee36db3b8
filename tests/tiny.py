"""Tiny random models, a tokenizer and heads, as plain functions: no download, milliseconds each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from polydraft.heads import DraftConfig, DraftHead
from polydraft.heads.fingerprint import describe_base

HIDDEN_SIZE = 32
WINDOW = 8
"""Tokens a sliding-window layer sees; shorter than any test text."""

BLOCK = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48, "rope_theta": 5000.0}
"""Sizes of a block over features of `HIDDEN_SIZE`."""

SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>")
CHAT_TEMPLATE = (
    "{% for message in messages %}<bos>{{ message.role }}: {{ message.content }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}<bos>assistant: {% endif %}"
)

_HEADS = {
    "hidden_size": HIDDEN_SIZE,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
}
_GROUPED = _HEADS | {"num_key_value_heads": 2}
_ALTERNATING = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": WINDOW}
_GEMMA = _GROUPED | _ALTERNATING | {"head_dim": 8, "query_pre_attn_scalar": 8}

_CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", _GROUPED),
    "qwen2": ("qwen2", _GROUPED | {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", _GROUPED | {"head_dim": 8}),
    "gemma2": ("gemma2", _GEMMA),
    "gemma3": ("gemma3_text", _GEMMA),
    "gpt2": ("gpt2", {"n_embd": HIDDEN_SIZE, "n_layer": 2, "n_head": 4, "n_positions": 512}),
    "gpt_neox": ("gpt_neox", _HEADS),
    "mistral": ("mistral", _GROUPED | {"sliding_window": WINDOW}),
    "phi3": ("phi3", _GROUPED),
}
KINDS = tuple(_CONFIGS)
"""The kinds that tests of every room run over."""

_EXPERTS = _GROUPED | {"num_experts_per_tok": 2, "moe_intermediate_size": 24}
_TABLE = {"hidden_size": HIDDEN_SIZE, "num_hidden_layers": 2, "num_attention_heads": 4}
_CONFIGS |= {
    "cohere2": ("cohere2", _GROUPED | _ALTERNATING),
    "deepseek_v3": (
        "deepseek_v3",
        _EXPERTS
        | {"num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "v_head_dim": 8}
        | {"qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "first_k_dense_replace": 1}
        | {"n_routed_experts": 4, "n_group": 1, "topk_group": 1},
    ),
    "falcon": ("falcon", _TABLE | {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "gemma": ("gemma", _GROUPED | {"head_dim": 8}),
    "gemma3n": (
        "gemma3n_text",
        _GROUPED
        | {"num_hidden_layers": 4, "layer_types": ["sliding_attention", "full_attention"] * 2}
        | {"sliding_window": WINDOW, "head_dim": 8, "num_kv_shared_layers": 2, "laurel_rank": 8}
        | {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 64},
    ),
    "gpt_oss": (
        "gpt_oss",
        _GROUPED | _ALTERNATING | {"head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    "gptj": ("gptj", {"n_embd": HIDDEN_SIZE, "n_layer": 2, "n_head": 4, "n_positions": 512, "rotary_dim": 8}),
    "granite": ("granite", _GROUPED | {"embedding_multiplier": 2.0, "logits_scaling": 4.0}),
    "mixtral": ("mixtral", _GROUPED | {"sliding_window": WINDOW, "num_local_experts": 4}),
    "olmo2": ("olmo2", _GROUPED),
    "olmo3": ("olmo3", _GROUPED | _ALTERNATING),
    "opt": ("opt", _TABLE | {"ffn_dim": 64, "max_position_embeddings": 512, "word_embed_proj_dim": 32}),
    "phi": ("phi", _HEADS),
    "qwen2_moe": ("qwen2_moe", _EXPERTS | {"num_experts": 4, "shared_expert_intermediate_size": 24}),
    "qwen3_moe": ("qwen3_moe", _EXPERTS | {"head_dim": 8, "num_experts": 4}),
    "smollm3": ("smollm3", _GROUPED | {"no_rope_layers": [1, 0]}),
    "starcoder2": ("starcoder2", _GROUPED | {"sliding_window": WINDOW}),
}
EVERY_KIND = tuple(_CONFIGS)
"""All that `tiny_model` makes."""


def tiny_model(
    kind: str = "llama",
    *,
    vocab_size: int = 64,
    seed: int = 0,
    eos_token_id: int | None = None,
    initializer_range: float = 0.5,
    **more: Any,
) -> PreTrainedModel:
    """A random 2-layer model in float32, in eval mode, far from uniform; the same for the same seed.

    Args:
        kind: one of `EVERY_KIND`; those with sliding windows have them of `WINDOW` tokens.
        eos_token_id: None for a model that never ends. more: further fields of its configuration.
    """
    model_type, options = _CONFIGS[kind]
    ends = {"bos_token_id": None, "eos_token_id": eos_token_id, "pad_token_id": None}
    config = AutoConfig.for_model(
        model_type, vocab_size=vocab_size, initializer_range=initializer_range, **(options | more), **ends
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        _look_further(model)
    return model.eval()


@torch.no_grad()
def _look_further(model: PreTrainedModel) -> None:
    """Random final norm, signs included, and louder Gemma layers.

    With tied embeddings a random model otherwise prefers the token it has just read, whatever came before.
    """
    ends = ("model.norm", "ln_f", "final_layer_norm", "final_layernorm")
    (norm,) = [
        module for name, module in model.named_modules() if name.endswith(ends) and ".layers." not in name
    ]
    gemma = model.config.model_type.startswith("gemma")  # its norms multiply by 1 + weight
    norm.weight.copy_(torch.randn_like(norm.weight) - float(gemma))
    for name, module in model.named_modules():
        if gemma and name.endswith(("post_attention_layernorm", "post_feedforward_layernorm")):
            module.weight.fill_(4.0)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer, one token per byte, with end tokens and a chat template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: index for index, token in enumerate([*SPECIAL_TOKENS, *alphabet])}
    core = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def tiny_folder(path: Path, *, kind: str = "llama", seed: int = 0, eos_token_id: int | None = None) -> Path:
    """A model folder as `from_pretrained` reads it: `tiny_model` and `tiny_tokenizer`; returns `path`."""
    tokenizer = tiny_tokenizer()
    model = tiny_model(kind, vocab_size=len(tokenizer), seed=seed, eos_token_id=eos_token_id)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def tiny_head(
    model: PreTrainedModel,
    *,
    rank: int = 2,
    horizon: int = 3,
    features: str = "fused",
    draft_vocab_size: int | None = None,
    seed: int = 0,
    tokenizer: PreTrainedTokenizerFast | None = None,
    **options: Any,
) -> DraftHead:
    """A random head attached to `model`: components that differ, gates that are not even, q far from p.

    Args:
        draft_vocab_size: V'; the whole vocabulary if None. The draft ids are shuffled.
        options: other fields of `DraftConfig`.
    """
    vocab_size = model.config.get_text_config().vocab_size
    size = vocab_size if draft_vocab_size is None else draft_vocab_size
    fields: dict[str, Any] = {
        "feature_size": 16,
        "map_rank": 4,
        "markov_rank": 6,
        "base_model": describe_base(model, tokenizer),
    }
    config = DraftConfig(
        hidden_size=model.config.get_text_config().hidden_size,
        vocab_size=vocab_size,
        draft_vocab_size=size,
        horizon=horizon,
        rank=rank,
        features=features,
        **(fields | options),
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        head = DraftHead(config).eval()
        with torch.no_grad():
            for parameter in head.parameters():
                parameter.copy_(torch.randn_like(parameter) * parameter.shape[-1] ** -0.5)
            head.draft_ids.copy_(torch.randperm(vocab_size)[:size])
    return head.attach(model, tokenizer)
