"""Train the heads of a grid, one after the other; finished ones are left alone, a broken-off one goes on."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from statistics import median
from typing import Any

from transformers import (
    PreTrainedModel,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from lab.grid.config import Cell, GridConfig
from lab.grid.progress import Progress
from lab.grid.store import Store, cell_identity, claim, read_json, write_json
from lab.grid.targets import Targets
from polydraft.errors import InputError, PolydraftError
from polydraft.limits import embedding_rows
from polydraft.loading import load_head
from polydraft.training.data import data_hash, read_documents
from polydraft.training.run import check_window, head_config, train


class Clock(TrainerCallback):
    """Adds up the seconds of a training run over its parts, and the median of a step of the last part.

    Written at every checkpoint and at the end.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.steps: list[float] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any
    ) -> None:
        """Go on from the seconds that the checkpoint had taken."""
        earlier = (read_json(self.path) or {}) if state.global_step else {}
        self.began = time.perf_counter() - earlier.get("seconds", 0.0)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any
    ) -> None:
        """A step begins."""
        self.step_began = time.perf_counter()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any
    ) -> None:
        """It ends; checkpoints and held-out figures come after."""
        self.steps.append(time.perf_counter() - self.step_began)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any
    ) -> None:
        """Keep the seconds so far."""
        step = median(self.steps) if self.steps else None
        write_json(self.path, {"seconds": time.perf_counter() - self.began, "step_seconds": step})

    on_train_end = on_save


class Training:
    """Trains the cells of a grid, each when it is asked for.

    All cells are checked before any is trained.

    Raises:
        InputError: a head in the store was trained with other options or data, or one cannot be trained.
    """

    def __init__(self, config: GridConfig, store: Store, targets: Targets, *, command: str = "") -> None:
        self.config, self.store, self.targets, self.command = config, store, targets, command
        self._data: dict[str, str] = {}
        self._rows: dict[str, int] = {}
        seen: dict[str, PreTrainedModel] = {}
        for cell in config.trained:
            if cell.base.name not in seen:
                seen[cell.base.name] = targets.untrained(cell).model
                self._rows[cell.base.name] = embedding_rows(seen[cell.base.name])
            try:
                check_window(cell.options, seen[cell.base.name])
                head_config(cell.options, seen[cell.base.name])
            except PolydraftError as error:
                raise InputError(f"cell {cell.name!r}: {error}") from error
            if (store.folder(cell.name) / "cell.json").exists():
                self._claim(cell)

    def train(self, cell: Cell, *, progress: Progress) -> None:
        """Train one; a finished one is left alone, a broken-off one goes on."""
        if self.store.is_trained(cell.name):
            return
        number = self.config.trained.index(cell) + 1
        progress.note(f"cell {number} of {len(self.config.trained)}: {cell.name}")
        self._claim(cell)
        out = self.store.head(cell.name)
        resume = (out / "run.json").exists()
        if out.exists() and not resume:
            shutil.rmtree(out)
        source = str(self.store.head(cell.init_from)) if cell.init_from else cell.head
        model, tokenizer = self.targets.untrained(cell)
        with progress.training(cell.options.steps) as follow:
            train(
                model,
                tokenizer,
                cell.base.data,
                out,
                options=cell.options,
                init_from=load_head(source, model=model, tokenizer=tokenizer) if source else None,
                resume=resume,
                cache=None if cell.own_model else cell.base.cache,
                command=self.command,
                callbacks=[Clock(self.store.folder(cell.name) / "seconds.json"), follow],
                on_note=progress.note,
            )

    def _claim(self, cell: Cell) -> None:
        folder = self.store.folder(cell.name)
        identity = cell_identity(self.config, cell, data=self.data_hash(cell))
        claim(folder / "cell.json", identity, what=f"cell {cell.name!r}", remove=str(folder))

    def data_hash(self, cell: Cell) -> str:
        """Of the documents that it learns from."""
        base = cell.base
        if base.name not in self._data:
            tokenizer = self.targets.tokenizer(base, trunk=cell.options.trunk)
            documents = read_documents(base.data, tokenizer, rows=self._rows[base.name])
            self._data[base.name] = data_hash(documents)
        return self._data[base.name]
