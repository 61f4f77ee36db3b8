"""`polydraft collect` and `polydraft train` as a user meets them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from polydraft.cli import app
from polydraft.heads import DraftHead
from tests.tiny import tiny_folder
from tests.training.runs import write_corpus

SMALL = (
    "--joint cp --rank 2 --horizon 2 --feature-size 16 --map-rank 4 --draft-vocab-size 32".split()
    + "--steps 4 --every 2".split()
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("model") / "tiny", eos_token_id=2)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "corpus.jsonl")


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    rows = [{"prompt": f"text {i}", "kind": "raw"} for i in range(5)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def polydraft(*args: str | Path) -> Result:
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, [str(arg) for arg in args])


def expect_error(result: Result, fragment: str) -> None:
    """Exit code 2; of the lines on stderr, one is an error and it is the last."""
    lines = result.stderr.splitlines()
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert [line.startswith("error: ") for line in lines] == [False] * (len(lines) - 1) + [True]
    assert fragment in lines[-1]
    assert "Traceback" not in result.stderr


def train(model: Path, data: Path, out: Path, *more: str | Path) -> Result:
    return polydraft(
        "train", "--model", model, "--data", data, "--out", out, *SMALL, "--dtype", "float32", *more
    )


def collect(model: Path, prompts: Path, out: Path, *more: str | Path) -> Result:
    common = ("--max-new-tokens", "8", "--batch-size", "2", "--dtype", "float32")
    return polydraft("collect", "--model", model, "--prompts", prompts, "--out", out, *common, *more)


def test_train_writes_a_head_and_a_picture(model: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "head"
    result = train(model, data, out)
    assert result.exit_code == 0, result.output
    assert result.stdout == ""
    assert "windows held out" in result.stderr
    assert "step 4, held out: nll " in result.stderr
    assert f"head in {out}" in result.stderr
    assert DraftHead.from_pretrained(out).config.rank == 2
    assert (out / "training.png").read_bytes().startswith(b"\x89PNG")
    assert "library_name: polydraft" in (out / "README.md").read_text()
    assert [row["step"] for row in json.loads((out / "training.json").read_text())["history"]][-1] == 4
    inspected = polydraft("inspect", out)
    assert inspected.exit_code == 0, inspected.output


def test_train_grows_a_head_from_cached_states(model: Path, data: Path, tmp_path: Path) -> None:
    cache = ("--cache-hidden", tmp_path / "cache")
    first = train(model, data, tmp_path / "two", *cache)
    assert first.exit_code == 0, first.output
    assert "hidden states in" in first.stderr
    grown = train(model, data, tmp_path / "four", *cache, "--rank", "4", "--init-from", tmp_path / "two")
    assert grown.exit_code == 0, grown.output
    assert DraftHead.from_pretrained(tmp_path / "four").config.rank == 4


@pytest.mark.parametrize(
    ("more", "fragment"),
    [
        (("--rank", "0"), "rank must be"),
        (("--horizon", "0"), "horizon must be"),
        (("--loss", "other"), "loss must be one of joint, distill"),
        (("--joint", "tt"), "joint must be one of cp"),
        (("--features", "none"), "features must be one of"),
        (("--held-out", "2"), "between 0 and 1"),
        (("--dtype", "int8"), "int8"),
        (("--init-from", "./none"), "./none"),
        (("--resume",), "holds no training run to resume"),
    ],
)
def test_train_refuses_bad_options(
    model: Path, data: Path, tmp_path: Path, more: tuple[str, ...], fragment: str
) -> None:
    expect_error(train(model, data, tmp_path / "head", *more), fragment)
    assert not (tmp_path / "head").exists()


def test_train_refuses_bad_data_and_folders(model: Path, data: Path, tmp_path: Path) -> None:
    expect_error(train(model, tmp_path / "none", tmp_path / "head"), "no such file or folder")
    (tmp_path / "one.txt").write_text("a single text")
    expect_error(train(model, tmp_path / "one.txt", tmp_path / "head"), "one single document")
    expect_error(train(tmp_path / "none", data, tmp_path / "head"), "no model folder at")
    expect_error(train(model, data, tmp_path), "is not empty")


def test_collect_writes_shards_that_train_reads(model: Path, prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "text"
    result = collect(model, prompts, out, "--temperature", "1")
    assert result.exit_code == 0, result.output
    assert result.stdout == ""
    assert len(list(out.glob("shard-*.jsonl"))) == 3
    recipe = json.loads((out / "recipe.json").read_text())
    assert recipe["base_model"]["id"] == str(model)
    assert recipe["runs"][0]["prompts"] == str(prompts)
    assert "5 documents, " in result.stderr
    assert recipe["temperatures"] == [1.0]
    again = collect(model, prompts, out, "--temperature", "1")
    assert again.exit_code == 0, again.output
    trained = train(model, out, tmp_path / "head")
    assert trained.exit_code == 0, trained.output


def test_collect_workers_share_the_work(model: Path, prompts: Path, tmp_path: Path) -> None:
    for worker, shards in (("0/2", 2), ("1/2", 3)):
        result = collect(model, prompts, tmp_path / "text", "--worker", worker)
        assert result.exit_code == 0, result.output
        assert len(list((tmp_path / "text").glob("shard-*.jsonl"))) == shards


@pytest.mark.parametrize(
    ("more", "fragment"),
    [
        (("--worker", "2/2"), "worker must be I/M"),
        (("--temperature", "-1"), "temperatures must be 0 or more"),
        (("--batch-size", "0"), "batch_size must be at least 1"),
        (("--max-new-tokens", "0"), "max_new_tokens must be at least 1"),
        (("--prompts", "none.jsonl"), "none.jsonl: no such file"),
    ],
)
def test_collect_refuses_bad_options(
    model: Path, prompts: Path, tmp_path: Path, more: tuple[str, ...], fragment: str
) -> None:
    expect_error(collect(model, prompts, tmp_path / "text", *more), fragment)
    assert not (tmp_path / "text").exists()


def test_data_takes_several_paths(model: Path, data: Path, tmp_path: Path) -> None:
    extra = tmp_path / "extra.txt"
    extra.write_text("one more document, " * 20)
    both = polydraft("train", "--model", model, "--out", tmp_path / "a", *SMALL, "--data", data, extra)
    repeated = polydraft(
        "train", "--model", model, "--data", data, "--data", extra, "--out", tmp_path / "b", *SMALL
    )
    assert both.exit_code == repeated.exit_code == 0, both.output + repeated.output
    first, second = (json.loads((tmp_path / name / "training.json").read_text()) for name in "ab")
    assert first["data"] == second["data"]
    missing = polydraft(
        "train", "--data", data, tmp_path / "none.txt", "--model", model, "--out", tmp_path / "c"
    )
    expect_error(missing, "none.txt: no such file or folder")
