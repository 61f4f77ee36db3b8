"""Two processes over gloo learn what one does; one that dies ends the run, which then continues."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from accelerate.data_loader import BatchSamplerShard
from torch.utils.data import BatchSampler

from polydraft.heads import DraftHead
from polydraft.training.data import collate
from polydraft.training.folder import last_complete_checkpoint
from polydraft.training.objective import Objective
from polydraft.training.order import EpochOrder, micro_batch_seed
from polydraft.training.weights import LossWeights
from tests.tiny import tiny_folder, tiny_head, tiny_model, tiny_tokenizer
from tests.training.processes import WORLD, environment, run_jobs, spawn
from tests.training.runs import run, same_weights, weights, write_corpus

COMMON: dict[str, Any] = {"steps": 20, "every": 5, "balance": 0.0, "batch_size": 4}
SAME = 1e-5
DRAWN = {"anchors_per_window": 3, "gate_noise": 0.1, "batch_size": 2}
OPTIONS = {
    "joint": "cp", "rank": 2, "horizon": 2, "feature-size": 16, "map-rank": 4, "draft-vocab-size": 32,
    "steps": 60, "every": 20, "batch-size": 2, "learning-rate": 3e-3, "warmup": 2, "scheduler": "linear",
    "weight-decay": 0.1, "max-length": 24, "held-out": 0.2, "anchors-per-window": 5,
}  # fmt: skip
"""Of the command."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """27 windows to learn from: steps of 4 do not divide an epoch, and 20 steps are three of them."""
    return write_corpus(tmp_path_factory.mktemp("corpus") / "corpus.jsonl", count=34)


@pytest.fixture(scope="module")
def jobs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[str]]]:
    """The runs of two processes; in one pair of processes, since starting them takes longest."""
    half = COMMON | {"batch_size": 2}
    drawn = COMMON | DRAWN
    todo = {
        "ddp": half,
        "accumulated": COMMON | {"batch_size": 1, "accumulate": 2},
        "drawn": drawn,
        "drawn_stopped": drawn | {"stop": 13, "out": "drawn2"},
        "drawn_continued": drawn | {"resume": True, "out": "drawn2"},
        "bf16": half | {"mixed_precision": "bf16"},
        "as_by_command": {name.replace("-", "_"): value for name, value in OPTIONS.items()},
        "spoilt": half | {"spoil": 3, "only": 1},
        "missing": half | {"missing": True, "only": 1},
        "fsdp": half | {"fsdp": True},
        "stopped": half | {"fsdp": True, "stop": 8, "out": "fsdp2"},
        "continued": half | {"fsdp": True, "resume": True, "out": "fsdp2"},
    }
    folder = tmp_path_factory.mktemp("two")
    return folder, run_jobs(data, folder, {name: {"out": name} | changes for name, changes in todo.items()})


@pytest.fixture(scope="module")
def alone(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process over the same global batches."""
    out = tmp_path_factory.mktemp("one") / "head"
    run(data, out, **COMMON)
    return out


def losses(out: Path) -> list[float]:
    return [row["loss"] for row in history(out) if "loss" in row]


