"""How far a long command is: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

SECONDS = 60.0
"""Between two lines, where there is no terminal to draw on."""


class Bar(Progress):
    """A bar on a terminal; in a file or a pipe a line every `SECONDS`: what, how much, time left."""

    def __init__(self, *columns: str | ProgressColumn, console: Console, transient: bool = False) -> None:
        super().__init__(*columns, console=console, transient=transient)
        self._told = time.monotonic()
        self._begun: dict[TaskID, tuple[float, float]] = {}

    def update(self, task_id: TaskID, **fields: Any) -> None:
        """Update the task as `Progress.update` does, and log a line now and then."""
        super().update(task_id, **fields)
        task, now = self.tasks[self.task_ids.index(task_id)], time.monotonic()
        began, first = self._begun.setdefault(task_id, (now, task.completed))
        if self.console.is_interactive or now - self._told < SECONDS:
            return
        self._told = now
        done, total = task.completed - first, task.total
        line = f"{task.description} {task.completed:,.0f}"
        if total is not None:
            line += f" of {total:,.0f}"
            if done > 0:
                line += f", {words((now - began) / done * (total - task.completed))} left"
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)


def words(seconds: float) -> str:
    """A time to wait, as people say it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


class TrainingProgress(TrainerCallback):
    """Loss, positions per second and the least used component, on one line; held-out figures below.

    Args:
        console: where to draw. steps: of the whole run.
    """

    def __init__(self, console: Console, *, steps: int) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._progress = Bar(*columns, console=console)
        self._task = self._progress.add_task("step", total=steps, start=False)

    def __enter__(self) -> TrainingProgress:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any
    ) -> None:
        """Start the clock, at the step a resumed run begins from."""
        self._progress.start_task(self._task)
        self._progress.update(self._task, completed=state.global_step)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any
    ) -> None:
        """Move the bar."""
        self._progress.update(self._task, completed=state.global_step)

    def on_prediction_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        done: int = 0,
        total: int = 0,
        **rest: Any,
    ) -> None:
        """Say how far the held-out figures are."""
        self._progress.update(self._task, description=f"held out: {done:,} of {total:,} windows, step")

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **rest: Any,
    ) -> None:
        """Show the newest figures."""
        logs = logs or {}
        if "loss" in logs and "positions_per_second" in logs:
            least = min((v for k, v in logs.items() if k.startswith("load_")), default=1.0)
            speed = f"{logs['positions_per_second']:.0f} positions/s"
            text = f"loss {logs['loss']:.3f}, {speed}, least used component {least:.0%}, step"
            self._progress.update(self._task, description=text)
        if "eval_nll" in logs:
            shown = {k.removeprefix("eval_"): v for k, v in logs.items() if k.startswith("eval_")}
            words = [
                f"{k.replace('_', ' ')} {v:.3f}"
                for k, v in shown.items()
                if "acceptance" in k or k in ("nll", "base_loss")
            ]
            self._progress.console.print(
                f"step {state.global_step}, held out: {', '.join(words)}", highlight=False
            )
