"""What `--online` is given: prompts that the base model continues while its head is trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from polydraft.errors import InputError
from polydraft.training.collect import encode_prompt
from polydraft.training.data import check_first
from polydraft.training.options import TrainOptions
from polydraft.training.temperatures import check_temperatures

FLAGS = {
    "epochs": "--online-epochs",
    "round_size": "--online-batch",
    "temperatures": "--temperature",
    "max_new_tokens": "--max-new-tokens",
}
"""What the fields of `Online` are called on the command line."""


@dataclass(frozen=True, kw_only=True)
class Online:
    """Prompts, and how to continue them; part of what a run is the run of.

    Attributes:
        prompts: rows with `prompt` or chat `messages`.
        epochs: how often each round is learnt from.
        round_size: prompts of a round, continued at once.
        temperatures: one per prompt of a round, in turn; 0 is greedy.
        max_new_tokens: tokens written after each prompt, at most.

    Raises:
        InputError: a number outside its range.
    """

    prompts: tuple[dict[str, Any], ...]
    epochs: int = 1
    round_size: int = 96
    temperatures: tuple[float, ...] = (0.0, 1.0)
    max_new_tokens: int = 144

    def __post_init__(self) -> None:
        for name in ("epochs", "round_size", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        check_temperatures(self.temperatures)

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the text, beside the prompts."""
        return {name: value for name, value in asdict(self).items() if name != "prompts"}


def parse_online(
    *,
    online: bool,
    data: Sequence[Path],
    prompts: Callable[[], Sequence[dict[str, Any]]] | None,
    options: dict[str, Any],
) -> Online | None:
    """What the command line asks for; None to read text from `data`.

    Args:
        prompts: reads them, if a file is given. options: of `Online`, None where not given.

    Raises:
        InputError: options that contradict each other, or too few.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if not online:
        if prompts is not None or given:
            name = "--prompts" if prompts is not None else FLAGS[next(iter(given))]
            raise InputError(f"{name} belongs to --online: give both, or neither")
        if not data:
            raise InputError("no text: give --data PATH, or let the model write it, --online --prompts FILE")
        return None
    if data:
        raise InputError("--online writes its text itself: leave --data out, or --online")
    if prompts is None:
        raise InputError("--online needs --prompts FILE")
    return Online(prompts=tuple(prompts()), **given)


def check_texts(data: Sequence[Path] | Online, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse prompts that cannot be encoded, and the first row of a file that cannot.

    Raises:
        InputError: names the prompt, or file and row.
    """
    if isinstance(data, Online):
        for number, row in enumerate(data.prompts, start=1):
            encode_prompt(row, tokenizer, where=f"prompt {number}")
        return
    for path in data:
        check_first(path, tokenizer)


def check_online(options: TrainOptions, *, cached: bool) -> None:
    """What text that is not there yet rules out.

    Raises:
        InputError: a cache, packing, or a trunk that is trained.
    """
    if cached:
        raise InputError("--online sees each text but a few times: leave --cache-hidden out")
    if options.packing:
        raise InputError("--packing needs all text beforehand: leave it out, or --online")
    if options.trunk != "frozen":
        raise InputError(f"--online needs --trunk frozen: with {options.trunk!r} what writes would change")