def history(out: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((out / "training.json").read_text())["history"]
    return found


def furthest(first: Path, second: Path) -> float:
    """The largest difference of any weight."""
    a, b = weights(first), weights(second)
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


# -- which documents, which draws -------------------------------------------------------------------


@pytest.mark.parametrize(("count", "size"), [(24, 4), (27, 4), (3, 4), (5, 2)])
def test_the_processes_share_the_documents_of_every_step(count: int, size: int) -> None:
    def batches(processes: int) -> list[list[list[int]]]:
        order = EpochOrder(range(3, count + 3), batch_size=size, seed=7, epoch=lambda: 1)
        whole = BatchSampler(order, size // processes, drop_last=False)
        return [list(BatchSamplerShard(whole, processes, r)) for r in range(processes)]

    (one,) = batches(1)
    first, second = batches(2)
    assert [a + b for a, b in zip(first, second, strict=True)] == one
    seen = [i for batch in one for i in batch]
    assert set(seen) == set(range(count))
    assert len(seen) == -(-count // size) * size
    assert all(len(set(batch)) == size for batch in one if count >= size)


def test_the_seed_of_a_micro_batch_tells_all_apart() -> None:
    keys = [(seed, step, n, r) for seed in range(3) for step in range(50) for n in range(3) for r in range(3)]
    assert len({micro_batch_seed(*key) for key in keys}) == len(keys)
    assert micro_batch_seed(1, 2, 3, 4) == micro_batch_seed(1, 2, 3, 4)


def test_a_batch_without_anchors_has_a_gradient_of_zero_everywhere() -> None:
    model = tiny_model()
    objective = Objective(tiny_head(model), model, weights=LossWeights())
    row = {"input_ids": [1, 2, 3, 4], "learn_from": 4, "hidden": None}
    out = objective(collate([row]))
    assert (out.loss.item(), out.anchors) == (0.0, 0)
    out.loss.backward()
    assert all(p.grad is not None and not p.grad.any() for p in objective.parameters())


# -- two processes ----------------------------------------------------------------------------------


@pytest.mark.slow
class TestTwoProcesses:
    @pytest.mark.parametrize("name", ["ddp", "accumulated", "fsdp"])
    def test_they_learn_what_one_does(self, jobs: Any, alone: Path, name: str) -> None:
        folder, outcomes = jobs
        assert outcomes[name] == ["done", "done"]
        assert losses(folder / name) == pytest.approx(losses(alone), abs=SAME)
        assert losses(alone)[0] > 1.2 * losses(alone)[-1]
        assert furthest(folder / name, alone) < SAME

    def test_the_figures_are_those_of_one(self, jobs: Any, alone: Path) -> None:
        folder, _ = jobs
        for two, one in zip(history(folder / "ddp"), history(alone), strict=True):
            keys = [k for k in one if k.startswith(("loss", "eval", "grad_norm", "learning_rate", "step"))]
            assert keys
            assert {k: two[k] for k in keys} == pytest.approx({k: one[k] for k in keys}, abs=2e-4)

    def test_a_sharded_run_leaves_a_head(self, jobs: Any) -> None:
        folder, _ = jobs
        assert {p.name for p in (folder / "fsdp").iterdir()} == {
            "config.json", "model.safetensors", "run.json", "training.json",
        }  # fmt: skip
        tokenizer = tiny_tokenizer()
        head = DraftHead.from_pretrained(folder / "fsdp")
        head.attach(tiny_model(vocab_size=len(tokenizer)), tokenizer)
        assert json.loads((folder / "fsdp" / "run.json").read_text())["processes"] == WORLD

    def test_a_sharded_run_that_broke_off(self, jobs: Any) -> None:
        folder, outcomes = jobs
        assert [o.split(":")[0] for o in outcomes["stopped"]] == ["Stopped", "Stopped"]
        assert outcomes["continued"] == ["done", "done"]
        assert same_weights(folder / "fsdp2", folder / "fsdp")

    def test_random_draws_are_the_same_after_a_break(self, jobs: Any) -> None:
        folder, outcomes = jobs
        assert outcomes["drawn"] == outcomes["drawn_continued"] == ["done", "done"]
        assert same_weights(folder / "drawn2", folder / "drawn")
        assert furthest(folder / "drawn", folder / "ddp") > 10 * SAME

    def test_mixed_precision_changes_little(self, jobs: Any) -> None:
        folder, _ = jobs
        a, b = losses(folder / "bf16"), losses(folder / "ddp")
        assert a == pytest.approx(b, rel=0.02)
        assert a != pytest.approx(b, abs=SAME)

    def test_what_one_meets_ends_both(self, jobs: Any) -> None:
        _, outcomes = jobs
        assert len(set(outcomes["spoilt"])) == 1
        assert outcomes["spoilt"][0].startswith("PolydraftError: step 4: the loss (nll, kl) is not finite")
        assert outcomes["missing"] == ["InputError: nowhere: no such file or folder"] * WORLD


# -- the command, and processes that die ------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("model") / "tiny")


def command(model: Path, data: Path, out: Path, *more: str) -> list[str]:
    options = OPTIONS | {"model": model, "data": data, "out": out, "dtype": "float32"}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return ["-m", "polydraft", "train", *words, *more]


def torchrun(*words: str) -> None:
    """As users start it."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(WORLD)]
    found = subprocess.run(
        [*launcher, *words], env=environment(), capture_output=True, text=True, check=False, timeout=300
    )
    assert found.returncode == 0, found.stderr


@pytest.fixture
def workers() -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that do not outlive their test."""
    started: list[subprocess.Popen[str]] = []
    yield started
    for worker in started:
        worker.kill()
        worker.communicate()


@pytest.mark.slow
def test_a_worker_that_is_killed(
    jobs: Any, model: Path, data: Path, tmp_path: Path, workers: list[subprocess.Popen[str]]
) -> None:
    folder, outcomes = jobs
    assert outcomes["as_by_command"] == ["done", "done"]
    out = tmp_path / "head"
    workers += spawn(*command(model, data, out))
    deadline = time.monotonic() + 120
    while not list(out.glob("checkpoints/checkpoint-*/trainer_state.json")):
        assert time.monotonic() < deadline
        assert workers[1].poll() is None
        time.sleep(0.02)
    workers[1].send_signal(signal.SIGKILL)
    _, errors = workers[0].communicate(timeout=60)
    assert workers[0].returncode == 1
    assert [line for line in errors.splitlines() if "error" in line] == [
        "error: another process of the run is gone or does not answer: start all again with --resume"
    ]
    assert "Traceback" not in errors
    assert not (out / "config.json").exists()
    assert last_complete_checkpoint(out / "checkpoints") is not None
    torchrun(*command(model, data, out, "--resume"))
    assert same_weights(out, folder / "as_by_command")


@pytest.mark.slow
def test_an_error_is_one_line_of_the_first_process(
    model: Path, data: Path, tmp_path: Path, workers: list[subprocess.Popen[str]]
) -> None:
    workers += spawn(*command(model, data, tmp_path / "head", "--report-to", "nonsense"))
    found = [worker.communicate(timeout=120)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [2, 2]
    assert found[0].count("error: --report-to nonsense: not known or not installed") == 1
    assert found[1] == ""
    assert not (tmp_path / "head").exists()
