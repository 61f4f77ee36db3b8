"""A folder of shards: one recipe, identical documents once, loops counted; kills and full disks."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel

from polydraft.errors import InputError
from polydraft.heads.fingerprint import describe_base
from polydraft.training.collect import CollectOptions, collect
from polydraft.training.shards import conclude, is_loop, loop_length, without_loop
from polydraft.versions import versions
from tests.tiny import tiny_model, tiny_tokenizer

ROOT = Path(__file__).resolve().parents[2]
TOKENIZER = tiny_tokenizer()
PROMPTS = tuple({"prompt": text} for text in ("a", "abc", "hello", "x = 1", "zz", "q r s"))


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return tiny_model(vocab_size=len(TOKENIZER))


def make(model: PreTrainedModel, out: Path, **changes: Any) -> int:
    """`collect` of PROMPTS, three shards of two."""
    rest = {k: changes.pop(k) for k in ("worker", "run", "on_progress", "on_note") if k in changes}
    prompts = changes.pop("prompts", PROMPTS)
    options = CollectOptions(**({"max_new_tokens": 12, "batch_size": 2} | changes))
    return collect(model, TOKENIZER, prompts, out, options=options, **rest)


def files(out: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in out.iterdir() if path.name != "recipe.json"}


class TestRecipe:
    def test_holds_all_that_decides_the_text(self, model: PreTrainedModel, tmp_path: Path) -> None:
        make(model, tmp_path, run={"prompts": "a.jsonl", "command": "polydraft collect"})
        found = json.loads((tmp_path / "recipe.json").read_text())
        generation = found.pop("generation_config")
        assert generation.items() <= model.generation_config.to_dict().items()
        assert len(found.pop("prompts_hash")) == 32
        assert found == {
            "base_model": describe_base(model, TOKENIZER),
            "dtype": "float32",
            "temperatures": [0.0, 1.0],
            "max_new_tokens": 12,
            "max_prompt_tokens": 256,
            "batch_size": 2,
            "engine": "transformers",
            "loop_passages": 3,
            "seed": 0,
            "runs": [{"prompts": "a.jsonl", "command": "polydraft collect", "versions": versions()}],
        }

    def test_every_different_run_is_added_once(self, model: PreTrainedModel, tmp_path: Path) -> None:
        for command in ("first", "second", "first"):
            make(model, tmp_path, run={"command": command})
        runs = json.loads((tmp_path / "recipe.json").read_text())["runs"]
        assert [run["command"] for run in runs] == ["first", "second"]

    def test_another_one_is_refused(self, model: PreTrainedModel, tmp_path: Path) -> None:
        make(model, tmp_path)
        before = (tmp_path / "recipe.json").read_text(), files(tmp_path)
        other = tiny_model(vocab_size=len(TOKENIZER), seed=1)
        for refused, words in (
            (lambda: make(model, tmp_path, seed=1), "with seed 0, not 1"),
            (lambda: make(other, tmp_path), "by another model"),
            (lambda: make(model.double(), tmp_path), "in another dtype"),
            (lambda: make(model.float(), tmp_path, prompts=PROMPTS[:5]), "of other prompts"),
        ):
            with pytest.raises(InputError, match=f"holds shards {words}: choose another folder") as error:
                refused()
            assert "\n" not in str(error.value)
        assert ((tmp_path / "recipe.json").read_text(), files(tmp_path)) == before
        assert make(model, tmp_path) == 0

    def test_shards_without_one_are_refused(self, model: PreTrainedModel, tmp_path: Path) -> None:
        make(model, tmp_path)
        (tmp_path / "recipe.json").unlink()
        with pytest.raises(InputError, match=r"holds shards but no recipe\.json"):
            make(model, tmp_path)


class TestIdenticalDocuments:
    """Prompts that begin as the model itself would have gone on: greedily, their texts are all the same."""

    @pytest.fixture
    def nested(self) -> tuple[PreTrainedModel, list[dict[str, Any]]]:
        model = tiny_model(vocab_size=len(TOKENIZER))
        letters = {TOKENIZER(chr(i))["input_ids"][0] for i in range(33, 127)}
        others = [token for token in range(len(TOKENIZER)) if token not in letters]
        model.generation_config.suppress_tokens = others  # so that what is written can be a prompt
        start = torch.tensor([TOKENIZER("abc")["input_ids"]])
        text = model.generate(start, max_new_tokens=40, do_sample=False)[0].tolist()  # type: ignore[operator]
        stop = next(i for i in range(12, 40) if text[i] not in text[:i])
        model.generation_config.eos_token_id = text[stop]
        ends = (3, 5, 6, 8, 9)
        tokens = [TOKENIZER.decode(text[:end]) for end in ends]
        assert [TOKENIZER(part)["input_ids"] for part in tokens] == [text[:end] for end in ends]
        return model, [{"prompt": part} for part in tokens] + [{"prompt": "zz"}, {"prompt": "x = 1"}]

    def make(self, nested: tuple[PreTrainedModel, list[dict[str, Any]]], out: Path, **changes: Any) -> int:
        model, prompts = nested
        return make(model, out, prompts=prompts, temperatures=(0.0,), max_new_tokens=40, **changes)

    def test_are_kept_once_over_all_shards(self, nested: Any, tmp_path: Path) -> None:
        notes: list[str] = []
        self.make(nested, tmp_path, on_note=notes.append)
        rows = [json.loads(line) for f in sorted(tmp_path.glob("*.jsonl")) for line in f.open()]
        assert len(rows) == len({tuple(row["input_ids"]) for row in rows}) == 3
        summary = json.loads((tmp_path / "summary.json").read_text())
        assert (summary["documents"], summary["identical"]) == (3, 4)
        assert summary["tokens"] == sum(len(row["input_ids"]) - row["prompt_length"] for row in rows)
        assert notes == [
            f"3 documents, {summary['tokens']} tokens written; 4 identical documents dropped; "
            f"ending in a loop: {summary['looping']['0.0']:.1%} at temperature 0.0"
        ]

    def test_the_same_ones_after_kills_and_by_workers(self, nested: Any, tmp_path: Path) -> None:
        self.make(nested, tmp_path / "one")
        expected = files(tmp_path / "one")
        for lost in sorted((tmp_path / "one").glob("shard-*.jsonl")):
            lost.unlink()
            self.make(nested, tmp_path / "one")
            assert files(tmp_path / "one") == expected
        notes: list[str] = []
        for worker in (2, 0, 1):
            self.make(nested, tmp_path / "three", worker=(worker, 3), on_note=notes.append)
        assert files(tmp_path / "three") == expected
        assert notes[:2] == ["other workers are still writing"] * 2


def looped(tokens: Sequence[int]) -> int:
    """`loop_length` from its words: the longest end that is a passage, repeated, three times or more."""
    n = len(tokens)
    return max(
        (
            length
            for p in range(1, n // 3 + 1)
            for length in range(3 * p, n + 1)
            if all(tokens[n - 1 - i] == tokens[n - 1 - i % p] for i in range(length))
        ),
        default=0,
    )


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.integers(0, 2), max_size=12),
    st.lists(st.integers(0, 2), min_size=1, max_size=4),
    st.integers(0, 6),
)
def test_loops_are_what_their_words_say(start: list[int], passage: list[int], times: int) -> None:
    tokens = start + passage * times
    assert loop_length(tokens) == looped(tokens)


def test_loops_by_hand() -> None:
    varied = list(range(100, 140))
    assert loop_length(varied) == 0
    assert loop_length([*varied, 1, 2, 3, 1, 2, 3, 1, 2, 3, 1]) == 10
    assert loop_length([1, 2, 1, 2]) == 0  # only twice
    assert not is_loop([7] * 15)  # too short
    assert is_loop([7] * 16)
    assert is_loop([*varied[:16], *[7] * 16]) and not is_loop([*varied[:17], *[7] * 16])


def test_a_full_disk_leaves_whole_shards_and_the_run_goes_on(
    model: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(model, tmp_path / "whole")
    calls: list[int] = []

    def full(handle: int) -> None:
        calls.append(handle)
        if len(calls) == 3:  # recipe, first shard, second shard
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("polydraft.files.os.fsync", full)
        with pytest.raises(OSError, match="No space left"):
            make(model, tmp_path / "cut")
    names = sorted(path.name for path in (tmp_path / "cut").iterdir())
    assert names == [".lock", "recipe.json", "shard-00000.jsonl"]
    make(model, tmp_path / "cut")
    assert files(tmp_path / "cut") == files(tmp_path / "whole")


@pytest.mark.slow
def test_a_killed_run_goes_on(model: PreTrainedModel, tmp_path: Path) -> None:
    search = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    killed = subprocess.run(
        [sys.executable, "-m", "tests.training.test_shards", str(tmp_path / "cut")],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": search},
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    names = sorted(path.name for path in (tmp_path / "cut").iterdir() if path.suffix == ".jsonl")
    assert names == ["shard-00000.jsonl"]
    stale = tmp_path / "cut" / ".shard-00001.jsonl.x"
    stale.write_text("{")
    make(model, tmp_path / "cut")
    make(model, tmp_path / "whole")
    assert files(tmp_path / "cut") == files(tmp_path / "whole")


def test_a_damaged_shard_is_named(model: PreTrainedModel, tmp_path: Path) -> None:
    make(model, tmp_path)
    path = tmp_path / "shard-00001.jsonl"
    whole = path.read_text()
    path.write_text(whole[:-9])
    with pytest.raises(InputError, match=r"shard-00001\.jsonl is damaged: remove it and run again"):
        make(model, tmp_path)
    path.unlink()
    make(model, tmp_path)
    assert path.read_text() == whole


def test_nothing_is_concluded_while_shards_are_missing(model: PreTrainedModel, tmp_path: Path) -> None:
    make(model, tmp_path, worker=(0, 2))
    assert conclude(tmp_path, shards=3, documents=6) is None
    assert not (tmp_path / "summary.json").exists()


def kill(done: int, total: int, tokens: int) -> None:
    """As the kernel does when memory runs out."""
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":  # out: a run that kills itself after its first shard
    torch.set_num_threads(1)
    make(tiny_model(vocab_size=len(TOKENIZER)), Path(sys.argv[1]), on_progress=kill)


def row(written: list[int]) -> dict[str, Any]:
    return {"input_ids": [9, 8, *written], "prompt_length": 2, "temperature": 0.0}


@pytest.mark.parametrize(
    ("written", "passages", "left"),
    [
        pytest.param([5, *[1, 2, 3] * 7], 3, [5, *[1, 2, 3] * 3], id="whole passages"),
        pytest.param([5, *[1, 2, 3] * 7, 1], 2, [5, *[1, 2, 3] * 2], id="and a part of one"),
        pytest.param([7] * 40, 3, [7] * 3, id="a single token"),
        pytest.param([7] * 40, 0, [7] * 40, id="0 keeps all"),
        pytest.param([5, *[1, 2, 3] * 5], 3, [5, *[1, 2, 3] * 5], id="15 tokens are no loop"),
        pytest.param([*[1, 2, 3] * 7, 5], 3, [*[1, 2, 3] * 7, 5], id="a loop that the text leaves"),
        pytest.param([*range(20), 1, 2] * 2, 3, [*range(20), 1, 2] * 2, id="twice is no loop"),
        pytest.param([*range(20)] * 3, 5, [*range(20)] * 3, id="fewer passages than may stay"),
    ],
)
def test_a_loop_is_cut(written: list[int], passages: int, left: list[int]) -> None:
    found = without_loop(row(written), passages=passages)
    assert found["input_ids"] == [9, 8, *left]
    assert found.get("looped", False) == (len(left) < len(written) and is_loop(written))


def test_a_short_loop_after_a_long_text_is_cut_and_not_counted() -> None:
    text = [*range(100, 160), *[1, 2] * 10]
    assert not is_loop(text)
    assert without_loop(row(text), passages=3) == row([*range(100, 160), *[1, 2] * 3])


def test_cut_loops_are_counted_as_written(tmp_path: Path) -> None:
    """A model that knows one token only: the folder says that all loops, and holds little of it."""
    model = tiny_model(vocab_size=len(TOKENIZER))
    model.generation_config.suppress_tokens = [token for token in range(len(TOKENIZER)) if token != 4]
    model.generation_config.eos_token_id = None
    for name, passages in (("whole", 0), ("cut", 3)):
        make(model, tmp_path / name, temperatures=(0.0,), max_new_tokens=40, loop_passages=passages)
    whole, cut = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("whole", "cut"))
    assert whole["looping"] == cut["looping"] == {"0.0": 1.0}
    assert (whole["tokens"], cut["tokens"]) == (40 * whole["documents"], 3 * whole["documents"])
