"""Train the heads of a grid, one after the other; finished ones are left alone, a broken-off one goes on."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from polydraft.errors import InputError, PolydraftError
from polydraft.evaluation.grid.config import Cell, GridConfig
from polydraft.evaluation.grid.progress import Progress
from polydraft.evaluation.grid.store import Store, cell_identity, claim, read_json, write_json
from polydraft.loading import load_head
from polydraft.training.data import data_hash, read_documents
from polydraft.training.run import head_config, train


class Clock(TrainerCallback):
    """Adds up the seconds of a training run over its parts, at every checkpoint and at the end."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any
    ) -> None:
        """Go on from the seconds that the checkpoint had taken."""
        earlier = (read_json(self.path) or {}) if state.global_step else {}
        self.began = time.perf_counter() - earlier.get("seconds", 0.0)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any
    ) -> None:
        """Keep the seconds so far."""
        write_json(self.path, {"seconds": time.perf_counter() - self.began})

    on_train_end = on_save


def train_cells(
    config: GridConfig,
    store: Store,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    progress: Progress,
    command: str = "",
) -> None:
    """Train every head that `store` lacks.

    Raises:
        InputError: a head there was trained with other options or data, or one cannot be; before any is
            trained.
    """
    data = data_hash(read_documents(config.data, tokenizer))
    for cell in config.trained:
        try:
            head_config(cell.options, model)
        except PolydraftError as error:
            raise InputError(f"cell {cell.name!r}: {error}") from error
        if (store.folder(cell.name) / "cell.json").exists():
            _claim(config, store, cell, data)
    for number, cell in enumerate(config.trained, start=1):
        if store.is_trained(cell.name):
            continue
        progress.note(f"cell {number} of {len(config.trained)}: {cell.name}")
        _claim(config, store, cell, data)
        out = store.head(cell.name)
        resume = (out / "run.json").exists()
        if out.exists() and not resume:
            shutil.rmtree(out)
        source = str(store.head(cell.init_from)) if cell.init_from else cell.head
        with progress.training(cell.options.steps) as follow:
            train(
                model,
                tokenizer,
                config.data,
                out,
                options=cell.options,
                init_from=load_head(source, model=model, tokenizer=tokenizer) if source else None,
                resume=resume,
                cache=config.cache,
                command=command,
                callbacks=[Clock(store.folder(cell.name) / "seconds.json"), follow],
                on_note=progress.note,
            )


def _claim(config: GridConfig, store: Store, cell: Cell, data: str) -> None:
    folder = store.folder(cell.name)
    identity = cell_identity(config, cell, data=data)
    claim(folder / "cell.json", identity, what=f"cell {cell.name!r}", remove=str(folder))
