"""Replay every head along the continuations: what decoding with it would accept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lab.grid.config import Cell, GridConfig, Variant
from lab.grid.store import Store, write_json
from lab.grid.targets import Target
from lab.grid.texts import Continuation, read_texts
from lab.replay import MODES, replay
from polydraft.heads import DraftHead
from polydraft.loading import load_head
from polydraft.modes import VERIFICATION


def open_variant(store: Store, variant: Variant, target: Target) -> DraftHead:
    """Its head, drafting as the variant says."""
    head = load_head(str(store.head(variant.cell)), model=target.model, tokenizer=target.tokenizer)
    if variant.components is not None:
        head.config.components = variant.components
    return head


class Replays:
    """Replays heads along the continuations; those of a base that many heads share are read once."""

    def __init__(self, config: GridConfig, store: Store) -> None:
        self.config, self.store = config, store
        self._texts: dict[tuple[str, tuple[int, ...]], list[Continuation]] = {}  # also by the layers read

    def wanted(self, cell: Cell) -> list[Variant]:
        """Variants of a trained cell that have no replay along its texts yet.

        Block verification judges whole drafts, not tokens one by one: its acceptance comes from decoding.
        """
        own = [variant for variant in self.config.variants if variant.cell == cell.name]
        judged = [variant for variant in own if variant.verification == VERIFICATION]
        return [variant for variant in judged if not self.store.replay(variant, cell)]

    def replay(self, cell: Cell, target: Target) -> None:
        """Replay those."""
        for variant in self.wanted(cell):
            head = open_variant(self.store, variant, target)
            texts = self._read(cell, target, tuple(head.config.layers))
            rows = {mode: walk_rows(head, texts, mode=mode) for mode in MODES}
            made_with = self.store.replay_settings(variant, cell)
            write_json(self.store.replay_path(variant), {"made_with": made_with, "modes": rows})

    def _read(self, cell: Cell, target: Target, layers: tuple[int, ...]) -> list[Continuation]:
        folder = self.store.texts(cell)
        if cell.own_model:
            return read_texts(self.config.evaluation, folder, target.model, layers=layers)
        key = (cell.base.name, layers)
        if key not in self._texts:
            self._texts[key] = read_texts(self.config.evaluation, folder, target.model, layers=layers)
        return self._texts[key]


def walk_rows(head: DraftHead, texts: Sequence[Continuation], *, mode: str) -> list[dict[str, Any]]:
    """One row per continuation of the mode's kind: its prompt's index and its `Walk`."""
    chosen = [text for text in texts if text.sampled == (mode == "sampled")]
    walks = replay(head, [item.text for item in chosen], mode=mode)
    return [{"prompt": item.prompt} | vars(walk) for item, walk in zip(chosen, walks, strict=True)]
