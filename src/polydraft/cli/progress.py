"""The progress line of a training run."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class TrainingProgress(TrainerCallback):
    """Loss, positions per second and the least used component, on one line; held-out figures below.

    Args:
        console: where to draw. steps: of the whole run.
    """

    def __init__(self, console: Console, *, steps: int) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns, console=console)
        self._task = self._progress.add_task("training", total=steps, start=False)

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
        self._progress.update(self._task, description=f"held out: {done:,} of {total:,} windows")

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
            text = f"loss {logs['loss']:.3f}, {speed}, least used component {least:.0%}"
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
