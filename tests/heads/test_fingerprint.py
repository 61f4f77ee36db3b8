"""A head knows its base model again, whatever the dtype, and no other."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import AutoModel, PreTrainedModel, PreTrainedTokenizerFast

from polydraft.errors import InputError
from polydraft.heads.fingerprint import (
    check_base,
    config_fingerprint,
    describe_base,
    tokenizer_fingerprint,
    unembedding,
    weights_fingerprint,
)
from tests.tiny import KINDS, tiny_model, tiny_tokenizer


def changed_config() -> PreTrainedModel:
    return tiny_model("qwen3", vocab_size=300)


def changed_weights() -> PreTrainedModel:
    return tiny_model(vocab_size=300, seed=1)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_its_own_fingerprint(kind: str) -> None:
    records = {other: describe_base(tiny_model(other)) for other in KINDS}
    check_base(records[kind], tiny_model(kind))
    same = [other for other, record in records.items() if record["config"] == records[kind]["config"]]
    assert same == [kind]


def test_the_record_names_the_model() -> None:
    model = tiny_model(vocab_size=300)
    model.config.name_or_path = "owner/model"
    record = describe_base(model, tiny_tokenizer())
    assert set(record) == {"id", "revision", "config", "weights", "tokenizer", "adapter"}
    assert record["id"] == "owner/model"
    assert record["adapter"] is None
    assert record["weights"] == weights_fingerprint(model)
    assert record["tokenizer"] == tokenizer_fingerprint(tiny_tokenizer())


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("loaded", [torch.bfloat16, torch.float16])
def test_the_dtype_is_free(stored: torch.dtype, loaded: torch.dtype) -> None:
    model = tiny_model(vocab_size=300, initializer_range=0.02).to(stored)
    record = describe_base(model)
    check_base(record, model.to(loaded))


@pytest.mark.parametrize(("make", "part"), [(changed_config, "config"), (changed_weights, "weights")])
def test_another_model_is_refused(make: Callable[[], PreTrainedModel], part: str) -> None:
    record = describe_base(tiny_model(vocab_size=300)) | {"id": "owner/model"}
    with pytest.raises(InputError, match=f"trained for 'owner/model'.*has another {part}") as caught:
        check_base(record, make())
    assert "\n" not in str(caught.value)
    assert "polydraft train" in str(caught.value)


def with_tokens(*more: str) -> PreTrainedTokenizerFast:
    made = tiny_tokenizer()
    made.add_tokens(list(more))
    return made


def byte_order(swap: bool) -> PreTrainedTokenizerFast:
    """A tokenizer of a few tokens, two of them exchanged or not."""
    vocab = {"a": int(swap), "b": int(not swap), "c": 2}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(vocab=vocab, unk_token="c")))


def test_another_tokenizer_is_refused() -> None:
    model = tiny_model(vocab_size=300)
    check_base(describe_base(model, tiny_tokenizer()), model, tiny_tokenizer())
    check_base(describe_base(model, tiny_tokenizer()), model)
    for one, other in (
        (byte_order(swap=False), byte_order(swap=True)),
        (with_tokens("<one>"), with_tokens("<other>")),
        (with_tokens("<one>", "<two>"), with_tokens("<one>")),  # what is gone cannot be told from its hash
        (tiny_tokenizer(), byte_order(swap=False)),
    ):
        with pytest.raises(InputError, match="has another tokenizer"):
            check_base(describe_base(model, one), model, other)


@pytest.mark.parametrize("before", [(), ("<one>",)])
def test_tokens_added_since_make_no_other_tokenizer(before: tuple[str, ...]) -> None:
    """A pad token within padded rows, say: all tokens that were there are as they were."""
    model = tiny_model(vocab_size=300)
    record = describe_base(model, with_tokens(*before))
    for more in (["<more>"], [f"<{n}>" for n in range(30)]):
        check_base(record, model, with_tokens(*before, *more))
    grown = with_tokens(*before)
    grown.add_special_tokens({"pad_token": "<padding>"})
    check_base(record, model, grown)


def test_a_record_without_a_tokenizer_takes_any() -> None:
    model = tiny_model(vocab_size=300)
    check_base(describe_base(model), model, tiny_tokenizer())


def test_one_changed_row_in_the_sample_is_noticed() -> None:
    model = tiny_model()
    before = weights_fingerprint(model), config_fingerprint(model)
    with torch.no_grad():
        unembedding(model)[3].neg_()
    assert weights_fingerprint(model) != before[0]
    assert config_fingerprint(model) == before[1]


def test_a_model_without_unembedding_is_refused() -> None:
    model = AutoModel.from_config(tiny_model().config)
    with pytest.raises(InputError, match="no output embeddings: give a causal language model"):
        unembedding(model)
