"""Ids beyond the embedding and positions beyond a table: told from the model's build, refused in one line."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

import polydraft
from polydraft.decoding.measuring import CONTEXT, measure
from polydraft.decoding.refusals import longest_text
from polydraft.errors import InputError
from polydraft.limits import check_ids, embedding_rows, position_rows
from tests.tiny import EVERY_KIND, tiny_head, tiny_model, tiny_tokenizer

POSITIONS = 24
_SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
_SHORT = {"n_embd": 32, "n_layer": 2, "n_head": 4}
OTHERS: dict[str, dict[str, Any]] = {
    "biogpt": _SIZES | {"pad_token_id": 1},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "codegen": _SHORT | {"rotary_dim": 8},
    "gpt_bigcode": _SHORT,
    "gpt_neo": {
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 1]],
    },
    "mpt": {"d_model": 32, "n_layers": 2, "n_heads": 4},
    "stablelm": _SIZES | {"num_key_value_heads": 4},
    "xglm": {"d_model": 32, "num_layers": 2, "attention_heads": 4, "ffn_dim": 64, "pad_token_id": 1},
}
NAMES = {"mpt": "max_seq_len"} | dict.fromkeys(("gpt2", "gptj", "codegen", "gpt_bigcode"), "n_positions")
TABLES = {"biogpt", "codegen", "gpt2", "gpt_bigcode", "gpt_neo", "gptj", "mpt", "opt"}


def short_model(kind: str) -> PreTrainedModel:
    """A model of `POSITIONS` positions."""
    positions = {} if kind == "bloom" else {NAMES.get(kind, "max_position_embeddings"): POSITIONS}
    if kind in EVERY_KIND:
        return tiny_model(kind, **positions)
    config = AutoConfig.for_model(kind, vocab_size=64, **OTHERS[kind] | positions)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return model.eval()


@pytest.mark.parametrize("kind", [*EVERY_KIND, *OTHERS])
def test_a_table_of_positions_ends_where_the_forward_fails(kind: str) -> None:
    model = short_model(kind)
    assert position_rows(model) == (POSITIONS if kind in TABLES else None)
    assert longest_text(model) == (None if kind == "bloom" else POSITIONS)
    text = torch.arange(2, 2 + POSITIONS + 1)[None]
    model(text[:, :POSITIONS])
    if kind in TABLES:
        with pytest.raises((IndexError, RuntimeError)):
            model(text)
    else:
        model(text)


@pytest.mark.parametrize(
    ("kind", "drafting"), [("gpt2", "chain"), ("gpt2", "tree"), ("opt", "chain"), ("gptj", "tree")]
)
def test_a_text_may_fill_the_table_and_no_more(kind: str, drafting: str) -> None:
    """The last token is never read, so it needs no position; drafts stay within the table too."""
    model = short_model(kind)
    head = tiny_head(model)
    prompt = torch.arange(3, 13)[None]
    for new in (POSITIONS - 12, POSITIONS - 10, POSITIONS - 9):
        plain = model.generate(prompt, max_new_tokens=new, do_sample=False)
        out = polydraft.generate(model, head, prompt, max_new_tokens=new, drafting=drafting, draft_length=3)
        assert torch.equal(out.sequences, plain)
    with pytest.raises(InputError, match="has positions for 24 tokens: prompt and new tokens come to 26"):
        polydraft.generate(model, head, prompt, max_new_tokens=POSITIONS - 8)


def test_rotary_positions_have_no_end() -> None:
    model = short_model("llama")
    prompt = torch.arange(3, 13)[None]
    plain = model.generate(prompt, max_new_tokens=40, do_sample=False)
    assert torch.equal(
        polydraft.generate(model, tiny_head(model), prompt, max_new_tokens=40).sequences, plain
    )


def test_what_drafts_cost_is_measured_within_the_table() -> None:
    model = tiny_model("gpt2", n_positions=40)
    assert CONTEXT > 40
    costs = measure(model, tiny_head(model), rows=[1])
    assert costs.forward_seconds(1, 1) > 0


def test_rows_are_those_of_the_embedding_whatever_the_tokenizer_has() -> None:
    assert embedding_rows(tiny_model(vocab_size=70)) == 70
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<image>"])
    ids = tokenizer("a<image>b")["input_ids"]
    check_ids(ids, len(tokenizer), where="x", tokenizer=tokenizer)
    check_ids([], 1, where="x")
    with pytest.raises(
        InputError, match="x: the tokenizer has token 259, '<image>', the model reads ids below 259"
    ):
        check_ids(ids, 259, where="x", tokenizer=tokenizer)
    for wrong in (259, -1):
        with pytest.raises(
            InputError, match=f"x: token id {wrong} is of another tokenizer: the model reads ids below"
        ):
            check_ids([3, wrong], 259, where="x")


@pytest.mark.parametrize("padding", [False, True])
def test_ids_beyond_the_embedding_are_refused_by_generate(padding: bool) -> None:
    """What a mask hides is never read, so it may be any id."""
    model = tiny_model()
    head = tiny_head(model)
    ids = torch.tensor([[99, 5, 6], [7, 8, 9]])
    if padding:
        mask = torch.tensor([[0, 1, 1], [1, 1, 1]])
        out = polydraft.generate(model, head, ids, attention_mask=mask, max_new_tokens=3)
        plain = model.generate(ids.clamp(max=63), attention_mask=mask, max_new_tokens=3, do_sample=False)
        assert torch.equal(out.sequences[:, 3:], plain[:, 3:])
    else:
        with pytest.raises(
            InputError, match="token id 99 is of another tokenizer: the model reads ids below 64"
        ):
            polydraft.generate(model, head, ids, max_new_tokens=3)


def test_no_message_is_longer_than_a_line() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<two\nlines>"])
    with pytest.raises(InputError) as error:
        check_ids([259], 259, where="x", tokenizer=tokenizer)
    assert "\n" not in str(error.value)
    assert json.dumps(str(error.value))
