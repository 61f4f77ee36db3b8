"""The rounds of a comparison of peers: each is some prompts at one setting, decoded by every contestant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from polydraft.bench.prompts import Prompt
from polydraft.errors import InputError

NO_KIND = "other"
"""The kind of prompts that name none."""


@dataclass(frozen=True, order=True, kw_only=True)
class Setting:
    """How a round decodes: at a temperature (0 is greedy), `batch` prompts together."""

    temperature: float
    batch: int

    def __str__(self) -> str:
        how = "greedy" if self.temperature == 0 else f"T = {self.temperature:g}"
        return f"{how}, batch {self.batch}"


@dataclass(frozen=True, kw_only=True)
class Round:
    """Some prompts at one setting.

    Attributes:
        prompts: their indices. turn: which round of its kind and setting it is, 0, 1, ...
    """

    setting: Setting
    kind: str
    prompts: tuple[int, ...]
    turn: int

    @property
    def name(self) -> str:
        """Of the file that keeps it."""
        return f"t{self.setting.temperature:g}-b{self.setting.batch}-{self.kind}-{self.turn}"


def plan(
    prompts: Sequence[Prompt], *, temperatures: Sequence[float], batches: Sequence[int], repeats: int
) -> list[Round]:
    """All rounds, those of one turn together, so that the first few are of all kinds and settings.

    Single prompts run once. Of larger batches, which hold prompts of one kind, in order, there are few:
    each runs `repeats` times. Prompts that fill no batch are left out of it.

    Raises:
        InputError: a number below its least, or a batch that no kind of prompts fills.
    """
    if repeats < 1 or min(batches) < 1 or min(temperatures) < 0:
        raise InputError("batch and repeats must be at least 1, a temperature 0 (greedy) or more")
    kinds: dict[str, list[int]] = {}
    for index, prompt in enumerate(prompts):
        kinds.setdefault(prompt.kind or NO_KIND, []).append(index)
    rounds = []
    for temperature in dict.fromkeys(temperatures):
        for batch in dict.fromkeys(batches):
            if max(map(len, kinds.values())) < batch:
                raise InputError(
                    f"batch {batch} needs as many prompts of one kind: give more, or a smaller batch"
                )
            for kind, indices in kinds.items():
                full = range(0, len(indices) - batch + 1, batch)
                groups = [tuple(indices[i : i + batch]) for i in full] * (1 if batch == 1 else repeats)
                rounds += [
                    Round(
                        setting=Setting(temperature=temperature, batch=batch),
                        kind=kind,
                        prompts=group,
                        turn=turn,
                    )
                    for turn, group in enumerate(groups)
                ]
    return sorted(rounds, key=lambda one: one.turn)
