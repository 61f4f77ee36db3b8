"""Held-out figures of a head without decoding: likelihood, and the acceptance length that decoding has.

Every held-out text is walked along as decoding does, cycle after cycle (`training.walk`), so that on text
the base model wrote the figures are those of decoding: exactly for greedy text, on average over texts for
text sampled at temperature 1 and verified token by token (block verification accepts no less). Of other
text they say what decoding would accept had the model written it: a guess.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from polydraft.heads import DraftHead
from polydraft.training.anchors import anchor_mask, build_anchors
from polydraft.training.data import Document, collate, windows
from polydraft.training.paths import Paths, paths
from polydraft.training.trunk import Trunk
from polydraft.training.walk import Walk, fitting, walk

OnProgress = Callable[[int, int], None]
"""(windows done, windows in all)."""
TEMPERATURES = {"greedy": 0.0, "sampled": 1.0}
"""The temperature of the text that each way of decoding writes."""


def choose(documents: Sequence[Document], *, max_length: int, most: int, seed: int) -> list[Document]:
    """At most `most` windows of each temperature, drawn by `seed`, the shortest first.

    Of a text that the base model wrote only the first `max_length` tokens: what follows was written with all
    of them in sight.
    """
    by_temperature: dict[float | None, list[Document]] = {}
    for document in documents:
        if document.temperature is not None:
            document = replace(document, input_ids=document.input_ids[:max_length])
        by_temperature.setdefault(document.temperature, []).extend(windows([document], max_length=max_length))
    rng = random.Random(seed)
    drawn = [
        window for found in by_temperature.values() for window in rng.sample(found, min(most, len(found)))
    ]
    return sorted(drawn, key=lambda window: len(window.input_ids))


def missing_figures(documents: Sequence[Document]) -> list[str]:
    """Which ways of decoding there are no held-out texts for, a line each."""
    found = {document.temperature for document in documents}
    return [
        f"no held-out text at temperature {temperature:g}, so no {name} acceptance length"
        for name, temperature in TEMPERATURES.items()
        if not found & {None, temperature}
    ]


def by_temperature(documents: Sequence[Document]) -> str:
    """How many there are of each temperature, in words; empty where none is known."""
    counts = Counter(d.temperature for d in documents if d.temperature is not None)
    return ", ".join(f"{count:,} at temperature {t:g}" for t, count in sorted(counts.items()))


@dataclass(kw_only=True)
class Totals:
    """Sums over the windows seen so far.

    Attributes:
        anchors: positions looked at. nll, counts: (n,) summed -log q of valid targets, and their number.
        cycles, accepted: expected ones, by way of decoding.
    """

    anchors: int = 0
    nll: Tensor | float = 0.0
    counts: Tensor | float = 0.0
    cycles: dict[str, float] = field(default_factory=dict)
    accepted: dict[str, float] = field(default_factory=dict)

    def likelihood(self, found: Paths) -> None:
        """Add the anchors of a batch."""
        self.anchors += len(found.valid)
        self.nll = self.nll - torch.where(found.valid, found.log_q, 0.0).sum(0)
        self.counts = self.counts + found.valid.sum(0)

    def walked(self, name: str, found: Walk) -> None:
        """Add the cycles along one text."""
        self.cycles[name] = self.cycles.get(name, 0.0) + found.cycles
        self.accepted[name] = self.accepted.get(name, 0.0) + sum(found.accepted)

    def figures(self) -> dict[str, float]:
        """Return the figures by name, in the form that `validate` returns."""
        if not isinstance(self.nll, Tensor) or not isinstance(self.counts, Tensor):
            return {}
        out = {
            "nll": float(self.nll.sum()) / self.anchors,
            "coverage": float(self.counts[0]) / self.anchors,
        }
        out |= {f"nll_{s + 1}": float(v) for s, v in enumerate(self.nll / self.counts.clamp(min=1))}
        lengths = {k: 1 + self.accepted[k] / cycles for k, cycles in self.cycles.items()}
        return out | {f"{k}_acceptance_length": length for k, length in sorted(lengths.items())}


def validate(
    head: DraftHead,
    model: PreTrainedModel,
    documents: Sequence[Document],
    *,
    batch_size: int = 8,
    trunk: Trunk | None = None,
    on_progress: OnProgress = lambda done, total: None,
) -> dict[str, float]:
    """Held-out figures, at all positions of `documents`.

    Greedy figures come from documents written at temperature 0, sampled ones from temperature 1; text of
    unknown temperature counts for both. Cycles start at the first token to learn from. A document whose last
    token is an end token of the model ended by itself; any other was cut at its length.

    Args:
        documents: windows of text, one a row (`choose`).
        trunk: the model, where it is trained: it says whose rows verify.

    Returns:
        nll (joint of the n drafts, nats per anchor), nll_s per position, coverage (share of targets at the
        first position that can be drafted), greedy_acceptance_length and sampled_acceptance_length (where
        there is such text): expected tokens per step, 1 + accepted drafts / cycles. Empty where no
        document is long enough.
    """
    totals, done = Totals(), 0
    ends = end_tokens(model)
    for temperature, group in grouped(documents):
        ways = [name for name, t in TEMPERATURES.items() if temperature in (None, t)]
        for i in range(0, len(group), batch_size):
            part = group[i : i + batch_size]
            batch = {k: v.to(head.device) for k, v in collate([vars(d) for d in part]).items()}
            batch = batch if trunk is None else trunk.extend(head, batch)
            anchors = build_anchors(head, model, batch, teacher="sampled" in ways)
            done += len(part)
            if len(anchors.targets):
                found = paths(head, anchors, greedy="greedy" in ways, sampled="sampled" in ways)
                totals.likelihood(found)
                counts = anchor_mask(batch["input_ids"], batch["labels"]).sum(1).tolist()
                for name in ways:
                    tables = getattr(found, name).split(counts)
                    for document, table in zip(part, tables, strict=True):
                        ended = document.input_ids[-1] in ends
                        room = fitting(*table.shape, ended=ended).to(table.device)
                        totals.walked(name, walk(table * room, ended=ended))
            on_progress(done, len(documents))
    return totals.figures()


def grouped(documents: Sequence[Document]) -> Iterator[tuple[float | None, list[Document]]]:
    """Documents of one temperature together, the shortest first."""
    ordered = sorted(documents, key=lambda d: len(d.input_ids))
    for temperature in sorted({d.temperature for d in ordered}, key=str):
        yield temperature, [d for d in ordered if d.temperature == temperature]


def end_tokens(model: PreTrainedModel) -> set[int]:
    """Tokens that end a text of this model."""
    config: Any = model.generation_config
    ends = config.eos_token_id if config is not None else None
    if ends is None:
        return set()
    return {int(token) for token in (ends if isinstance(ends, list) else [ends])}
