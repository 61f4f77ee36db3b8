"""Which heads to compare, and how."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from polydraft.errors import InputError
from polydraft.modes import VERIFICATION
from polydraft.training.options import TrainOptions

START = "start"
"""Name of the head that cells start from."""
NOTHING = "nothing"
"""`init_from` of a cell that starts from no trained head."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One head to train.

    Attributes:
        init_from: the cell it starts from; None: nothing. head: a trained head that it starts from instead, a
            folder ([start] alone).
    """

    name: str
    options: TrainOptions
    init_from: str | None = None
    head: str | None = None


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A trained cell and how it drafts.

    Attributes:
        components: of the joint that drafting keeps; None leaves what the cell was trained with.
        verification: as in `polydraft.decoder`.
    """

    name: str
    cell: str
    components: int | None = None
    verification: str = VERIFICATION

    def times(self, temperature: float) -> bool:
        """Whether it is timed at this temperature: greedily, all verification is the same."""
        return temperature > 0 or self.verification == VERIFICATION


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """How all heads are judged.

    Attributes:
        prompts: a file of prompts, or the name of a shipped one. max_new_tokens: of a continuation.
        samples: continuations per prompt at temperature 1.
        batch_size: prompts continued together.
        speed_prompts, speed_tokens: prompts decoded for the wall clock, and tokens of each.
        draws: of the bootstrap. seed: of what is sampled.
        variants: further ways to draft with trained cells.
        reference: the cell that all are compared with; "": the first independent one of the same horizon.

    Raises:
        InputError: a number outside its range.
    """

    prompts: str = "heldout"
    max_new_tokens: int = 128
    samples: int = 2
    batch_size: int = 24
    speed_prompts: int = 24
    speed_tokens: int = 128
    draws: int = 2000
    seed: int = 0
    variants: tuple[Variant, ...] = ()
    reference: str = ""

    def __post_init__(self) -> None:
        least = {"max_new_tokens": 2, "samples": 1, "batch_size": 1, "speed_prompts": 0, "speed_tokens": 2}
        for name, bound in (least | {"draws": 1}).items():
            if getattr(self, name) < bound:
                raise InputError(f"{name} must be at least {bound}, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class GridConfig:
    """A whole comparison; relative paths are relative to the working directory.

    Attributes:
        start: trained first; every cell starts from it unless it says otherwise. None: from nothing.
    """

    model: str
    dtype: str = "auto"
    data: tuple[Path, ...]
    cache: Path | None = None
    start: Cell | None = None
    cells: tuple[Cell, ...]
    evaluation: Evaluation = field(default_factory=Evaluation)

    @property
    def trained(self) -> tuple[Cell, ...]:
        """All heads to train, in order, the start first."""
        return (*([self.start] if self.start else []), *self.cells)

    @property
    def variants(self) -> tuple[Variant, ...]:
        """Everything to evaluate: each cell as it is, then the variants asked for."""
        plain = tuple(Variant(name=cell.name, cell=cell.name) for cell in self.cells)
        return plain + self.evaluation.variants

    def cell(self, name: str) -> Cell:
        """The cell called `name`, the start included."""
        return next(cell for cell in self.trained if cell.name == name)

    def reference(self, cell: Cell) -> Cell | None:
        """The cell that `cell` is compared with: see `Evaluation.reference`."""
        if self.evaluation.reference:
            return self.cell(self.evaluation.reference)
        found = (c for c in self.cells if c.options.horizon == cell.options.horizon and is_independent(c))
        return next(found, None)


def is_independent(cell: Cell) -> bool:
    """Whether its joint is a product of independent positions."""
    return cell.options.joint == "independent" or (cell.options.joint == "cp" and cell.options.rank == 1)
