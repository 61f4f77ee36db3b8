"""`collect --engine vllm`, with a stand-in that continues by `generate`: rows, settings, refusals."""

from __future__ import annotations

import importlib.util
import json
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from polydraft.errors import InputError
from polydraft.training.collect import CollectOptions, collect
from tests.tiny import tiny_model, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
EOS = 70
PROMPTS = [{"prompt": "x" * (i + 1) + str(i), "kind": "raw"} for i in range(9)]


@pytest.fixture
def model() -> PreTrainedModel:
    return tiny_model(vocab_size=len(TOKENIZER), eos_token_id=EOS)


@pytest.fixture
def vllm(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What was asked of the stand-in: `engine`, and `settings` of all requests."""
    asked = SimpleNamespace(engine={}, settings=[])

    class LLM:
        def __init__(self, **options: Any) -> None:
            asked.engine = options

        def generate(self, prompts: Any, settings: Any, *, use_tqdm: bool) -> list[Any]:
            asked.settings += settings
            return [self.one(p["prompt_token_ids"], s) for p, s in zip(prompts, settings, strict=True)]

        def one(self, ids: list[int], settings: Any) -> Any:
            generate: Any = model.generate
            (line,) = generate(
                torch.tensor([ids]), max_new_tokens=settings.max_tokens, do_sample=False, pad_token_id=0
            ).tolist()
            return SimpleNamespace(outputs=[SimpleNamespace(token_ids=tuple(line[len(ids) :]))])

    module = ModuleType("vllm")
    module.__spec__ = ModuleSpec("vllm", None)
    module.LLM, module.SamplingParams = LLM, SimpleNamespace  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", module)
    return asked


def rows(model: PreTrainedModel, out: Path, **changes: Any) -> list[dict[str, Any]]:
    options = CollectOptions(**({"max_new_tokens": 12, "batch_size": 4} | changes))
    collect(model, TOKENIZER, PROMPTS, out, options=options, source="/models/tiny")
    return [json.loads(line) for path in sorted(out.glob("shard-*.jsonl")) for line in path.open()]


def test_greedy_rows_are_those_of_transformers(
    model: PreTrainedModel, vllm: SimpleNamespace, tmp_path: Path
) -> None:
    found = rows(model, tmp_path / "vllm", engine="vllm", temperatures=(0.0,))
    assert found == rows(model, tmp_path / "plain", temperatures=(0.0,))
    assert len(found) == 9
    assert vllm.engine["model"] == "/models/tiny" and vllm.engine["dtype"] == "float32"
    assert vllm.engine["max_model_len"] == 10 + 12  # the longest prompt, and what is written after it
    recipe = json.loads((tmp_path / "vllm/recipe.json").read_text())
    assert recipe["engine"] == "vllm"


def test_requests_carry_temperature_seed_and_ends(
    model: PreTrainedModel, vllm: SimpleNamespace, tmp_path: Path
) -> None:
    rows(model, tmp_path, engine="vllm", temperatures=(0.0, 1.0), seed=3)
    assert [s.temperature for s in vllm.settings].count(1.0) == 4
    assert all((s.seed is None) == (s.temperature == 0.0) for s in vllm.settings)
    assert all(
        (s.top_p, s.top_k, s.max_tokens, s.stop_token_ids) == (1.0, 0, 12, [EOS]) for s in vllm.settings
    )


def test_no_two_texts_share_a_seed(model: PreTrainedModel, vllm: SimpleNamespace, tmp_path: Path) -> None:
    """Batches in a row have seeds in a row; those of their texts must not meet."""
    rows(model, tmp_path, engine="vllm", temperatures=(1.0,), seed=3)
    assert len({s.seed for s in vllm.settings}) == len(vllm.settings) == 9


def test_shards_of_another_engine_are_refused(
    model: PreTrainedModel, vllm: SimpleNamespace, tmp_path: Path
) -> None:
    rows(model, tmp_path)
    with pytest.raises(InputError, match="holds shards with engine transformers, not vllm"):
        rows(model, tmp_path, engine="vllm")


def test_a_model_that_penalises_is_refused(
    model: PreTrainedModel, vllm: SimpleNamespace, tmp_path: Path
) -> None:
    model.generation_config.repetition_penalty = 1.2
    model.generation_config.suppress_tokens = [3]
    with pytest.raises(InputError, match="sets repetition_penalty, suppress_tokens, which --engine vllm"):
        rows(model, tmp_path, engine="vllm")


def test_unknown_engines_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="engine must be one of transformers, vllm, got 'tgi'"):
        CollectOptions(engine="tgi")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="--engine vllm needs vLLM"):
        CollectOptions(engine="vllm")
