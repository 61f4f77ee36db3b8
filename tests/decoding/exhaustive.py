"""Whole generations with every choice made every possible way: the exact probability of each text."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, cast

import torch
from torch import Tensor
from transformers import EosTokenCriteria, LogitsProcessorList, StoppingCriteriaList

from polydraft.decoding.engine import Engine
from polydraft.decoding.loop import run
from polydraft.decoding.row import Row
from tests.decoding.outcomes import Choices
from tests.decoding.tables import LENGTH, Enough, TableModel, TableTrunk

Text = tuple[int, ...]
Fresh = Callable[[], LogitsProcessorList]
"""Makes the processors of one generation, which may keep a state."""
CUT = 1e-12
"""Texts below this probability are those that float32 leaves of a zero."""


class EveryDraw(Choices):
    """`Choices` that leaves no draw open: tokens of the base model's rows are drawn every way too."""

    def _draw(self, weights: Tensor, generator: torch.Generator | None) -> int:
        return self.choose(weights.tolist())


def drafted_texts(
    choices: EveryDraw, table: TableModel, head: Any, fresh: Fresh, *, ends: Collection[int], **options: Any
) -> dict[Text, float]:
    """The probability of each text of at most `LENGTH` tokens by the decoding loop.

    Args:
        head: a `TableHead`. ends: tokens that end a text. options: of `Engine`.
    """

    def generation() -> Text:
        criteria = StoppingCriteriaList([Enough(table.prompt)])
        if ends:
            criteria.append(EosTokenCriteria(sorted(ends)))
        engine = Engine(head, processors=fresh(), do_sample=True, generator=None, **options)
        row = Row(table.prompt, criteria)
        with torch.inference_mode():
            run(engine, [row], [table.prompt[0]], TableTrunk(table))
        return tuple(row.ids[0, table.prompt.shape[1] :].tolist())

    found: dict[Text, float] = {}
    for chance, text in choices.every(generation):
        found[text] = found.get(text, 0.0) + chance
    return {text: chance for text, chance in found.items() if chance > CUT}


def plain_texts(table: TableModel, fresh: Fresh, *, ends: Collection[int]) -> dict[Text, float]:
    """The same by plain sampling: processors called once for each token, in the order of the text."""
    found: dict[Text, float] = {}
    begun: list[tuple[Text, float]] = [((), 1.0)]
    while begun:
        text, chance = begun.pop()
        if len(text) == LENGTH or (text and text[-1] in ends):
            found[text] = chance
            continue
        processors = fresh()
        for length in range(len(text) + 1):
            ids = torch.cat([table.prompt, torch.tensor([text[:length]], dtype=torch.long)], dim=-1)
            logits = table.logits[text[:length]][None].clone()
            scores = processors(cast(Any, ids), cast(Any, logits)) if processors else logits
        row = scores[0].double().softmax(-1).tolist()
        begun += [((*text, token), chance * p) for token, p in enumerate(row) if chance * p > CUT]
    return found


def difference(left: dict[Text, float], right: dict[Text, float]) -> float:
    """The largest difference between the probabilities of a text."""
    return max(abs(left.get(text, 0.0) - right.get(text, 0.0)) for text in left.keys() | right.keys())
