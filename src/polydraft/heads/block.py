"""One causal transformer layer over the fused features of the whole context, and what it remembers."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, PreTrainedConfig
from transformers.masking_utils import create_causal_mask
from transformers.models.llama.modeling_llama import (
    LlamaDecoderLayer,
    LlamaRotaryEmbedding,
    apply_rotary_pos_emb,
)

from polydraft.compat import CACHE, set_attention_implementation
from polydraft.errors import InputError
from polydraft.heads.past import Memory, Past
from polydraft.masks import slot_mask
from polydraft.slots import SlotCache

SIZES = ("num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size", "rms_norm_eps")
"""The sizes of a block, taken from the base model where it has them."""


def block_sizes(base: PreTrainedConfig) -> dict[str, Any]:
    """The sizes of a block like one layer of the base model: `SIZES` and `rope_theta`."""
    found = {name: getattr(base, name) for name in SIZES if getattr(base, name, None) is not None}
    theta = (getattr(base, "rope_parameters", None) or {}).get("rope_theta", 10_000.0)
    found.setdefault("intermediate_size", 4 * base.hidden_size)
    return found | {"rope_theta": theta}


class Recorder:
    """Takes the place of a cache that is empty, and keeps what the layer makes."""

    memory: Memory

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Called by the layer."""
        self.memory = Memory(keys, values)
        return keys, values


class ContextBlock(nn.Module):
    """u = x + mlp(norm(x)), x = f + attention(norm(f)): a Llama layer over fused features f, causal.

    The draft model of EAGLE (Li et al. 2024, arXiv 2401.15077) is one such layer; here it is run once a
    cycle, and for recurrent heads once a draft too (`step`). Its output projections start at zero, so u
    starts as f.

    Args:
        hidden_size: d. sizes: as `block_sizes` gives them.

    Raises:
        InputError: sizes that make no layer.
    """

    def __init__(self, hidden_size: int, sizes: dict[str, Any]) -> None:
        super().__init__()
        unknown = set(sizes) - {*SIZES, "rope_theta"}
        if unknown or "num_attention_heads" not in sizes or "intermediate_size" not in sizes:
            raise InputError(f"a block needs {', '.join(SIZES)} and rope_theta, got {sizes}")
        rest = {name: value for name, value in sizes.items() if name != "rope_theta"}
        self.layer_config = LlamaConfig(
            hidden_size=hidden_size,
            num_hidden_layers=1,
            rope_parameters={"rope_type": "default", "rope_theta": float(sizes.get("rope_theta", 10_000.0))},
            **rest,
        )
        set_attention_implementation(self.layer_config, "sdpa")
        self.layer = LlamaDecoderLayer(self.layer_config, 0)
        self._rotary: list[LlamaRotaryEmbedding] = []  # a list: it holds tables, no weights

    def reset(self) -> None:
        """Small random projections; zero where they write."""
        for name, module in self.layer.named_modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
                if name in ("self_attn.o_proj", "mlp.down_proj"):
                    nn.init.zeros_(module.weight)
            elif hasattr(module, "variance_epsilon"):
                nn.init.ones_(module.weight)

    @torch.no_grad()
    def take(self, layer: nn.Module) -> list[str]:
        """Start from a layer of the base model, where names and shapes allow; what writes starts at zero.

        Returns:
            The names of the parameters taken.
        """
        own, taken = dict(self.layer.named_parameters()), []
        for name, value in layer.named_parameters():
            writes = name.startswith(("self_attn.o_proj", "mlp.down_proj"))
            if not writes and name in own and own[name].shape == value.shape:
                own[name].copy_(value)
                taken.append(name)
        return taken

    def forward(
        self, features: Tensor, *, position_ids: Tensor | None = None, cache: SlotCache | None = None
    ) -> Tensor:
        """f (B, T, d) -> u (B, T, d), u_t from f_1..f_t.

        Args:
            position_ids: (B, T), restarting where a packed row begins another document, which sees nothing
                of those before it; None counts on from the cache.
            cache: what earlier calls saw; T more are written after each row, to be kept by the caller.
        """
        width, device = features.shape[1], features.device
        if cache is not None and cache.shared_length is None:
            mask: Any = slot_mask(cache.lengths, width, device=device)
        else:
            mask = create_causal_mask(
                config=self.layer_config,
                inputs_embeds=features,
                attention_mask=None,
                position_ids=position_ids,
                **cast(Any, {CACHE: cache}),
            )
        places = position_ids
        if places is None:
            seen = torch.tensor([0] if cache is None else cache.lengths, device=device)
            places = seen[:, None] + torch.arange(width, device=device)
        return self._run(features, mask, places, cache)

    def read(self, features: Tensor, *, position_ids: Tensor | None = None) -> tuple[Tensor, Memory]:
        """`forward` of whole texts, and what is remembered of them, with its gradient."""
        recorder, width = Recorder(), features.shape[1]
        mask = create_causal_mask(
            config=self.layer_config,
            inputs_embeds=features,
            attention_mask=None,
            position_ids=position_ids,
            **cast(Any, {CACHE: None}),
        )
        places = torch.arange(width, device=features.device)[None] if position_ids is None else position_ids
        out = self._run(features, mask, places, recorder)
        return out, recorder.memory._replace(position_ids=position_ids)

    def step(
        self, features: Tensor, places: Tensor, *, past: Past, memory: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """The layer over one token more of each of P chains.

        Args:
            features: (P, d). places: (P,), their positions. past: the texts before the chains.
            memory: keys and values of the chains so far, (P, H, s, D) each; () for none.

        Returns:
            u (P, d), and the memory with this token.
        """
        attention = self.layer.self_attn
        normed = self.layer.input_layernorm(features)
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        queries, keys, values = (
            part(normed).unflatten(-1, (-1, 1, attention.head_dim)) for part in projections
        )
        rotary = self._tables(features.device)(features, places[:, None])
        queries, keys = apply_rotary_pos_emb(queries, keys, *rotary)
        if memory:
            keys, values = (torch.cat(both, 2) for both in zip(memory, (keys, values), strict=True))
        seen = past.attend(queries[:, :, 0], keys, values, scale=attention.scaling)
        after = features + attention.o_proj(seen.flatten(1))
        return after + self.layer.mlp(self.layer.post_attention_layernorm(after)), (keys, values)

    def _run(self, features: Tensor, mask: Any, places: Tensor, cache: SlotCache | Recorder | None) -> Tensor:
        out = self.layer(
            features,
            attention_mask=mask,
            position_ids=places,
            use_cache=cache is not None,
            position_embeddings=self._tables(features.device)(features, places),
            **cast(Any, {CACHE: cache}),
        )
        assert isinstance(out, Tensor)
        return out

    def _tables(self, device: torch.device) -> LlamaRotaryEmbedding:
        """Angles of the positions, on this device."""
        if not self._rotary or self._rotary[0].inv_freq.device != device:
            self._rotary = [LlamaRotaryEmbedding(self.layer_config).to(device)]
        return self._rotary[0]
