"""A training run of a second or two, and how to break it off."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from polydraft.heads import DraftHead
from polydraft.training.options import TrainOptions
from polydraft.training.run import train
from tests.tiny import tiny_model, tiny_tokenizer

DEFAULTS: dict[str, Any] = {
    "joint": "cp",
    "rank": 2,
    "horizon": 2,
    "feature_size": 16,
    "map_rank": 4,
    "draft_vocab_size": 32,
    "batch_size": 4,
    "steps": 14,
    "every": 4,
    "max_length": 24,
    "held_out": 0.2,
    "learning_rate": 3e-3,
    "warmup": 2,
}


def write_corpus(path: Path, *, count: int = 30) -> Path:
    """Texts of few, repeated words and of many lengths; 24 windows of training text, 6 steps an epoch."""
    words = ("abc", "defg", "hi")
    rows = [
        {"text": " ".join(words[(i + j) % 3] for j in range(2 + i % 3)) + f" {i:02d}"} for i in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(data: Path, out: Path, *, resume: bool = False, callbacks: Any = (), **changes: Any) -> DraftHead:
    """`train` of a tiny model with `DEFAULTS`; changes that `TrainOptions` lacks go to `train`."""
    options = DEFAULTS | {k: v for k, v in changes.items() if k in TrainOptions.__dataclass_fields__}
    rest = {k: v for k, v in changes.items() if k not in TrainOptions.__dataclass_fields__}
    tokenizer = tiny_tokenizer()
    model = rest.pop("model", None) or tiny_model(vocab_size=len(tokenizer))
    return train(
        model,
        tokenizer,
        [data],
        out,
        options=TrainOptions(**options),
        resume=resume,
        callbacks=callbacks,
        **rest,
    )


def weights(out: Path) -> dict[str, Tensor]:
    """What a run has written."""
    return load_file(out / "model.safetensors")


def same_weights(first: Path, second: Path) -> bool:
    """Whether two runs ended in the same bits."""
    a, b = weights(first), weights(second)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class Stopped(Exception):  # noqa: N818 (not an error of the code under test)
    """Raised in the middle of a run."""


class StopAt(TrainerCallback):
    """Breaks the run off at the end of a step: by an exception, or as SIGKILL does."""

    def __init__(self, step: int, *, kill: bool = False) -> None:
        self.step, self.kill = step, kill

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any
    ) -> None:
        if state.global_step == self.step:
            if self.kill:
                os.kill(os.getpid(), signal.SIGKILL)
            raise Stopped


if __name__ == "__main__":  # data out step: a run that kills itself
    torch.set_num_threads(1)
    run(Path(sys.argv[1]), Path(sys.argv[2]), callbacks=[StopAt(int(sys.argv[3]), kill=True)])
