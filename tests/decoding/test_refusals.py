"""Models that cannot be drafted with, or in batches: refused in one line, and no others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel

import polydraft
from polydraft.decoding.refusals import longest_text, refuse_batch, refuse_length, refuse_model
from polydraft.errors import InputError
from polydraft.hidden import HiddenTap
from polydraft.limits import position_rows
from tests.decoding.models import (
    NEW_TOKENS,
    case_model,
    drafted,
    new_tokens,
    oracle_of_many,
    plain,
    ragged_prompts,
)
from tests.tiny import EVERY_KIND, WINDOW, tiny_head, tiny_model

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
BARE = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2}
ENDS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 1}

STATE = "keeps a state that moves on with every token and cannot be taken back after a refused draft"
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "mamba": (BARE, STATE),
    "mamba2": (BARE | {"num_heads": 8, "head_dim": 8}, STATE),
    "falcon_mamba": (BARE, STATE),
    "rwkv": (BARE, STATE),
    "xlstm": (BARE | {"num_heads": 4}, STATE),
    "jamba": (SIZES, STATE),
    "recurrent_gemma": (SIZES, STATE),
    "qwen3_next": (SIZES, STATE),
    "falcon_h1": (SIZES, STATE),
    "nemotron_h": (SIZES, STATE),
    "minimax": (SIZES, STATE),
    "lfm2": (SIZES | {"layer_types": ["conv", "full_attention"]}, STATE),
    "deepseek_v4": (SIZES, STATE),
    "openai-gpt": ({"n_embd": 32, "n_layer": 2, "n_head": 4}, "keeps no cache of keys and values"),
    "xlnet": ({"d_model": 32, "n_layer": 2, "n_head": 4}, "keeps no cache of keys and values"),
    "bert": (SIZES, "attends to tokens still to come"),
    "gemma3_text": (SIZES | {"use_bidirectional_attention": True}, "attends to tokens still to come"),
    "cpmant": (SIZES, "reads its prompt in both directions"),
    "prophetnet": ({"vocab_size": 64, "hidden_size": 32}, "reads its cache one token at a time"),
    "xlm": (
        {"vocab_size": 64, "emb_dim": 32, "n_layers": 2, "n_heads": 4},
        "decodes by a prepare_inputs_for_generation (transformers.models.xlm.modeling_xlm) of its own, "
        "which drafting does not call",
    ),
}

ALONE: dict[str, tuple[dict[str, Any], str]] = {
    "bloom": (
        {"vocab_size": 64, "hidden_size": 32, "n_layer": 2, "n_head": 4},
        "takes no positions from outside",
    ),
    "mpt": (
        {"vocab_size": 64, "d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 64, "use_cache": True},
        "takes no positions from outside",
    ),
    "falcon": (BARE | {"num_attention_heads": 4, "alibi": True}, "takes no positions from outside"),
    "bart": (
        {"vocab_size": 64, "d_model": 32, "decoder_layers": 2, "encoder_layers": 2, "is_decoder": True},
        "takes no positions from outside",
    ),
    "gpt_neo": (
        {"vocab_size": 64, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "window_size": 8}
        | {"attention_types": [[["global", "local"], 1]]},
        "cuts its causal mask by the longest row",
    ),
    "llama4_text": (
        SIZES
        | {"head_dim": 8, "intermediate_size_mlp": 48, "num_local_experts": 2, "attention_chunk_size": 8}
        | {"layer_types": ["chunked_attention", "full_attention"]},
        "attends in chunks, and counts them by the longest row",
    ),
}


def skeleton(kind: str, options: dict[str, Any]) -> PreTrainedModel:
    """A model without numbers: enough to see how it is built."""
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **options))
    return model


def random_model(kind: str, options: dict[str, Any] | None = None) -> PreTrainedModel:
    """One of `ALONE`, or of other options, with random numbers, far from uniform."""
    torch.manual_seed(0)
    options = ALONE[kind][0] if options is None else options
    config = AutoConfig.for_model(kind, **(options | ENDS))
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(0.4 * torch.randn_like(parameter))
    return model.eval()


def line_of(refuse: Callable[[], object]) -> str:
    """What is refused, in one line."""
    with pytest.raises(InputError) as caught:
        refuse()
    line = str(caught.value)
    assert "\n" not in line
    return line


@pytest.mark.parametrize("kind", REFUSED)
def test_models_that_cannot_be_drafted_with(kind: str) -> None:
    options, reason = REFUSED[kind]
    model = skeleton(kind, options)
    line = line_of(lambda: refuse_model(model))
    assert line == f"{type(model).__name__} {reason}, so it cannot be drafted with: call plain model.generate"


def test_an_encoder_decoder() -> None:
    with torch.device("meta"):
        model = AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model("t5", d_model=32, num_layers=2))
    assert "T5ForConditionalGeneration is an encoder-decoder" in line_of(lambda: refuse_model(model))


def test_the_refusal_comes_before_anything_else() -> None:
    torch.manual_seed(0)
    config = AutoConfig.for_model("mamba", **(BARE | ENDS))
    model = AutoModelForCausalLM.from_config(config)
    head = tiny_head(tiny_model())  # of another model, which would be refused too
    prompt = torch.tensor([[5, 6, 7]])
    assert "MambaForCausalLM" in line_of(lambda: polydraft.generate(model, head, prompt, max_new_tokens=4))
    door = polydraft.decoder(head)
    assert "MambaForCausalLM" in line_of(
        lambda: cast(Any, model).generate(prompt, custom_generate=door, max_new_tokens=4)
    )


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_what_the_contract_holds_for_is_not_refused(kind: str) -> None:
    model = tiny_model(kind)
    refuse_model(model)
    refuse_batch(model)
    refuse_length(model, shortest=1, longest=position_rows(model) or 10**6)


@pytest.mark.parametrize("kind", ALONE)
class TestOneTextAtATime:
    def test_batches_are_refused(self, kind: str) -> None:
        options, reason = ALONE[kind]
        model = skeleton(kind, options)
        refuse_model(model)
        assert line_of(lambda: refuse_batch(model)) == (
            f"{type(model).__name__} {reason}: give one prompt at a time and no tree"
        )

    def test_one_text_is_right(self, kind: str) -> None:
        model, prompts = random_model(kind), ragged_prompts()[1:3]
        texts = [plain(model, prompt[None], max_new_tokens=NEW_TOKENS)[0] for prompt in prompts]
        for prompt, text in zip(prompts, texts, strict=True):
            out = drafted(model, oracle_of_many(model, texts), [prompt])
            assert out.sequences is not None
            assert out.sequences[0].tolist() == text.tolist()


@pytest.mark.parametrize("rows", [1, 3])
def test_positions_that_a_model_would_count_from_its_padding_token_are_given(rows: int) -> None:
    options = SIZES | {"is_decoder": True, "max_position_embeddings": 64}
    model, prompts = random_model("roberta", options), ragged_prompts(rows)
    texts = [plain(model, prompt[None], max_new_tokens=NEW_TOKENS)[0] for prompt in prompts]
    found = new_tokens(drafted(model, oracle_of_many(model, texts), prompts), prompts)
    assert found == [text[len(prompt) :].tolist() for prompt, text in zip(prompts, texts, strict=True)]


@pytest.mark.parametrize("kind", ["bart", "gpt_neo", "llama4_text"])
def test_batches_of_those_would_be_wrong_without_a_word(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(polydraft.decoding.Decoder.__call__.__globals__, "refuse_batch", lambda model: None)
    model, prompts = random_model(kind), ragged_prompts()[:3]
    texts = [plain(model, prompt[None], max_new_tokens=NEW_TOKENS)[0] for prompt in prompts]
    found = new_tokens(drafted(model, oracle_of_many(model, texts), prompts), prompts)
    assert found != [text[len(prompt) :].tolist() for prompt, text in zip(prompts, texts, strict=True)]


def test_attention_without_masks_takes_no_batches() -> None:
    model = tiny_model()
    model.config._attn_implementation = "flash_attention_2"
    refuse_model(model)
    assert line_of(lambda: refuse_batch(model)).startswith("attention 'flash_attention_2' takes no mask")


BORDER = 16
ROPES: dict[str, dict[str, Any]] = {
    "longrope": {
        "long_factor": [4.0] * 4,
        "short_factor": [1.0] * 4,
        "original_max_position_embeddings": BORDER,
    },
    "dynamic": {"factor": 4.0},
}
LIMIT = {"longrope": 64, "dynamic": BORDER}
"""The model's largest position."""


