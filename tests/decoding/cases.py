"""The heads and options that exact sampling is tested with."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from transformers import LogitsProcessorList, PreTrainedModel

from polydraft.heads import DraftHead
from tests.decoding.tables import TableHead, TableModel, prepared_processors
from tests.tiny import BLOCK, tiny_head, tiny_model

VOCAB_SIZE, HORIZON = 5, 3
PROMPT = torch.tensor([[0, 3, 1]])


@dataclass(frozen=True)
class Case:
    """One head and the options of `model.generate`; `top_k=0` switches off the default of 50.

    Attributes:
        head: further options of `tiny_head`.
    """

    joint: str
    rank: int
    features: str
    draft_vocab_size: int
    options: dict[str, Any] = field(hash=False)
    head: dict[str, Any] = field(hash=False, default_factory=dict)

    def __str__(self) -> str:
        options = "-".join(f"{name}={value}" for name, value in (self.head | self.options).items())
        size = f"{self.draft_vocab_size}of{VOCAB_SIZE}"
        return f"{self.joint}-rank={self.rank}-{self.features}-{size}-{options}"

    def attached(self, model: PreTrainedModel) -> DraftHead:
        """A random head, far from the model."""
        return tiny_head(
            model,
            joint=self.joint,
            rank=self.rank,
            horizon=HORIZON,
            features=self.features,
            draft_vocab_size=self.draft_vocab_size,
            **self.head,
        )

    @property
    def processors(self) -> LogitsProcessorList:
        """Those that `model.generate` makes of the options."""
        return prepared_processors(tiny_model(vocab_size=VOCAB_SIZE), PROMPT, **self.options)


CASES = [
    Case("independent", 1, "block", 5, {"temperature": 0.7, "top_k": 0}, {"block": BLOCK}),
    Case("cp", 3, "hidden", 4, {"temperature": 1.0, "top_k": 0}),
    Case("hmm", 3, "fused", 4, {"temperature": 1.5, "top_k": 0}),
    Case("cp", 3, "fused", 4, {"temperature": 0.7, "top_k": 3}),
    Case("cp-markov", 2, "hidden", 5, {"temperature": 1.0, "top_k": 0, "top_p": 0.85}, {"markov_rank": 3}),
    Case("tree", 3, "hidden", 5, {"temperature": 1.5, "top_k": 4, "top_p": 0.8}),
    Case("markov", 1, "fused", 4, {"temperature": 1.0, "top_k": 0, "repetition_penalty": 1.5}),
    Case("hmm", 4, "fused", 4, {"temperature": 1.0, "top_k": 3}, {"components": 2}),
    Case("sequential", 1, "fused", 4, {"temperature": 1.0, "top_k": 0, "top_p": 0.85}),
    Case("recurrent", 1, "block", 4, {"temperature": 0.7, "top_k": 4}, {"block": BLOCK}),
]
WARPED, PLAIN, PREFIX_DEPENDENT = CASES[3], CASES[1], CASES[6]
CHAINED, TIED = CASES[2], CASES[4]


@lru_cache(maxsize=1)
def table() -> tuple[PreTrainedModel, TableModel]:
    """A random model, far from uniform, and its table."""
    model = tiny_model(vocab_size=VOCAB_SIZE, initializer_range=0.2)
    return model, TableModel(model, PROMPT)


def tables(case: Case, *, pooled: bool = True) -> tuple[TableModel, TableHead]:
    """The model and the head of a case."""
    model, looked_up = table()
    return looked_up, TableHead(case.attached(model), looked_up, pooled=pooled)
