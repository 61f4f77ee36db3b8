"""Cycles of the decoding loop without the forward of the base model, to time what else they do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import (
    EosTokenCriteria,
    LogitsProcessorList,
    MaxLengthCriteria,
    PreTrainedModel,
    StoppingCriteriaList,
)
from transformers.generation.logits_process import TemperatureLogitsWarper

from polydraft.decoding.adapted import AdaptedTrunk
from polydraft.decoding.engine import Engine
from polydraft.decoding.loop import Loop
from polydraft.decoding.noise import GumbelNoise
from polydraft.decoding.policy import Fixed
from polydraft.decoding.row import Row
from polydraft.decoding.trunk import Trunk
from polydraft.heads import DraftHead

CERTAIN = 1000.0
"""Logit of the token that an answer names; the others are 0."""
TEMPERATURE = 0.8
"""Temperature of sampled rows."""
LONGEST = 10**9
NEVER = -1
"""An end token that is never said."""


class Answers:
    """A `Trunk` whose answers are there already: the first draft of every text is kept, the next is not.

    Args:
        read: logits (B, V) and hidden states after the prompts, as of `Trunk.prefill`.
        states: (B, W, D), of the widest forward.
    """

    def __init__(self, read: tuple[Tensor, Tensor], states: Tensor) -> None:
        self._logits, self.hidden = read
        self._states = states
        rows, width, _ = states.shape
        self._answers = self._logits.new_zeros(rows, width, self._logits.shape[-1])
        self._first = self._answers[:, 0]
        self._said: Tensor | None = None

    def __enter__(self) -> Answers:
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing was opened."""

    def prefill(self, prompts: Sequence[Tensor]) -> Tensor:
        """See `Trunk`."""
        return self._logits

    def read(self, tokens: Tensor) -> Tensor:
        """See `Trunk`."""
        raise NotImplementedError

    def forward(self, tokens: Tensor, *, parents: Sequence[Sequence[int]] | None = None) -> Tensor:
        """See `Trunk`."""
        width = tokens.shape[1]
        if self._said is not None:
            self._first.scatter_(1, self._said, 0.0)
        if width > 1:
            self._said = tokens[:, 1:2]
            self._first.scatter_(1, self._said, CERTAIN)
        self.hidden = self._states[:, :width]
        return self._answers[:, :width]

    def keep(self, paths: Sequence[Sequence[int]]) -> None:
        """See `Trunk`."""

    def select(self, rows: Sequence[int]) -> None:
        """See `Trunk`."""

    def join(self, other: Trunk) -> None:
        """See `Trunk`."""
        raise NotImplementedError

    def end(self) -> None:
        """See `Trunk`."""


def cycles(
    model: PreTrainedModel,
    head: DraftHead,
    prompts: Sequence[Tensor],
    read: tuple[Tensor, Tensor],
    states: Tensor,
    *,
    tree: bool,
    sampled: bool,
) -> Callable[[int], Callable[[], object]]:
    """Return what makes a cycle with a given number of drafts a row, of texts that begin with `prompts`.

    Args:
        prompts: per row (T_b,). read, states: as of `Answers`.
        tree: draft trees, not chains. sampled: draw tokens, coupled by seeds; take the likeliest else.
    """
    engine = Engine(
        head,
        processors=LogitsProcessorList(),
        do_sample=False,
        generator=None,
        drafting="tree" if tree else "chain",
        policy=Fixed(0),
    )
    criteria = StoppingCriteriaList(
        [MaxLengthCriteria(LONGEST), EosTokenCriteria(torch.tensor([NEVER], device=prompts[0].device))]
    )
    rows = [Row(prompt[None], criteria, processors=_processors(prompt, sampled)) for prompt in prompts]
    adapted = None if head.switch is None else AdaptedTrunk(model, head, head.switch, prompts)
    loop = Loop(engine, rows, prompts, Answers(read, states), adapted=adapted)

    def cycle(drafts: int) -> Callable[[], object]:
        def run() -> None:
            engine.policy = Fixed(drafts)
            loop.cycle()

        return run

    return cycle


def _processors(prompt: Tensor, sampled: bool) -> LogitsProcessorList:
    own: list[Any] = []
    if sampled:
        own = [TemperatureLogitsWarper(TEMPERATURE), GumbelNoise(0, prompt=prompt.tolist())]
    return LogitsProcessorList(own)
