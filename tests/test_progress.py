"""Long commands say how far they are: a bar on a terminal, a line now and then in a file or a pipe."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from transformers import TrainerControl, TrainerState, TrainingArguments

from polydraft.cli import progress
from polydraft.cli.progress import Bar, TrainingProgress, words


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def lines(file: io.StringIO) -> list[str]:
    return [line.rstrip() for line in file.getvalue().splitlines() if line.strip()]


def test_a_line_a_minute_with_what_is_left(clock: Clock) -> None:
    file = io.StringIO()
    bar = Bar("{task.description}", console=Console(file=file, width=40))
    task = bar.add_task("shards", total=100, completed=20)
    bar.update(task, completed=20)
    for step in range(1, 13):
        clock.now += 10
        bar.update(
            task, completed=20 + step, description=f"{step:,} [tokens], of a line that is long, shards"
        )
    assert lines(file) == [  # 10 s for each: 74 and 68 are left
        "6 [tokens], of a line that is long, shards 26 of 100, 12 min left",
        "12 [tokens], of a line that is long, shards 32 of 100, 11 min left",
    ]


def test_a_terminal_has_its_bar_alone(clock: Clock) -> None:
    file = io.StringIO()
    bar = Bar("{task.description}", console=Console(file=file, force_terminal=True))
    task = bar.add_task("shards", total=2)
    clock.now += 1000
    bar.update(task, advance=1)
    assert file.getvalue() == ""


def test_training_tells_step_loss_and_time_left(clock: Clock) -> None:
    file = io.StringIO()
    follow = TrainingProgress(Console(file=file, width=200), steps=1000)
    state, control = TrainerState(), TrainerControl()
    arguments = TrainingArguments()
    state.global_step = 200  # of a resumed run
    follow.on_train_begin(arguments, state, control)
    follow.on_log(
        arguments, state, control, logs={"loss": 2.5, "positions_per_second": 100.0, "load_1": 0.25}
    )
    for state.global_step in range(201, 261):
        clock.now += 2
        follow.on_step_end(arguments, state, control)
    assert lines(file) == [
        f"loss 2.500, 100 positions/s, least used component 25%, step {step} of 1,000, {left} left"
        for step, left in ((230, "26 min"), (260, "25 min"))
    ]


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.4, "0 s"), (89.4, "89 s"), (90, "2 min"), (3599, "60 min"), (6000, "1.7 h")]
)
def test_times_in_words(seconds: float, said: str) -> None:
    assert words(seconds) == said