@pytest.mark.parametrize("rope", ROPES)
class TestPositionsThatChange:
    def model(self, rope: str) -> PreTrainedModel:
        """Rotary frequencies that change behind `BORDER` tokens."""
        found = {"rope_type": rope, "rope_theta": 10000.0} | ROPES[rope]
        return case_model("llama", rope_parameters=found, max_position_embeddings=LIMIT[rope])

    @pytest.mark.parametrize("rows", [1, 3])
    def test_texts_that_end_at_the_border(self, rope: str, rows: int) -> None:
        model, prompts = self.model(rope), ragged_prompts(rows, longest=6)
        room = BORDER - max(len(prompt) for prompt in prompts)
        texts = [plain(model, prompt[None], max_new_tokens=room)[0] for prompt in prompts]
        out = drafted(model, oracle_of_many(model, texts), prompts, max_new_tokens=room)
        assert new_tokens(out, prompts) == [
            text[len(prompt) :].tolist() for prompt, text in zip(prompts, texts, strict=True)
        ]

    def test_texts_across_it_are_refused(self, rope: str) -> None:
        model = self.model(rope)
        prompt = ragged_prompts()[2][:BORDER]
        head = tiny_head(model)
        line = line_of(lambda: drafted(model, head, [prompt], max_new_tokens=1))
        assert line.startswith(f"the positions of LlamaForCausalLM change at 16 tokens (rope_type {rope!r})")

    def test_texts_behind_it(self, rope: str) -> None:
        """There longrope has one set of frequencies again, dynamic never."""
        model, prompts = self.model(rope), [ragged_prompts()[2][: BORDER + 1], ragged_prompts()[2]]
        texts = [plain(model, prompt[None], max_new_tokens=8)[0] for prompt in prompts]
        head = oracle_of_many(model, texts)
        if rope == "dynamic":
            assert "rope_type 'dynamic'" in line_of(lambda: drafted(model, head, prompts, max_new_tokens=8))
            return
        out = drafted(model, head, prompts, max_new_tokens=8)
        assert new_tokens(out, prompts) == [
            text[len(prompt) :].tolist() for prompt, text in zip(prompts, texts, strict=True)
        ]


