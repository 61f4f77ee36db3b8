"""How a grid tells what it is doing; the command line draws it, tests and libraries keep it silent."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from transformers import TrainerCallback


class Progress(Protocol):
    """Where progress goes."""

    def note(self, line: str) -> None:
        """One remark."""

    def training(self, steps: int) -> AbstractContextManager[TrainerCallback]:
        """Follow one training run of `steps` steps."""

    def counting(self, what: str, total: int) -> AbstractContextManager[Callable[[str], None]]:
        """Follow a count up to `total`; the function counts one more and says which."""


class Silent:
    """Shows nothing."""

    def note(self, line: str) -> None:
        """Nothing."""

    @contextmanager
    def training(self, steps: int) -> Iterator[TrainerCallback]:
        """A callback that does nothing."""
        yield TrainerCallback()

    @contextmanager
    def counting(self, what: str, total: int) -> Iterator[Callable[[str], None]]:
        """A function that does nothing."""
        yield lambda line: None
