"""Which heads to compare, and how."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from polydraft.errors import InputError
from polydraft.modes import VERIFICATION
from polydraft.training.options import TrainOptions

START = "start"
"""Name of the head that cells start from."""
NOTHING = "nothing"
"""`init_from` of a cell that starts from no trained head."""


@dataclass(frozen=True, kw_only=True)
class Base:
    """A model and the texts that its heads are trained and judged on; paths as from the working directory.

    Attributes:
        name: "" where a grid has one alone.
        model: by name or folder; for cells with `trunk = "scratch"` a configuration, as `--model` there.
        data: to train on. cache: of hidden states of the model, while it is frozen; None for none.
        test: text for the held-out losses, seen by nothing else; none, no such losses.
        prompts: a file of prompts, or the name of a shipped one.
    """

    name: str = ""
    model: str
    data: tuple[Path, ...]
    cache: Path | None = None
    test: tuple[Path, ...] = ()
    prompts: str = "heldout"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One head to train, and the model below it where its options say so.

    Attributes:
        base: what it is trained for.
        init_from: the cell it starts from; None: nothing. head: a trained head that it starts from instead, a
            folder ([start] alone).
    """

    name: str
    base: Base
    options: TrainOptions
    init_from: str | None = None
    head: str | None = None

    @property
    def own_model(self) -> bool:
        """Whether it trains the model too, which then verifies: its figures are not those of one target."""
        return self.options.trunk != "frozen"


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
        max_new_tokens: of a continuation.
        samples: continuations per prompt at temperature 1.
        batch_size: prompts continued together.
        speed_prompts, speed_tokens: prompts decoded for the wall clock, and tokens of each.
        test_windows: of the test text, looked at for the losses; test_length: tokens of each.
        draws: of the bootstrap. seed: of what is sampled.
        variants: further ways to draft with trained cells.
        reference: the cell that all are compared with; "": the first independent one that is `alike`.

    Raises:
        InputError: a number outside its range.
    """

    max_new_tokens: int = 128
    samples: int = 2
    batch_size: int = 24
    speed_prompts: int = 24
    speed_tokens: int = 128
    test_windows: int = 64
    test_length: int = 128
    draws: int = 2000
    seed: int = 0
    variants: tuple[Variant, ...] = ()
    reference: str = ""

    def __post_init__(self) -> None:
        least = {"max_new_tokens": 2, "samples": 1, "batch_size": 1, "speed_prompts": 0, "speed_tokens": 2}
        for name, bound in (least | {"draws": 1, "test_windows": 1, "test_length": 3}).items():
            if getattr(self, name) < bound:
                raise InputError(f"{name} must be at least {bound}, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Some of the rows of the results.

    Attributes:
        where: fields of a row and the values that they may have; all rows where it is empty.
    """

    name: str
    title: str
    where: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class TableSpec(Selection):
    """A table: a line for each combination of the fields `rows`, seeds put together.

    Attributes:
        rows: fields of a row. across: a field whose values each have their own columns; "" for none.
        columns: names of `pivot.METRICS`.
    """

    rows: tuple[str, ...]
    across: str = ""
    columns: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class PictureSpec(Selection):
    """A picture: metrics against a field, a line for each value of another, a panel for each of a third.

    Attributes:
        x: a field that is a number. y: names of `pivot.METRICS`, a row of panels each. lines, panels: fields;
            "" for none.
    """

    x: str
    y: tuple[str, ...]
    lines: str = ""
    panels: str = ""


@dataclass(frozen=True, kw_only=True)
class GridConfig:
    """A whole comparison.

    Attributes:
        start: trained first; every cell starts from it unless it says otherwise. None: from scratch.
    """

    dtype: str = "auto"
    title: str = ""
    start: Cell | None = None
    cells: tuple[Cell, ...]
    evaluation: Evaluation = field(default_factory=Evaluation)
    tables: tuple[TableSpec, ...] = ()
    pictures: tuple[PictureSpec, ...] = ()

    @property
    def trained(self) -> tuple[Cell, ...]:
        """All heads to train, in order, the start first."""
        return (*([self.start] if self.start else []), *self.cells)

    @property
    def bases(self) -> tuple[Base, ...]:
        """Those of the cells, each once, in their order."""
        return tuple({cell.base.name: cell.base for cell in self.trained}.values())

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
        return next((other for other in self.cells if is_independent(other) and alike(cell, other)), None)


def is_independent(cell: Cell) -> bool:
    """Whether its joint is a product of independent positions."""
    return cell.options.joint == "independent" or (cell.options.joint == "cp" and cell.options.rank == 1)


def alike(cell: Cell, other: Cell) -> bool:
    """Whether they draft as many tokens for one base, from one seed; with a trained model alike too."""
    names = ("horizon", "seed", "trunk", *(("steps", "features") if cell.own_model else ()))
    same = all(getattr(cell.options, name) == getattr(other.options, name) for name in names)
    return same and cell.base.name == other.base.name
