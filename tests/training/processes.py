"""Training in two processes over gloo: how tests start them, and what each of them does."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from polydraft.errors import PolydraftError
from polydraft.ranks import rank
from tests.tiny import tiny_model, tiny_tokenizer
from tests.training.runs import StopAt, Stopped, run

ROOT = Path(__file__).parents[2]
WORLD = 2


def environment() -> dict[str, str]:
    """For processes that share two cores."""
    search = os.pathsep.join([str(ROOT), *sys.path])
    calm = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "CUDA_VISIBLE_DEVICES": ""}
    return os.environ | calm | {"PYTHONPATH": search, "COLUMNS": "200"}


def spawn(*command: str) -> list[subprocess.Popen[str]]:
    """`python *command` as every rank, as a launcher would start it, but with none to clear up."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    meet = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(WORLD)}
    return [
        subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            env=environment() | meet | {"RANK": str(r), "LOCAL_RANK": str(r)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for r in range(WORLD)
    ]


def run_jobs(data: Path, folder: Path, jobs: dict[str, dict[str, Any]]) -> dict[str, list[str]]:
    """Run all jobs, one after the other, in the same two processes; the outcome of each on every rank."""
    (folder / "jobs.json").write_text(json.dumps(jobs))
    workers = spawn("-m", "tests.training.processes", str(data), str(folder))
    try:
        for worker in workers:
            _, errors = worker.communicate(timeout=400)
            assert worker.returncode == 0, errors
    finally:
        for worker in workers:
            worker.kill()
    found = [json.loads((folder / f"outcomes-{r}.json").read_text()) for r in range(WORLD)]
    return {name: [outcomes[name] for outcomes in found] for name in jobs}


class Spoil(StopAt):
    """Makes the weights of this process NaN at the end of a step."""

    def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        if state.global_step == self.step:
            rest["model"].head.gate.bias.data.fill_(float("nan"))


def job(data: Path, folder: Path, changes: dict[str, Any]) -> str:
    """One run; "done", or the error. `only`: the rank that meets with what the job asks for."""
    out = folder / changes.pop("out")
    stop, spoil, missing, only = (changes.pop(k, None) for k in ("stop", "spoil", "missing", "only"))
    here = only is None or only == rank()
    callbacks = [StopAt(stop)] if stop and here else [Spoil(spoil)] if spoil and here else []
    model = tiny_model(vocab_size=len(tiny_tokenizer()))
    try:
        run(Path("nowhere") if missing and here else data, out, model=model, callbacks=callbacks, **changes)
    except (PolydraftError, Stopped) as error:
        return f"{type(error).__name__}: {error}"
    return "done"


if __name__ == "__main__":  # data folder
    torch.set_num_threads(1)
    source, target = Path(sys.argv[1]), Path(sys.argv[2])
    todo = json.loads((target / "jobs.json").read_text())
    outcomes = {name: job(source, target, changes) for name, changes in todo.items()}
    (target / f"outcomes-{rank()}.json").write_text(json.dumps(outcomes))
