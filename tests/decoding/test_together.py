"""The draft rows of many texts, processed together: each gets what it gets alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from polydraft.decoding.noise import GumbelNoise
from polydraft.decoding.processing import Drafting, draft_warp
from polydraft.decoding.together import alike

VOCAB = 12
DRAFT_IDS = torch.tensor([1, 2, 4, 7, 8, 11])
END = 7


def noise(seed: int) -> GumbelNoise:
    return GumbelNoise(seed, prompt=[3, 5])


BATCHES: dict[str, list[list[Any]]] = {
    "equal settings, own noise": [[TemperatureLogitsWarper(0.5), noise(seed)] for seed in range(4)],
    "other settings": [
        [TemperatureLogitsWarper(0.5), TopKLogitsWarper(2)],
        [TemperatureLogitsWarper(0.5), TopKLogitsWarper(3)],
        [TemperatureLogitsWarper(2.0), TopKLogitsWarper(2)],
    ],
    "noise for some": [
        [TemperatureLogitsWarper(0.5), noise(1)],
        [],
        [noise(1)],
        [TemperatureLogitsWarper(0.5)],
    ],
    "some look at the text": [
        [RepetitionPenaltyLogitsProcessor(1.7), TopPLogitsWarper(0.8), noise(1)],
        [TopPLogitsWarper(0.8), noise(2)],
        [RepetitionPenaltyLogitsProcessor(1.7)],
        [],
    ],
    "one text": [[RepetitionPenaltyLogitsProcessor(1.7), TemperatureLogitsWarper(0.5), noise(1)]],
}


def by_hand(processors: list[Any], text: Tensor, drafts: list[int], scores: Tensor) -> Tensor:
    """One row (V',) over the whole vocabulary, after one text; nothing after an end for who looks at it."""
    full = torch.full((1, VOCAB), -torch.inf)
    looked_at = any(isinstance(one, RepetitionPenaltyLogitsProcessor) for one in processors)
    if not (looked_at and END in drafts):
        full[0, DRAFT_IDS] = scores
    text = torch.cat([text, torch.tensor([drafts], dtype=torch.long)], dim=1)
    for processor in processors:
        full = processor(text, full)
    return full[0, DRAFT_IDS]


@pytest.mark.parametrize("nodes", [1, 3], ids=["chains", "levels of trees"])
@pytest.mark.parametrize("depth", [0, 2])
@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)
def test_each_text_gets_what_it_gets_alone(batch: list[list[Any]], depth: int, nodes: int) -> None:
    generator = torch.Generator().manual_seed(depth + 10 * nodes)
    texts = [torch.randint(VOCAB, (1, 3 + at), generator=generator) for at in range(len(batch))]
    rows = [
        Drafting(LogitsProcessorList(own), text, frozenset({END}))
        for own, text in zip(batch, texts, strict=True)
    ]
    tokens = torch.randint(len(DRAFT_IDS), (len(batch) * nodes, depth), generator=generator)
    scores = torch.randn(len(tokens), len(DRAFT_IDS), generator=generator)
    given = scores.clone()
    warp = draft_warp(rows, DRAFT_IDS, VOCAB)
    assert warp is not None
    found = warp(tokens, scores)
    expected = [
        by_hand(batch[at // nodes], texts[at // nodes], DRAFT_IDS[tokens[at]].tolist(), scores[at])
        for at in range(len(tokens))
    ]
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-6, atol=1e-6)
    assert torch.equal(scores, given)


def test_nothing_shapes_drafts_without_processors() -> None:
    rows = [Drafting(LogitsProcessorList([]), torch.tensor([[1]]), frozenset())] * 2
    assert draft_warp(rows, DRAFT_IDS, VOCAB) is None


def test_texts_are_alike_by_class_and_numbers() -> None:
    own = [
        [TemperatureLogitsWarper(0.5)],
        [TopKLogitsWarper(2)],
        [TemperatureLogitsWarper(0.5)],
        [TemperatureLogitsWarper(0.6)],
        [],
        [TemperatureLogitsWarper(0.5), TopKLogitsWarper(2)],
        [],
    ]
    assert alike(enumerate(own)) == [[0, 2], [1], [3], [4, 6], [5]]
