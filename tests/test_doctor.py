"""`polydraft doctor`: what it measures, what it concludes, what it says."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from math import log
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel
from typer.testing import CliRunner, Result

import polydraft
from polydraft.bench import bandwidth, doctor
from polydraft.bench.advice import advice, verdict
from polydraft.bench.bandwidth import forward_bytes, memory_bandwidth
from polydraft.bench.diagnosis import Diagnosis
from polydraft.bench.doctor import TREE_NODES, WIDTHS
from polydraft.cli import app
from polydraft.decoding import measuring, plan
from polydraft.decoding.costs import Costs, load_costs, machine_key, save_costs
from polydraft.decoding.refusals import takes_trees
from polydraft.decoding.statistics import DecodingStatistics
from polydraft.heads import DraftHead
from polydraft.loading import load_head, load_model
from tests.tiny import tiny_folder, tiny_head, tiny_model

HORIZON = 3


def diagnosis(
    histogram: list[int], *, forward: tuple[float, ...], drafting: float = 0.005, rows: int = 1
) -> Diagnosis:
    """Of a forward over 1..4 tokens, and cycles of 3 drafts of which i were kept `histogram[i]` times."""
    statistics = DecodingStatistics()
    for kept, times in enumerate(histogram):
        for _ in range(times):
            statistics.count(drafted=HORIZON, accepted=kept)
    return Diagnosis(
        rows=rows,
        horizon=HORIZON,
        drafting="chain",
        compiling=None,
        bandwidth=10e9,
        weight_bytes=200_000_000,
        costs=Costs(
            {(rows, width): seconds for width, seconds in enumerate(forward, start=1)},
            {(rows, length): drafting for length in range(1, HORIZON + 1)},
        ),
        statistics=statistics,
        tried=HORIZON,
        prompts=2,
        new_tokens=100,
        temperature=0.0,
    )


GOOD = diagnosis([10, 10, 10, 70], forward=(0.05, 0.055, 0.055, 0.06))


def of_trees(histogram: list[int], *, drafting: float, compiling: float | None = None) -> Diagnosis:
    """As `diagnosis`, of trees of 4 nodes and up to 17 tokens a forward, 50 ms for one and 60 for more."""
    chains = diagnosis(histogram, forward=(0.05, 0.06, 0.06, 0.06))
    costs = Costs(
        {(1, width): 0.05 if width == 1 else 0.06 for width in (1, 2, 17)},
        {(1, 1): drafting, (1, 16): 2 * drafting},
    )
    return replace(chains, drafting="tree", tried=4, costs=costs, compiling=compiling)


def test_a_diagnosis_follows_from_what_was_measured() -> None:
    assert GOOD.acceptance == pytest.approx([0.9, 80 / 90, 70 / 80])
    assert GOOD.limit_seconds == 0.02
    assert GOOD.tokens[3] == pytest.approx((10 * 1 + 10 * 2 + 10 * 3 + 70 * 4) / 100)
    assert GOOD.ratios == pytest.approx({0: 1.0, 1: 1.9 / 1.2, 2: 2.7 / 1.2, 3: 3.4 / 1.3})
    assert GOOD.best == 3
    none = diagnosis([10], forward=(0.05, 0.055, 0.055, 0.06))
    assert none.acceptance == [0.0, 0.0, 0.0]
    assert none.best == 0


def test_trees_are_reckoned_from_those_that_were_tried() -> None:
    """1.5 drafts kept of 4 nodes, where usual trees keep 0.46 + 0.305 ln 4."""
    found = of_trees([20, 30, 30, 20], drafting=0.005)
    assert list(found.tokens) == [0, 1, 2, 3, 4, 6, 8, 12, 16]
    factor = 1.5 / (0.46 + 0.305 * log(4))
    assert found.tokens[0] == 1.0
    assert found.tokens[4] == pytest.approx(2.5)
    assert found.tokens[16] == pytest.approx(1 + factor * (0.46 + 0.305 * log(16)))
    assert found.ratios[16] == pytest.approx(found.tokens[16] / 1.4)  # 60 + 10 ms for 50
    assert found.ratios[4] == pytest.approx(2.5 / ((60 + 5 * (1 + 3 / 15)) / 50))
    assert found.best == 16


def test_the_verdict_on_trees() -> None:
    said = " ".join(advice(of_trees([20, 30, 30, 20], drafting=0.005)))
    assert (
        "Expect about 2.30x the speed of plain decoding: 20.0 tokens/s become 46.0, with a tree of 16" in said
    )
    assert "Checking a tree of 4 nodes makes a forward 1.20 times as long" in said
    assert "making it takes 12% of one" in said
    assert "Trees of 4 nodes give 2.50 tokens a step (2 prompts, 100 tokens, greedy)" in said
    expensive = verdict(of_trees([90, 10], drafting=0.05))
    assert (
        "does not pay here: a tree of 1 node a step has to give 2.20 tokens to be worth its time" in expensive
    )
    assert "and gives 1.05" in expensive
    assert "Drafting is expensive here: one draft takes 100% of a forward pass" in expensive


def test_compiled_drafting_is_compared_with_compiled_plain_decoding() -> None:
    found = of_trees([20, 30, 30, 20], drafting=0.005, compiling=1.2)
    plain = of_trees([20, 30, 30, 20], drafting=0.005)
    assert found.eager_seconds == pytest.approx(0.06)
    assert found.ratios == plain.ratios
    assert found.eager_ratios == pytest.approx({size: 1.2 * ratio for size, ratio in plain.ratios.items()})
    said = advice(found)
    assert said[0].startswith(
        "Expect about 2.30x the speed of plain decoding, compiled too: 20.0 tokens/s become 46.0"
    )
    assert "Compiling alone makes plain decoding 1.20x as fast: a step takes 50 ms, not 60 ms" in said[1]
    assert "Compiling and drafting give 2.76x the speed of plain decoding that is not compiled." in said[1]
    assert "A plain step, compiled, reads 200.0 MB" in said[2]
    assert "takes 50 ms: 40% of the speed" in said[2]
    useless = of_trees([100], drafting=0.005, compiling=1.2)
    assert useless.best == 0
    assert useless.speed_up == 1.0
    assert "Drafting does not pay" in advice(useless)[0]
    assert advice(useless)[1].endswith("not 60 ms.")
    slower = advice(replace(found, compiling=0.8))
    assert "Compiling does not pay here: a plain step takes 50 ms compiled, 40 ms otherwise" in slower[1]


def test_the_verdict_names_the_speed_and_the_figures_behind_it() -> None:
    said = " ".join(advice(GOOD))
    assert "Expect about 2.62x the speed of plain decoding: 20.0 tokens/s become 52.3, with 3 drafts" in said
    assert "reads 200.0 MB of weights, 20 ms at the 10 GB/s" in said
    assert "takes 50 ms: 40% of the speed that memory allows" in said
    assert "Checking 3 drafts makes a forward 1.20 times as long" in said
    assert "making them takes 10% of one" in said
    assert "90%, 89%, 87% are kept" in said
    assert "3.40 tokens (2 prompts, 100 tokens, greedy)" in said


def test_figures_that_cannot_be_are_blamed_on_other_work() -> None:
    assert "busy" not in " ".join(advice(GOOD))
    assert "Other work kept this machine busy" in " ".join(advice(replace(GOOD, bandwidth=1e9)))


def test_where_it_does_not_pay_the_verdict_says_why() -> None:
    weak = verdict(diagnosis([95, 5], forward=(0.05, 0.055, 0.055, 0.06)))
    assert "does not pay here: a single draft a step has to be kept in 20% of the steps" in weak
    assert "and 5% are" in weak
    assert "guesses right too seldom" in weak
    expensive = verdict(diagnosis([50, 20, 20, 10], forward=(0.05, 0.1, 0.15, 0.2), rows=8))
    assert (
        "Verification is expensive here: each extra token adds 100% to a forward pass. Try a smaller batch"
        in expensive
    )
    slow = verdict(diagnosis([50, 20, 20, 10], forward=(0.05, 0.05, 0.05, 0.05), drafting=0.06))
    assert "Drafting is expensive here: one draft takes 120% of a forward pass" in slow
    hardly = verdict(diagnosis([79, 21], forward=(0.05, 0.055, 0.06, 0.07)))
    assert "hardly pays here: expect 1.01x" in hardly


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2"])
def test_a_forward_reads_what_it_multiplies_by(kind: str) -> None:
    """Embeddings of its own are looked up; tied ones are the unembedding as well."""
    model = tiny_model(kind)
    tied = kind != "llama"
    expected = 4 * sum(p.numel() for p in model.parameters())
    if not tied:
        expected -= 4 * model.get_input_embeddings().weight.numel()
    assert forward_bytes(model) == expected
    assert forward_bytes(model.to(torch.bfloat16)) == expected // 2


def test_bandwidth_counts_what_is_read_and_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bandwidth, "shortest", lambda actions, **_: [0.4, 0.5])
    assert memory_bandwidth(torch.device("cpu"), buffer_bytes=4000) == pytest.approx(2 * 4000 / 0.5)
    monkeypatch.undo()
    assert memory_bandwidth(torch.device("cpu"), buffer_bytes=2**20) > 1e6


@pytest.fixture
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """`--model`, `--head` and `--prompts` of a tiny model, with a cache and quick rounds of their own."""
    monkeypatch.setenv("POLYDRAFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(plan, "takes_trees", takes_trees)  # which other tests leave alone
    monkeypatch.setattr(measuring, "SECONDS", 0.0)
    monkeypatch.setattr(bandwidth, "ROUNDS", 1)
    model, tokenizer = load_model(str(tiny_folder(tmp_path / "model")), dtype=torch.float32)
    tiny_head(model, tokenizer=tokenizer).save_pretrained(tmp_path / "head")
    rows = [{"prompt": text, "kind": kind} for text, kind in zip("abcd", "xxyy", strict=True)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    paths = {"--model": "model", "--head": "head", "--prompts": "prompts.jsonl"}
    pairs = ([option, str(tmp_path / name)] for option, name in paths.items())
    return [*itertools.chain(*pairs), "--dtype", "float32"]


def run(*args: str) -> Result:
    return CliRunner(env={"COLUMNS": "160"}).invoke(app, ["doctor", *args])


def opened(names: list[str]) -> tuple[PreTrainedModel, DraftHead]:
    model, tokenizer = load_model(names[1], dtype=torch.float32)
    return model, load_head(names[3], model=model, tokenizer=tokenizer)


@pytest.mark.parametrize(
    ("extra", "drafting", "sizes"),
    [
        ([], "tree", [1, 2, 3, 4, 6, 8, 12, 16]),
        (["--drafting", "chain"], "chain", [1, 2, 3]),
        (["--temperature", "1", "--verification", "block"], "chain", [1, 2, 3]),
    ],
)
def test_doctor_measures_and_remembers(
    names: list[str], extra: list[str], drafting: str, sizes: list[int]
) -> None:
    model, head = opened(names)
    tree = drafting == "tree"
    key = machine_key(model, head, path="eager", tree=tree)
    old = Costs({(1, 1): 9.0, (5, 1): 9.0}, {(1, 1): 9.0, (5, 1): 9.0})
    save_costs(key, old)
    result = run(*names, *extra, "--batch", "2", "--count", "3", "--max-new-tokens", "12", "--json")
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    assert found["batch"] == 2
    assert found["prompts"] == 3
    assert found["new_tokens"] == 36
    assert found["drafting"] == drafting
    assert found["compiled"] is False
    widths = [1, *(size + 1 for size in sizes)] if tree else WIDTHS
    assert list(found["forward_seconds"]) == [str(width) for width in widths]
    assert list(found["drafting_seconds"]) == [str(size) for size in sizes]
    plain = found["forward_seconds"]["1"]
    assert found["plain_tokens_per_second"] == pytest.approx(2 / plain)
    assert found["share_of_limit"] == pytest.approx(found["weight_bytes"] / found["memory_bandwidth"] / plain)
    tried = TREE_NODES if tree else 3
    assert found["tried_drafts"] == tried
    cycle = found["forward_seconds"][str(tried + 1)] + found["drafting_seconds"][str(tried)]
    rest, seen = found["rest_seconds"], found["mean_acceptance_length"]
    expected = seen * (plain + rest["0"]) / (cycle + rest[str(tried)])
    assert found["expected_ratio"][str(tried)] == pytest.approx(expected)
    assert len(found["advice"]) == 4
    known = load_costs(key)
    assert known is not None
    assert known.rows == {1, 2, 5}  # what it did not measure stays
    assert known.forward_seconds(2, 1) == plain
    assert known.forward_seconds(1, 1) < 9.0 == known.forward_seconds(5, 1)


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled programs are traced and run as they are."""
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize(
    ("extra", "modes"),
    [
        ([], {}),
        (["--drafting", "chain"], {"drafting": "chain"}),
        pytest.param(["--compile"], {"compiled": True}, marks=pytest.mark.slow),
        (
            ["--temperature", "1", "--verification", "block"],
            {"do_sample": True, "verification": "block"},
        ),
    ],
)
def test_generation_finds_what_doctor_measured(
    names: list[str], monkeypatch: pytest.MonkeyPatch, extra: list[str], modes: dict[str, Any]
) -> None:
    result = run(*names, *extra, "--count", "1", "--max-new-tokens", "4")
    assert result.exit_code == 0, result.output

    def again(*_: Any, **__: Any) -> Costs:
        raise AssertionError("measured again")

    monkeypatch.setattr(measuring, "measure", again)
    model, head = opened(names)
    out = polydraft.generate(model, head, torch.tensor([[5, 6, 7]]), max_new_tokens=4, **modes)
    assert out.statistics is not None


