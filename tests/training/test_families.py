"""Every member, a sixth one included: trained for some steps, saved, loaded, and decoded with."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import polydraft
from polydraft.decoding import DecodingStatistics
from polydraft.heads import DraftConfig, DraftHead
from polydraft.joint import MEMBERS, member
from polydraft.loading import load_model
from tests.joint.members import MIXTURES
from tests.joint.toy import TOY, registered
from tests.tiny import tiny_folder
from tests.training.runs import run

NEW_TOKENS = 32
DAILY = (("fused", "cp"), ("hidden", "cp-markov"), ("block", "recurrent"))
FORMS = (
    *((features, name) for name in MIXTURES for features in ("fused", "hidden")),
    *(("fused", "sequential"), ("block", "recurrent")),
)
PROMPTS = ([5, 6, 7, 8], [70, 20, 30], [9])


@pytest.fixture(autouse=True)
def _toy() -> Iterator[None]:
    with registered():
        yield


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    folder = tiny_folder(tmp_path_factory.mktemp("model") / "tiny")
    return load_model(str(folder), dtype=torch.float32)


@pytest.fixture(scope="module")
def model(base: tuple[PreTrainedModel, PreTrainedTokenizerBase]) -> PreTrainedModel:
    return base[0]


@pytest.fixture(scope="module")
def texts(model: PreTrainedModel) -> list[Tensor]:
    """The base model's own greedy text after each prompt."""
    options: dict[str, Any] = {"max_new_tokens": NEW_TOKENS, "do_sample": False}
    return [model.generate(torch.tensor([prompt]), **options)[0] for prompt in PROMPTS]


@pytest.fixture(scope="module")
def data(texts: list[Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """These texts, to be learnt by heart."""
    path = tmp_path_factory.mktemp("data") / "own.jsonl"
    rows = [{"input_ids": text.tolist(), "prompt_length": 1} for text in texts]
    path.write_text("".join(json.dumps(row) + "\n" for row in 4 * rows))
    return path


def train(data: Path, out: Path, model: PreTrainedModel, name: str, **changes: Any) -> DraftHead:
    rank = 1 if member(name).single else 3
    common = {"steps": 30, "every": 30, "max_length": 40, "draft_vocab_size": 128, "markov_rank": 8}
    options: dict[str, Any] = common | {"rank": rank, "horizon": 3, "loss": "joint"} | changes
    return run(data, out, model=model, joint=name, **options)


def check_greedy(model: PreTrainedModel, head: DraftHead, texts: list[Tensor], **modes: str) -> float:
    """Drafted text equals the base model's; returns the mean acceptance length."""
    found = []
    for prompt, text in zip(PROMPTS, texts, strict=True):
        ids = torch.tensor([prompt])
        out = polydraft.generate(model, head, ids, max_new_tokens=NEW_TOKENS, do_sample=False, **modes)
        assert torch.equal(out.sequences[0], text)
        found.append(out.statistics)
    return DecodingStatistics.merged(found).mean_acceptance_length


@pytest.mark.parametrize(
    ("features", "name"),
    [form if form in DAILY else pytest.param(*form, marks=pytest.mark.slow) for form in FORMS],
)
def test_trains_and_decodes(
    model: PreTrainedModel, texts: list[Tensor], data: Path, tmp_path: Path, name: str, features: str
) -> None:
    train(data, tmp_path / "head", model, name, features=features, learning_rate=2e-2)
    head = DraftHead.from_pretrained(tmp_path / "head")
    assert isinstance(head, DraftHead)
    assert head.config.joint == name
    assert all(parameter.isfinite().all() for parameter in head.parameters())
    fresh = DraftHead(head.config).eval()
    fresh.draft_ids.copy_(head.draft_ids)
    before, after = (check_greedy(model, h, texts) for h in (fresh, head))
    assert after > before


@pytest.mark.parametrize("name", [name for name in MIXTURES if name not in ("independent", "markov")])
def test_with_every_craft(
    model: PreTrainedModel, texts: list[Tensor], data: Path, tmp_path: Path, name: str
) -> None:
    craft = {"z_loss": 0.01, "gate_noise": 0.5, "components": 2, "anchors_per_window": 8, "balance": 0.1}
    one = train(data, tmp_path / "one", model, "independent", steps=4)
    head = train(data, tmp_path / "head", model, name, init_from=one, steps=4, **craft)
    assert head.config.components == 2
    check_greedy(model, head.eval(), texts)


def test_the_toy_is_unknown_once_it_is_gone(model: PreTrainedModel) -> None:
    found = MEMBERS.pop(TOY)
    with pytest.raises(polydraft.InputError, match=r"joint must be one of .*got 'switch'"):
        DraftConfig(joint=TOY)
    MEMBERS[TOY] = found