class TestAWindowThatOnlyTheCacheKnows:
    """Of Moshi, and of any model whose configuration has a `sliding_window` that its code does not read."""

    def model(self, kind: str) -> PreTrainedModel:
        """Full masks, and a cache that keeps `WINDOW` - 1 tokens."""
        if kind == "llama":
            return case_model("llama", sliding_window=WINDOW)
        sizes = {"ffn_dim": 48, "num_codebooks": 2, "max_position_embeddings": 64}
        return random_model(kind, SIZES | sizes | {"sliding_window": WINDOW})

    @pytest.mark.parametrize("kind", ["llama", "moshi"])
    def test_texts_within_it(self, kind: str) -> None:
        model, prompt = self.model(kind), ragged_prompts()[2][:3]
        text = plain(model, prompt[None], max_new_tokens=WINDOW - 3)[0]
        out = drafted(model, oracle_of_many(model, [text]), [prompt], max_new_tokens=WINDOW - 3)
        assert out.sequences[0].tolist() == text.tolist()

    @pytest.mark.parametrize("kind", ["llama", "moshi"])
    def test_texts_that_outgrow_it_are_refused(self, kind: str) -> None:
        model, prompt = self.model(kind), ragged_prompts()[2][:3]
        head = tiny_head(model)
        line = line_of(lambda: drafted(model, head, [prompt], max_new_tokens=WINDOW - 2))
        assert line == (
            f"the cache of {type(model).__name__} slides at {WINDOW} tokens, which its masks do not know: "
            "let prompt and new tokens stay within, or call plain model.generate"
        )
        assert longest_text(model) == WINDOW

    def test_they_would_be_wrong_without_a_word(self, monkeypatch: pytest.MonkeyPatch) -> None:
        given = polydraft.decoding.Decoder.__call__.__globals__
        monkeypatch.setitem(given, "refuse_length", lambda model, **lengths: None)
        model, prompt = self.model("moshi"), ragged_prompts()[2]
        text = plain(model, prompt[None], max_new_tokens=NEW_TOKENS)[0]
        out = drafted(model, oracle_of_many(model, [text]), [prompt])
        assert out.sequences[0].tolist() != text.tolist()


def test_borders_by_kind_of_layer() -> None:
    rope = {"full_attention": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}}
    model = tiny_model()
    cast(Any, model.config).rope_parameters = rope | {"sliding_attention": {"rope_type": "default"}}
    model.config.max_position_embeddings = 100
    refuse_length(model, shortest=1, longest=100)
    assert "change at 100 tokens" in line_of(lambda: refuse_length(model, shortest=1, longest=101))


def test_layers_whose_states_have_another_shape() -> None:
    model = tiny_model("gemma3n")
    with HiddenTap(model, layers=[1]) as tap:
        cast(Any, model)(torch.tensor([[1, 2, 3]]))
        with pytest.raises(InputError, match="use a head without further layers"):
            _ = tap.hidden
