"""Features of a whole context: the block against transformers' own model, and read bit by bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn.functional import rms_norm
from transformers import LlamaModel

from polydraft.errors import InputError
from polydraft.heads import DraftConfig, DraftHead
from polydraft.heads.block import ContextBlock, block_sizes
from polydraft.hidden import HiddenTap, decoder_layers
from tests.tiny import BLOCK, HIDDEN_SIZE, KINDS, tiny_head, tiny_model


def block_head(**options: object) -> DraftHead:
    return tiny_head(tiny_model(), features="block", block=BLOCK, **options)


def inputs(head: DraftHead, *, length: int = 9, rows: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(rows, length, head.config.state_size, generator=generator)
    return hidden, torch.randint(head.config.vocab_size, (rows, length), generator=generator)


@torch.no_grad()
def test_is_one_layer_of_a_llama_model() -> None:
    head = block_head()
    assert head.block is not None and head.fuse is not None
    hidden, tokens = inputs(head, rows=2)
    whole = LlamaModel(head.block.layer_config).eval()
    whole.layers[0].load_state_dict(head.block.layer.state_dict())
    fused = head.fuse(hidden, head.embed(tokens))
    expected = whole(inputs_embeds=fused).last_hidden_state  # after a norm with weights of one
    found = rms_norm(head.features(hidden, tokens), (HIDDEN_SIZE,), eps=whole.norm.variance_epsilon)
    torch.testing.assert_close(found, expected)


@torch.no_grad()
@pytest.mark.parametrize("pieces", [(9,), (1,) * 9, (4, 1, 3, 1), (7, 2)])
def test_read_bit_by_bit(pieces: tuple[int, ...]) -> None:
    head = block_head()
    hidden, tokens = inputs(head)
    read, at = head.reader(), 0
    for size in pieces:
        read.tell(hidden[:, at : at + size], tokens[:, at : at + size])
        joint = read.joint()
        at += size
        whole = head(hidden[:, :at], tokens[:, :at])
        torch.testing.assert_close(joint.row(joint.start(), 0), whole.row(whole.start(), 0))


@torch.no_grad()
def test_sees_its_past_and_nothing_else() -> None:
    head = block_head()
    hidden, tokens = inputs(head)
    before = head.features(hidden, tokens)
    hidden[:, 5] += 1.0
    after = head.features(hidden, tokens)
    changed = (before - after).abs().amax(-1)[0] > 1e-6
    assert changed.tolist() == [False] * 5 + [True] * 4


@torch.no_grad()
def test_packed_documents_do_not_see_each_other() -> None:
    head = block_head()
    hidden, tokens = inputs(head)
    places = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4]])
    packed = head.features(hidden, tokens, position_ids=places)
    for part in (slice(0, 4), slice(4, 9)):
        torch.testing.assert_close(packed[:, part], head.features(hidden[:, part], tokens[:, part]))


@torch.no_grad()
def test_new_block_changes_nothing() -> None:
    config = DraftConfig(
        hidden_size=HIDDEN_SIZE,
        vocab_size=64,
        draft_vocab_size=64,
        feature_size=16,
        features="block",
        block=BLOCK,
    )
    head = DraftHead(config)
    head.draft_ids.copy_(torch.arange(64))
    head.attach(tiny_model())
    hidden, tokens = inputs(head)
    torch.testing.assert_close(head.features(hidden, tokens), hidden)


@torch.no_grad()
def test_starts_from_a_layer_of_the_base_model() -> None:
    model = tiny_model()
    sizes = block_sizes(model.config)
    assert {k: sizes[k] for k in ("num_attention_heads", "num_key_value_heads", "intermediate_size")} == {
        "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 64,
    }  # fmt: skip
    block, layer = ContextBlock(HIDDEN_SIZE, sizes), decoder_layers(model, upto=2)[-1]
    block.reset()
    taken = block.take(layer)
    assert "self_attn.q_proj.weight" in taken and "self_attn.o_proj.weight" not in taken
    torch.testing.assert_close(block.layer.mlp.up_proj.weight, layer.mlp.up_proj.weight)
    assert not block.layer.self_attn.o_proj.weight.any()
    assert ContextBlock(HIDDEN_SIZE, BLOCK).take(layer) == [
        name for name in taken if not name.startswith("mlp")
    ]


@torch.no_grad()
def test_saved_and_loaded(tmp_path: Path) -> None:
    head = block_head(layers=[1])
    hidden, tokens = inputs(head)
    head.save_pretrained(tmp_path)
    again = DraftHead.from_pretrained(tmp_path).attach(head._base[0])
    torch.testing.assert_close(again.state_dict(), head.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(again.features(hidden, tokens), head.features(hidden, tokens))


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_tap_of_all_rows_and_layers(kind: str) -> None:
    model = tiny_model(kind)
    ids = torch.randint(64, (2, 7), generator=torch.Generator().manual_seed(0))
    with HiddenTap(model, layers=[1]) as tap:
        out = model(ids, output_hidden_states=True, logits_to_keep=1)
        found = tap.hidden
    torch.testing.assert_close(found[..., :HIDDEN_SIZE], out.hidden_states[-1])
    torch.testing.assert_close(found[..., HIDDEN_SIZE:], out.hidden_states[1])


def test_refusals() -> None:
    with pytest.raises(InputError, match="has 2 layers, not 3"):
        HiddenTap(tiny_model(), layers=[3])
    with pytest.raises(InputError, match="layers need features"):
        DraftConfig(features="hidden", layers=[1])
    with pytest.raises(InputError, match="block sizes belong to"):
        DraftConfig(features="block")
    with pytest.raises(InputError, match="layers must be different"):
        DraftConfig(layers=[1, 1])
    with pytest.raises(InputError, match="a block needs"):
        DraftHead(DraftConfig(features="block", block={"heads": 3}))