@pytest.mark.slow
@pytest.mark.usefixtures("traced")
def test_doctor_tells_what_compiling_brings(names: list[str]) -> None:
    result = run(*names, "--compile", "--count", "1", "--max-new-tokens", "8", "--json")
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    assert found["compiled"] is True
    plain, eager = found["forward_seconds"]["1"], found["eager_forward_seconds"]
    assert found["expected_ratio"]["0"] == 1.0
    assert found["expected_ratio_to_eager"]["0"] == pytest.approx(eager / plain)
    assert found["plain_tokens_per_second"] == pytest.approx(1 / plain)
    assert found["eager_tokens_per_second"] == pytest.approx(1 / eager)
    assert found["share_of_limit"] == pytest.approx(found["limit_seconds"] / plain)
    assert len(found["advice"]) == 5
    assert found["advice"][1].startswith("Compiling")


def test_forwards_compiled_and_not_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shortest of each counts: 60 ms against 50."""
    seconds = iter([0.06, 0.08, 0.07, 0.05])
    ways: list[Callable[[int], Any] | None] = []

    def measured(*_: Any, open_trunk: Callable[[int], Any] | None, **__: Any) -> Costs:
        ways.append(open_trunk)
        return Costs({(2, 1): next(seconds)}, {(2, 1): 1.0})

    monkeypatch.setattr(doctor, "measure", measured)
    model = tiny_model()

    def compiled(rows: int) -> Any:
        raise AssertionError(rows)

    assert doctor.compiling_gain(model, tiny_head(model), compiled, rows=2) == pytest.approx(1.2)
    assert ways == [None, compiled, None, compiled]


def test_doctor_speaks_to_people(names: list[str]) -> None:
    result = run(*names, "--count", "1", "--max-new-tokens", "8", "--temperature", "1")
    assert result.exit_code == 0, result.output
    assert "trees, batch 1, times in ms" in result.stdout
    assert "of the speed that memory allows" in result.stdout
    assert "(1 prompt, 8 tokens, T = 1)" in result.stdout


@pytest.mark.parametrize(
    ("extra", "fragment"),
    [
        (["--batch", "0"], "batch must be at least 1, got 0"),
        (["--count", "0"], "count must be at least 1, got 0"),
        (["--temperature", "-1"], "temperature must be 0"),
        (["--drafting", "bush"], "drafting must be one of"),
        (["--prompts", "nowhere.jsonl"], "no such file"),
    ],
)
def test_doctor_refuses_in_one_line(names: list[str], extra: list[str], fragment: str) -> None:
    result = run(*names, *extra)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert fragment in result.stderr.splitlines()[-1]
