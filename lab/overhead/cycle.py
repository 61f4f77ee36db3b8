"""Seconds of the parts of a decoding cycle, by stamps around what the loop asks of the trunk.

    end of a forward   ->  verification, texts grow        ("verify")
    keep               ->  the cache keeps what stays      ("keep")
    until the forward  ->  the head is told, and drafts    ("draft")
    the forward        ->  over 1 + n tokens               ("forward")

These are all of a cycle, so they add up to it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import pairwise
from statistics import fmean
from typing import Any, cast

import torch
from torch import Tensor
from transformers import LogitsProcessorList, PreTrainedModel, StoppingCriteria, StoppingCriteriaList

from polydraft.decoding.engine import Engine
from polydraft.decoding.loop import run
from polydraft.decoding.row import Row
from polydraft.decoding.trunk import EagerTrunk
from polydraft.heads import DraftHead

PARTS = ("draft", "forward", "verify", "keep")
"""Of a cycle."""


def now(device: torch.device) -> float:
    """Seconds, after all queued work is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class StampedTrunk(EagerTrunk):
    """A trunk that notes when its forwards begin and end, and when it is told what stays.

    Attributes:
        stamps: per cycle when its forward began and ended, and `keep` began and ended.
    """

    def __init__(self, model: PreTrainedModel, **options: Any) -> None:
        super().__init__(model, **options)
        self._device = model.device
        self.stamps: list[list[float]] = []
        self._kept: list[int] = []

    def forward(self, tokens: Tensor, *, parents: Sequence[Sequence[int]] | None = None) -> Tensor:
        """See `Trunk`."""
        began = now(self._device)
        logits = super().forward(tokens, parents=parents)
        self.stamps.append([began, now(self._device)])
        return logits

    def keep(self, paths: Sequence[Sequence[int]]) -> None:
        """See `Trunk`."""
        began = now(self._device)
        super().keep(paths)
        self._kept.append(len(paths[0]) - 1)
        self.stamps[-1] += [began, now(self._device)]

    def parts(self) -> dict[str, float]:
        """Means over all cycles but the first: seconds of `PARTS`, their sum "cycle"; drafts "kept"."""
        cycles = list(pairwise(self.stamps))
        found = {
            "draft": fmean(after[0] - before[3] for before, after in cycles),
            "forward": fmean(after[1] - after[0] for _, after in cycles),
            "verify": fmean(before[2] - before[1] for before, _ in cycles),
            "keep": fmean(before[3] - before[2] for before, _ in cycles),
        }
        return found | {"cycle": sum(found.values()), "kept": fmean(self._kept)}


@torch.no_grad()
def drafted_cycle(
    model: PreTrainedModel, head: DraftHead, prompt: Tensor, *, cycles: int, do_sample: bool
) -> dict[str, float]:
    """Seconds of the parts of a cycle that drafts a chain of the head's horizon; see `StampedTrunk.parts`.

    Args:
        prompt: (T,) int64. cycles: at least 1, beside a first one that is not counted.
        do_sample: at temperature 1; else greedy.
    """
    trunk = StampedTrunk(model, taps=head.config.taps, rows=1)
    row = Row(prompt[None], StoppingCriteriaList([AfterCycles(trunk, cycles + 1)]))
    engine = Engine(head, processors=LogitsProcessorList(), do_sample=do_sample, generator=None)
    run(engine, [row], [prompt], trunk)
    return trunk.parts()


class AfterCycles(StoppingCriteria):
    """Holds once `trunk` has seen the given number of forwards."""

    def __init__(self, trunk: StampedTrunk, cycles: int) -> None:
        self.trunk, self.cycles = trunk, cycles

    def __call__(self, input_ids: Any, scores: Any, **more: Any) -> Any:
        """(B,) bool."""
        return torch.full((len(input_ids),), len(self.trunk.stamps) >= self.cycles)


@torch.no_grad()
def plain_step(model: PreTrainedModel, prompt: Tensor, *, steps: int, do_sample: bool) -> dict[str, float]:
    """Seconds of `model.generate`, without drafts: of a step ("step"), of the forward in it, of the prompt.

    Args:
        prompt: (T,) int64. steps: at least 1, after the prompt's own.
        do_sample: at temperature 1; else greedy.
    """
    stamps: list[tuple[float, float]] = []
    began: list[float] = []
    device = model.device

    def before(*_: Any) -> None:
        began.append(now(device))

    def after(*_: Any) -> None:
        stamps.append((began[-1], now(device)))

    hooks = [model.register_forward_pre_hook(before), model.register_forward_hook(after)]
    try:
        cast(Any, model).generate(
            prompt[None],
            attention_mask=torch.ones_like(prompt[None]),
            max_new_tokens=steps + 1,
            eos_token_id=model.config.get_text_config().vocab_size,  # no token ends the text
            pad_token_id=0,
            do_sample=do_sample,
            **({"temperature": 1.0, "top_k": 0, "top_p": 1.0} if do_sample else {}),
        )
    finally:
        for hook in hooks:
            hook.remove()
    periods = [second[1] - first[1] for first, second in pairwise(stamps)]
    return {
        "step": fmean(periods),
        "forward": fmean(end - start for start, end in stamps[1:]),
        "prompt": stamps[0][1] - stamps[0][0],
    }
