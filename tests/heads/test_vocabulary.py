"""The draft vocabulary: different tokens of the model, or the head is refused, wherever it comes from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from polydraft.errors import InputError, PolydraftError
from polydraft.heads import DraftHead
from polydraft.loading import load_head
from tests.tiny import tiny_head, tiny_model

SIZE = 20
Change = Callable[[Tensor], Tensor]


def put(token: int) -> Change:
    """Another id in the third place."""
    return lambda ids: ids.index_fill(0, torch.tensor([2]), token)


WRONG: dict[str, tuple[Change, str]] = {
    "twice": (
        lambda ids: torch.cat([ids[:-1], ids[:1]]),
        r"must be different tokens, got \d+ more than once",
    ),
    "beyond": (put(64), "must be token ids from 0 to 63, got 64: the head is damaged"),
    "below": (put(-3), "from 0 to 63, got -3"),
    "one unset": (put(-1), "from 0 to 63, got -1"),
    "too few": (lambda ids: ids[:-1], r"must be 20 token ids of int64, got shape \(19,\) of torch.int64"),
    "too many": (lambda ids: torch.arange(21), r"must be 20 token ids of int64, got shape \(21,\)"),
    "two axes": (lambda ids: ids.view(4, 5), r"must be 20 token ids of int64, got shape \(4, 5\)"),
}
wrong = pytest.mark.parametrize("name", WRONG)


def rewrite(folder: Path, **tensors: Tensor | None) -> None:
    """Put other tensors into a head's file; None takes one out."""
    whole = load_file(folder / "model.safetensors") | tensors
    kept = {name: value for name, value in whole.items() if value is not None}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


@wrong
def test_is_refused_by_attach(name: str) -> None:
    change, message = WRONG[name]
    model = tiny_model()
    head = tiny_head(model, draft_vocab_size=SIZE)
    head.draft_ids = change(head.draft_ids)
    with pytest.raises(InputError, match=message):
        head.attach(model)


@pytest.mark.parametrize("dtype", [torch.int32, torch.float32])
def test_of_another_dtype_is_refused_by_attach(dtype: torch.dtype) -> None:
    model = tiny_model()
    head = tiny_head(model, draft_vocab_size=SIZE)
    head.draft_ids = head.draft_ids.to(dtype)
    with pytest.raises(InputError, match=f"must be 20 token ids of int64, got shape .* of {dtype}"):
        head.attach(model)


@wrong
def test_is_refused_out_of_a_folder(name: str, tmp_path: Path) -> None:
    change, message = WRONG[name]
    model = tiny_model()
    head = tiny_head(model, draft_vocab_size=SIZE)
    head.save_pretrained(tmp_path)
    ids = change(head.draft_ids).contiguous()
    rewrite(tmp_path, draft_ids=ids)
    if ids.shape != (SIZE,):
        message = "is damaged: draft_ids is missing or has another shape"
    for load in (DraftHead.from_pretrained, lambda folder: load_head(str(folder), model=model)):
        with pytest.raises(InputError, match=message) as error:
            load(tmp_path)
        assert "\n" not in str(error.value)


def test_rounded_to_a_narrow_float_is_refused_where_tokens_fall_together(tmp_path: Path) -> None:
    head = tiny_head(tiny_model(vocab_size=258))
    head.save_pretrained(tmp_path)
    rewrite(tmp_path, draft_ids=head.draft_ids.to(torch.bfloat16))  # eight bits: 257 becomes 256
    with pytest.raises(InputError, match="must be different tokens, got 256 more than once"):
        DraftHead.from_pretrained(tmp_path)


def test_unset_is_kept_by_the_folder_and_refused_by_attach(tmp_path: Path) -> None:
    model = tiny_model()
    head = tiny_head(model, draft_vocab_size=SIZE)
    head.draft_ids.fill_(-1)
    head.save_pretrained(tmp_path)
    again = DraftHead.from_pretrained(tmp_path)
    with pytest.raises(PolydraftError, match=r"fill head\.draft_ids"):
        again.attach(model)


@pytest.mark.parametrize("name", ["draft_ids", "gate.bias"])
def test_what_a_folder_lacks_is_not_made_up(name: str, tmp_path: Path) -> None:
    tiny_head(tiny_model()).save_pretrained(tmp_path)
    rewrite(tmp_path, **{name: None})
    with pytest.raises(InputError, match=f"is damaged: {name} is missing"):
        DraftHead.from_pretrained(tmp_path)
