"""The models that verify: a base's own for all heads on it, or the one that a cell has trained."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, Protocol

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lab.grid.config import Base, Cell
from lab.grid.store import Store
from polydraft.loading import parse_dtype
from polydraft.sources import ADAPTER
from polydraft.training.scratch import own_tokenizer, scratch_model
from polydraft.training.trunk import MODEL


class Target(NamedTuple):
    """A model, ready to verify, and its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


class OpenModel(Protocol):
    """How a model is loaded by name, in the grid's dtype."""

    def __call__(
        self, name: str, *, adapter: str | None = None
    ) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The model, with a LoRA adapter in it where `adapter` names its folder."""


class Targets:
    """Loads them; a frozen base's once, and keeps that.

    Args:
        dtype: name of it, for models from scratch; `open_model` knows it by itself.
    """

    def __init__(self, store: Store, open_model: OpenModel, *, dtype: str) -> None:
        self._store, self._open, self._dtype = store, open_model, parse_dtype(dtype)
        self._bases: dict[str, Target] = {}

    def base(self, base: Base) -> Target:
        """The base's own model, frozen."""
        if base.name not in self._bases:
            self._bases[base.name] = Target(*self._open(base.model))
        return self._bases[base.name]

    def untrained(self, cell: Cell) -> Target:
        """What the cell's training begins with; its own copy where that changes it."""
        if cell.options.trunk == "scratch":
            source = Path(cell.base.model)
            tokenizer = own_tokenizer(source)
            model = scratch_model(source, tokenizer, seed=cell.options.seed, dtype=self._dtype)
            return Target(model, tokenizer)
        return Target(*self._open(cell.base.model)) if cell.own_model else self.base(cell.base)

    def of(self, cell: Cell) -> Target:
        """The model that verifies the trained head of `cell`."""
        if not cell.own_model:
            return self.base(cell.base)
        head = self._store.head(cell.name)
        if cell.options.trunk == "lora":
            return Target(*self._open(cell.base.model, adapter=str(head / ADAPTER)))
        return Target(*self._open(str(head / MODEL)))

    def tokenizer(self, base: Base, *, trunk: str) -> PreTrainedTokenizerBase:
        """Of the base, without its model where that is made from scratch."""
        return own_tokenizer(Path(base.model)) if trunk == "scratch" else self.base(base).tokenizer
