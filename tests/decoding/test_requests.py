"""What a drafted generation refuses: each by one clear line, before anything is generated."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, StaticCache

import polydraft
from polydraft.compat import CACHE
from polydraft.decoding import DecodingStatistics, DraftedOutput
from polydraft.decoding.requests import check_own_positions
from polydraft.errors import InputError
from tests.tiny import tiny_head, tiny_model

PROMPT = torch.tensor([[5, 6, 7, 8]])


def call(door: str, prompt: Tensor = PROMPT, **options: Any) -> Any:
    """Generate a few tokens through one of the two doors."""
    model = tiny_model()
    head = tiny_head(model)
    options = {"max_new_tokens": 4} | options
    if door == "generate":
        return polydraft.generate(model, head, prompt, **options)
    return cast(Any, model).generate(prompt, custom_generate=polydraft.decoder(head), **options)


def refusal(door: str, *args: Any, **options: Any) -> str:
    """The line that a request is refused with."""
    with pytest.raises(InputError) as caught:
        call(door, *args, **options)
    line = str(caught.value)
    assert "\n" not in line
    return line


def cache_of(tokens: int) -> DynamicCache:
    """A cache of the tiny model that has read so many tokens."""
    model = tiny_model()
    cache = DynamicCache(config=model.config)
    cast(Any, model)(input_ids=torch.zeros(1, tokens, dtype=torch.long), **{CACHE: cache}, use_cache=True)
    return cache


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "beams": ({"num_beams": 2}, "beam search cannot be drafted: set num_beams=1"),
    "attentions": ({"output_attentions": True}, "output_attentions is not supported"),
    "hidden states": ({"output_hidden_states": True}, "output_hidden_states is not supported"),
    "no cache": ({"use_cache": False}, "needs the cache: leave use_cache on"),
    "static cache": ({"cache_implementation": "static"}, "StaticCache cannot be rolled back"),
    "contrastive": ({"penalty_alpha": 0.6, "top_k": 4}, "penalty_alpha asks for another decoding method"),
    "dola": ({"dola_layers": "low"}, "dola_layers asks for another decoding method"),
    "hole": ({"attention_mask": torch.tensor([[1, 0, 1, 1]])}, "left padding only"),
    "right padding": ({"attention_mask": torch.tensor([[1, 1, 1, 0]])}, "left padding only"),
    "nothing left": ({"attention_mask": torch.tensor([[0, 0, 0, 0]])}, "left padding only"),
}


@pytest.mark.parametrize("door", ["generate", "decoder"])
class TestRefusals:
    @pytest.mark.parametrize(("options", "line"), REFUSED.values(), ids=REFUSED)
    def test_of_an_option(self, door: str, options: dict[str, Any], line: str) -> None:
        given = options | ({"return_dict_in_generate": True} if door == "decoder" else {})
        assert line in refusal(door, **given)

    def test_of_a_batch_that_goes_on_from_a_cache(self, door: str) -> None:
        cache = DynamicCache()
        cast(Any, tiny_model())(PROMPT[:, :2].repeat(2, 1), **{CACHE: cache})
        line = refusal(door, PROMPT.repeat(2, 1), **{CACHE: cache})
        assert f"a batch cannot go on from {CACHE}: continue one text at a time" in line

    @pytest.mark.parametrize("tokens", [4, 6])
    def test_of_a_cache_that_holds_the_whole_prompt(self, door: str, tokens: int) -> None:
        assert f"the cache already holds {tokens} tokens" in refusal(door, **{CACHE: cache_of(tokens)})

    def test_of_a_padded_prompt_with_a_cache(self, door: str) -> None:
        options = {"attention_mask": torch.tensor([[0, 1, 1, 1]]), CACHE: cache_of(2)}
        assert "padded prompt cannot be continued from a cache" in refusal(door, **options)

    def test_of_new_tokens_alone_with_a_cache(self, door: str) -> None:
        options = {"attention_mask": torch.ones(1, 6, dtype=torch.long), CACHE: cache_of(2)}
        assert "input_ids must hold the whole text" in refusal(door, **options)

    def test_of_a_static_cache_object(self, door: str) -> None:
        cache = StaticCache(config=tiny_model().config, max_cache_len=32)
        assert "StaticCache cannot be rolled back: use the default" in refusal(door, **{CACHE: cache})


ROWS = torch.tensor([[0, 5, 6, 7], [9, 8, 7, 6]])
MASK = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])
POSITIONS = {
    "as the mask gives them": (torch.tensor([[0, 0, 1, 2], [0, 1, 2, 3]]), True),
    "other numbers for the padding": (torch.tensor([[1, 0, 1, 2], [0, 1, 2, 3]]), True),
    "of three kinds": (torch.tensor([[0, 0, 1, 2], [0, 1, 2, 3]]).expand(3, -1, -1), True),
    "counted with the padding": (torch.arange(4).expand(2, -1), False),
    "shifted": (torch.tensor([[0, 3, 4, 5], [3, 4, 5, 6]]), False),
    "two documents": (torch.tensor([[0, 0, 1, 2], [0, 1, 0, 1]]), False),
    "one of three kinds differs": (
        torch.tensor([[0, 0, 1, 2], [0, 1, 2, 3]]).repeat(3, 1, 1) + torch.tensor([[[0]], [[0]], [[1]]]),
        False,
    ),
    "one for all": (torch.zeros(2, 1, dtype=torch.long), False),
}
"""`position_ids` of `ROWS`, and whether they are those that plain generation would find by itself."""


@pytest.mark.parametrize(("given", "right"), POSITIONS.values(), ids=POSITIONS)
def test_positions_of_ones_own(given: Tensor, right: bool) -> None:
    check: Any = lambda: check_own_positions({"position_ids": given}, ROWS, MASK, seen=0)  # noqa: E731
    if right:
        check()
        return
    with pytest.raises(InputError, match="position_ids of your own is not supported") as caught:
        check()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("shift", [0, 3])
def test_positions_are_refused_where_they_would_change_the_text(kind: str, shift: int) -> None:
    model = tiny_model(kind)
    head, positions = tiny_head(model), torch.tensor([[0, 1, 2 + shift, 3 + shift]])
    options: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False, "position_ids": positions}
    if shift:
        with pytest.raises(InputError, match="position_ids of your own"):
            polydraft.generate(model, head, PROMPT, **options)
        return
    expected = cast(Any, model).generate(PROMPT, **options)
    assert polydraft.generate(model, head, PROMPT, **options).sequences.tolist() == expected.tolist()


@pytest.mark.parametrize("columns", [4, 2])
def test_positions_of_a_text_that_goes_on_from_a_cache(columns: int) -> None:
    right = torch.arange(4)[None, 4 - columns :]
    check_own_positions({"position_ids": right, "cache_position": right[0]}, PROMPT, None, seen=2)
    for name in ("position_ids", "cache_position"):
        with pytest.raises(InputError, match=f"{name} of your own"):
            check_own_positions({name: right + 1}, PROMPT, None, seen=2)
        with pytest.raises(InputError, match=f"{name} of your own"):
            check_own_positions({name: right[..., 1:]}, PROMPT, None, seen=2)


def test_other_inputs_by_token_are_refused() -> None:
    kinds = torch.zeros_like(PROMPT)
    assert "the model input 'token_type_ids' is not supported" in gpt2_refusal(token_type_ids=kinds)
    assert "logits_to_keep by index" in gpt2_refusal(logits_to_keep=torch.tensor([1]))


def gpt2_refusal(**options: Any) -> str:
    """The line that a request to GPT-2, which takes inputs of many kinds, is refused with."""
    model = tiny_model("gpt2")
    with pytest.raises(InputError) as caught:
        polydraft.generate(model, tiny_head(model), PROMPT, max_new_tokens=4, **options)
    return str(caught.value)


def test_lookup_in_the_generation_config_is_refused() -> None:
    line = refusal("decoder", prompt_lookup_num_tokens=3)
    assert "prompt_lookup_num_tokens asks for another decoding method: to combine both" in line


def test_inputs_embeds_are_refused() -> None:
    model = tiny_model()
    embeds = cast(Any, model).get_input_embeddings()(PROMPT)
    with pytest.raises(InputError, match="inputs_embeds is not supported"):
        cast(Any, model).generate(
            inputs_embeds=embeds, custom_generate=polydraft.decoder(tiny_head(model)), max_new_tokens=4
        )


def test_the_head_of_another_model_is_refused_before_it_runs() -> None:
    head = tiny_head(tiny_model("qwen3"))
    model = tiny_model()
    with pytest.raises(InputError, match="trained for") as caught:
        polydraft.generate(model, head, PROMPT, max_new_tokens=4)
    assert "\n" not in str(caught.value)


def test_stop_strings_need_the_tokenizer() -> None:
    model = tiny_model()
    with pytest.raises(InputError, match=r"stop_strings needs the tokenizer: pass tokenizer=\.\.\."):
        polydraft.generate(model, tiny_head(model), PROMPT, stop_strings=["x"])


class TestTheDecoder:
    def test_attaches_a_head_that_is_not(self) -> None:
        model = tiny_model()
        head = tiny_head(model)
        twin = tiny_model()  # the same weights, another object
        out = polydraft.generate(twin, head, PROMPT, max_new_tokens=4)
        assert head.is_attached_to(twin)
        assert out.sequences is not None
        expected = cast(Any, model).generate(PROMPT, max_new_tokens=4, do_sample=False)
        assert out.sequences.tolist() == expected.tolist()

    def test_keeps_the_statistics_of_the_last_call(self) -> None:
        model = tiny_model()
        decode = polydraft.decoder(tiny_head(model))
        assert decode.statistics is None
        found: list[DecodingStatistics] = []
        for tokens in (8, 20):
            ids = cast(Any, model).generate(PROMPT, custom_generate=decode, max_new_tokens=tokens)
            assert isinstance(ids, Tensor)
            assert isinstance(decode.statistics, DecodingStatistics)
            assert decode.statistics.accepted_tokens + decode.statistics.steps == tokens - 1
            found.append(decode.statistics)
        assert found[0] is not found[1]

    def test_returns_everything_when_asked(self) -> None:
        model = tiny_model()
        decode = polydraft.decoder(tiny_head(model))
        out = cast(Any, model).generate(
            PROMPT, custom_generate=decode, max_new_tokens=8, return_dict_in_generate=True
        )
        assert isinstance(out, DraftedOutput)
        assert out.statistics is decode.statistics
        assert out.sequences is not None and out.origins is not None
        assert out.origins.shape == (1, 8)
        assert out.sequences.shape == (1, 12)
        assert isinstance(out.cache, DynamicCache)

    def test_leaves_the_configuration_of_the_model_alone(self) -> None:
        model = tiny_model()
        before = cast(Any, model.generation_config).to_dict()
        polydraft.generate(model, tiny_head(model), PROMPT, max_new_tokens=4, do_sample=True, top_k=3)
        assert cast(Any, model.generation_config).to_dict() == before
