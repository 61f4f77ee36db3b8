"""One round over all heads, in one process: every figure beside the plain steps of the same moment."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from transformers import PreTrainedModel

from lab.overhead.cells import Cell, Sizes, make_head
from lab.overhead.cycle import drafted_cycle, plain_step
from lab.overhead.step import Step, training_batch, trunk_forward
from polydraft.decoding.measuring import CONTEXT, Texts, timed
from polydraft.decoding.trunk import EagerTrunk
from polydraft.heads import DraftHead

WIDTHS = (1, 2, 3, 5, 9, 16, 32)
"""New tokens of the forwards that are timed."""
MODES = {"greedy": False, "sampled": True}
"""Whether to sample, at temperature 1."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is measured, and on how much.

    Attributes:
        cells: the heads. sizes: what they have in common. cycles: timed per head, mode and round.
        positions: of a training step. rounds: how often all of it.
    """

    cells: tuple[Cell, ...]
    sizes: Sizes
    cycles: int = 8
    positions: int = 256
    rounds: int = 10


@dataclass
class Bench:
    """A head, ready to draft in the trunk's dtype and to be trained in float32."""

    head: DraftHead
    step: Step
    drafts: dict[int, Callable[[], object]]


class Benches:
    """All heads beside one trunk, and a round over them."""

    def __init__(self, model: PreTrainedModel, settings: Settings) -> None:
        self.model, self.settings = model, settings
        vocab = model.config.get_text_config().vocab_size
        tokens = min(settings.sizes.draft_vocab_size, vocab)
        self.prompt = torch.arange(CONTEXT, device=model.device) * 7919 % vocab
        self.batch = training_batch(positions=settings.positions, tokens=tokens, device=model.device)
        self.benches = {cell.name: self._bench(cell) for cell in settings.cells}
        first = next(iter(self.benches.values()))
        self.trunk = EagerTrunk(model, taps={}, rows=1)
        with self.trunk:
            texts = Texts(model, first.head, self.trunk, rows=1)
        self.forwards = {width: texts.forward(width, tree=False) for width in WIDTHS}
        self._round(warm=True)

    def _bench(self, cell: Cell) -> Bench:
        drafting = cast(Any, make_head(self.model, cell, self.settings.sizes)).to(self.model.dtype).eval()
        drafting.requires_grad_(False)
        trained = make_head(self.model, cell, self.settings.sizes)
        _, anchors = trunk_forward(self.model, trained, self.batch)
        trunk = EagerTrunk(self.model, taps=drafting.config.taps, rows=1)
        with trunk, torch.no_grad():
            texts = Texts(self.model, drafting, trunk, rows=1)
        lengths = sorted({1, (cell.horizon + 1) // 2, cell.horizon})
        drafts = {length: texts.draft(length, tree=False) for length in lengths}
        return Bench(drafting, Step(trained, anchors), drafts)

    def round(self, number: int) -> dict[str, Any]:
        """Seconds of everything once; heads in an order that rotates with `number`.

        Returns:
            forward: seconds by width. cells: by name, see `cell`.
        """
        return self._round(number=number)

    def _round(self, *, number: int = 0, warm: bool = False) -> dict[str, Any]:
        names = list(self.benches)
        turn = number % len(names)
        with self.trunk, torch.no_grad():
            self.forwards[1]()  # the first after a training step is slower than those that follow
            forward = {w: timed(run, device=self.model.device) for w, run in self.forwards.items()}
        cycles = 1 if warm else self.settings.cycles
        cells = {name: self.cell(name, cycles=cycles) for name in names[turn:] + names[:turn]}
        return {"forward": forward, "cells": {name: cells[name] for name in names}}

    def cell(self, name: str, *, cycles: int) -> dict[str, Any]:
        """Of one head.

        Returns:
            greedy, sampled: `plain`, seconds of plain decoding (`plain_step`), and those of a cycle's parts.
            drafting: seconds of greedy drafts by their number. training: of a step (`Step`), and "trunk" of
            the trunk's forward for it.
        """
        bench = self.benches[name]
        found: dict[str, Any] = {}
        for mode, do_sample in MODES.items():
            plain = plain_step(self.model, self.prompt, steps=cycles, do_sample=do_sample)
            parts = drafted_cycle(self.model, bench.head, self.prompt, cycles=cycles, do_sample=do_sample)
            found[mode] = {"plain": plain, **parts}
        with torch.no_grad():
            device = self.model.device
            found["drafting"] = {k: timed(run, device=device) for k, run in bench.drafts.items()}
        seconds, _ = trunk_forward(self.model, bench.step.head, self.batch)
        return found | {"training": bench.step() | {"trunk": seconds}}
