"""The model's own text: rows, shards, resuming, workers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel
from transformers.generation.logits_process import TemperatureLogitsWarper

from polydraft.errors import InputError
from polydraft.training.collect import CollectOptions, batches, collect, encode_prompt, parse_worker
from polydraft.training.data import Document, read_documents, take_documents
from polydraft.training.temperatures import sampling_arguments
from tests.tiny import tiny_model, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
EOS = 70
PROMPTS: tuple[dict[str, Any], ...] = (
    *({"prompt": "x" * (i + 1) + str(i), "kind": "raw"} for i in range(9)),
    {"messages": [{"role": "user", "content": "hi"}]},
)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return tiny_model(vocab_size=len(TOKENIZER), eos_token_id=EOS)


def make(model: PreTrainedModel, out: Path, **changes: Any) -> int:
    """`collect` of PROMPTS with small defaults."""
    rest = {k: changes.pop(k) for k in ("worker", "run", "on_progress", "on_note") if k in changes}
    prompts = changes.pop("prompts", PROMPTS)
    options = CollectOptions(**({"max_new_tokens": 12, "batch_size": 4} | changes))
    return collect(model, TOKENIZER, prompts, out, options=options, **rest)


def test_prompts_that_cannot_be_written_from_are_refused(model: PreTrainedModel, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="all prompts are empty"):
        make(model, tmp_path, prompts=[{"prompt": ""}])
    with pytest.raises(InputError, match="come to 602 tokens, the model takes 512: write fewer"):
        make(model, tmp_path, prompts=[{"prompt": "ab"}], max_new_tokens=600)
    assert list(tmp_path.iterdir()) == []
    plain = tiny_tokenizer()
    plain.chat_template = None
    with pytest.raises(InputError, match="no chat template"):
        encode_prompt(PROMPTS[-1], plain)


def test_a_tokenizer_without_pad_or_end_will_do(model: PreTrainedModel, tmp_path: Path) -> None:
    plain = tiny_tokenizer()
    plain.pad_token = plain.eos_token = None
    options = CollectOptions(max_new_tokens=12, batch_size=4)
    collect(model, plain, PROMPTS[:-1], tmp_path / "a", options=options)
    collect(model, TOKENIZER, PROMPTS[:-1], tmp_path / "b", options=options)
    assert shards(tmp_path / "a") == shards(tmp_path / "b")


def shards(out: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted(out.glob("shard-*.jsonl"))}


def rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for text in shards(out).values() for line in text.splitlines()]


def test_rows_are_as_documented(model: PreTrainedModel, tmp_path: Path) -> None:
    written = make(model, tmp_path, temperatures=(0.0, 1.0))
    assert list(shards(tmp_path)) == [f"shard-{i:05d}.jsonl" for i in range(3)]
    found = rows(tmp_path)
    assert len(found) == len(PROMPTS)
    prompts = [encode_prompt(row, TOKENIZER) for row in PROMPTS]
    assert sorted(row["input_ids"][: row["prompt_length"]] for row in found) == sorted(prompts)
    assert {row["temperature"] for row in found} == {0.0, 1.0}
    assert [row.get("kind") for row in found].count("raw") == 9
    assert all(set(row) <= {"input_ids", "prompt_length", "temperature", "kind"} for row in found)
    assert written == sum(len(row["input_ids"]) - row["prompt_length"] for row in found)


def test_train_reads_it(model: PreTrainedModel, tmp_path: Path) -> None:
    make(model, tmp_path)
    assert sorted(read_documents([tmp_path], TOKENIZER), key=str) == sorted(
        (Document(row["input_ids"], row["prompt_length"], row["temperature"]) for row in rows(tmp_path)),
        key=str,
    )


def test_greedy_rows_equal_each_prompt_alone(model: PreTrainedModel, tmp_path: Path) -> None:
    make(model, tmp_path, temperatures=(0.0,), max_new_tokens=24, loop_passages=0)
    for row in rows(tmp_path):
        prompt = torch.tensor([row["input_ids"][: row["prompt_length"]]])
        alone = model.generate(  # type: ignore[operator]
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=24, do_sample=False, pad_token_id=0
        )
        assert row["input_ids"] == alone[0].tolist()


def test_prompts_of_one_batch_take_the_temperatures_in_turn(model: PreTrainedModel, tmp_path: Path) -> None:
    make(model, tmp_path, temperatures=(0.0, 0.7, 1.0), batch_size=4, max_new_tokens=24, loop_passages=0)
    found = rows(tmp_path)
    assert [row["temperature"] for row in found] == [(0.0, 0.7, 1.0)[i % 3] for i in range(len(PROMPTS))]
    for row in found:
        prompt = torch.tensor([row["input_ids"][: row["prompt_length"]]])
        alone = model.generate(  # type: ignore[operator]
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=24, do_sample=False, pad_token_id=0
        )
        assert (row["input_ids"] == alone[0].tolist()) == (row["temperature"] == 0)


def test_rows_are_divided_by_their_temperature() -> None:
    scores = torch.randn(4, 9)
    scores[2, 3] = scores[2, 5] = scores[2].max() + 1
    temperatures = [0.5, 1.0, 0.0, 2.0]
    processors = sampling_arguments(temperatures, torch.device("cpu"))["logits_processor"]
    found = processors(torch.zeros(4, 1, dtype=torch.long), scores)
    for row, temperature in enumerate(temperatures):
        if temperature:
            assert torch.equal(found[row], TemperatureLogitsWarper(temperature)(None, scores[row]))
        else:
            assert found[row].softmax(-1).tolist() == [
                0.0,
                0.0,
                0.0,
                1.0,
                0.0,
                0.0,
                0.0,
                0.0,
                0.0,
            ]  # the first


def test_ids_of_rows_beyond_the_tokenizer_are_read_by_train(tmp_path: Path) -> None:
    padded = tiny_model(vocab_size=len(TOKENIZER) + 200)
    make(padded, tmp_path, temperatures=(1.0,))
    assert max(token for row in rows(tmp_path) for token in row["input_ids"]) >= len(TOKENIZER)
    assert len(take_documents([tmp_path], padded, TOKENIZER)) == len(PROMPTS)


def test_text_ends_with_its_first_end_token(model: PreTrainedModel, tmp_path: Path) -> None:
    make(model, tmp_path, temperatures=(3.0,), max_new_tokens=200, loop_passages=0)
    texts = [row["input_ids"][row["prompt_length"] :] for row in rows(tmp_path)]
    ended = [text for text in texts if len(text) < 200]
    assert len(ended) >= 2
    assert all(text.index(EOS) == len(text) - 1 for text in ended)
    assert not any(EOS in text[:-1] for text in texts)


def test_a_model_without_end_tokens_writes_to_the_limit(tmp_path: Path) -> None:
    make(tiny_model(vocab_size=len(TOKENIZER)), tmp_path)
    assert {len(row["input_ids"]) - row["prompt_length"] for row in rows(tmp_path)} == {12}


def test_only_missing_shards_are_made_again(model: PreTrainedModel, tmp_path: Path) -> None:
    make(model, tmp_path)
    before = shards(tmp_path)
    (tmp_path / "shard-00001.jsonl").unlink()
    kept = (tmp_path / "shard-00000.jsonl").stat().st_mtime_ns
    written = make(model, tmp_path)
    lost = [json.loads(line) for line in before["shard-00001.jsonl"].splitlines()]
    assert written == sum(len(row["input_ids"]) - row["prompt_length"] for row in lost)
    assert shards(tmp_path) == before
    assert (tmp_path / "shard-00000.jsonl").stat().st_mtime_ns == kept
    assert make(model, tmp_path) == 0


def test_two_workers_together_equal_one(model: PreTrainedModel, tmp_path: Path) -> None:
    make(model, tmp_path / "one")
    make(model, tmp_path / "two", worker=(1, 2), run={"command": "second"})
    assert list(shards(tmp_path / "two")) == ["shard-00001.jsonl"]
    make(model, tmp_path / "two", worker=(0, 2), run={"command": "first"})
    assert shards(tmp_path / "two") == shards(tmp_path / "one")


def test_the_seed_fixes_the_text(model: PreTrainedModel, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        make(model, tmp_path / name, temperatures=(1.0,), seed=seed)
        torch.rand(1)
    assert shards(tmp_path / "a") == shards(tmp_path / "b") != shards(tmp_path / "c")


def test_duplicates_and_empty_prompts_are_dropped() -> None:
    doubled = [*PROMPTS, *PROMPTS, {"prompt": ""}]
    cut = batches(doubled, TOKENIZER, CollectOptions(batch_size=4))
    assert sorted(len(batch) for batch in cut) == [2, 4, 4]
    assert sum(len(batch) for batch in cut) == len(PROMPTS)


def test_long_prompts_keep_their_end_and_batches_have_like_lengths() -> None:
    prompts = [{"prompt": chr(97 + i) * n} for i, n in enumerate((100, 3, 40, 100, 4, 41))]
    cut = batches(prompts, TOKENIZER, CollectOptions(batch_size=2, max_prompt_tokens=64))
    assert sorted(sorted(len(ids) for ids, _ in batch) for batch in cut) == [[3, 4], [40, 41], [64, 64]]


def test_progress_counts_batches_and_tokens(model: PreTrainedModel, tmp_path: Path) -> None:
    calls: list[tuple[int, int, int]] = []
    written = make(model, tmp_path, on_progress=lambda *call: calls.append(call))
    assert [call[:2] for call in calls] == [(1, 3), (2, 3), (3, 3)]
    assert calls[-1][2] == written > 0


@pytest.mark.parametrize("text", ["", "1", "2/2", "0/0", "-1/2", "a/b", "1/2/3", "1 / 2", "²/3", "0.5/2"])
def test_bad_workers(text: str) -> None:
    with pytest.raises(InputError, match="worker must be I/M with I below M"):
        parse_worker(text)


def test_workers() -> None:
    assert parse_worker("0/1") == (0, 1)
    assert parse_worker("3/12") == (3, 12)


@pytest.mark.parametrize(
    "changes",
    [{"max_new_tokens": 0}, {"batch_size": 0}, {"max_prompt_tokens": 0}, {"temperatures": (0.0, -1.0)},
     {"temperatures": ()}, {"loop_passages": -1}],
)  # fmt: skip
def test_bad_options(changes: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(changes))):
        CollectOptions(**changes)
