"""Replay against the decoder itself, and its renewal process against a plain recursion."""

from __future__ import annotations

from functools import cache
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import lab.replay as replay_module
import polydraft
from lab.grid.texts import with_states
from lab.replay import Text, replay, survival
from polydraft.decoding.statistics import DecodingStatistics
from polydraft.heads import DraftHead
from polydraft.training.data import Document
from polydraft.training.walk import Walk, fitting, walk
from tests.tiny import BLOCK, tiny_head, tiny_model

VOCAB_SIZE = 8
PROMPT = [1, 2, 3]
HEADS: list[dict[str, Any]] = [
    {"joint": "cp", "rank": 3, "horizon": 3},
    {"joint": "cp", "rank": 3, "horizon": 2, "features": "hidden"},
    {"joint": "hmm", "rank": 2, "horizon": 4, "draft_vocab_size": 6},
    {"joint": "cp-markov", "rank": 2, "horizon": 3, "draft_vocab_size": 6},
    {"joint": "cp", "rank": 4, "horizon": 3, "components": 2},
    {"joint": "sequential", "rank": 1, "horizon": 3, "draft_vocab_size": 6},
    {
        "joint": "recurrent",
        "rank": 1,
        "horizon": 4,
        "draft_vocab_size": 6,
        "features": "block",
        "block": BLOCK,
    },
]


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    """A model so uncertain that a random head is right now and then."""
    return tiny_model(vocab_size=VOCAB_SIZE, initializer_range=0.08)


def decode(
    model: PreTrainedModel, head: DraftHead, prompt: list[int], count: int, **options: Any
) -> tuple[Document, DecodingStatistics]:
    """Drafted decoding: the text with its prompt marked, and what the decoder counted."""
    out = polydraft.generate(model, head, torch.tensor([prompt]), max_new_tokens=count, **options)
    assert out.sequences is not None and out.statistics is not None
    return Document(out.sequences[0].tolist(), len(prompt)), out.statistics


def accepted_at_least(statistics: DecodingStatistics, horizon: int) -> list[int]:
    histogram = statistics.acceptance_histogram
    return [sum(histogram[s:]) for s in range(1, horizon + 1)]


@pytest.mark.parametrize("options", HEADS, ids=str)
def test_greedy_replay_is_what_decoding_does(model: PreTrainedModel, options: dict[str, Any]) -> None:
    head = tiny_head(model, **options)
    for count, prompt in ((40, PROMPT), (17, [5, 0]), (3, [7]), (2, [7]), (1, [4, 4])):
        document, statistics = decode(model, head, prompt, count, do_sample=False)
        (found,) = replay(head, with_states(model, [document]), mode="greedy")
        assert found.tokens == count - 1
        assert found.cycles == statistics.steps
        assert found.accepted == accepted_at_least(statistics, head.config.horizon)


@pytest.mark.slow
@pytest.mark.parametrize("options", HEADS[1:4], ids=str)
def test_sampled_replay_is_the_mean_of_decoding(model: PreTrainedModel, options: dict[str, Any]) -> None:
    """Given its text, a decoded run takes the replayed number of steps on average: 4.5 standard errors."""
    head = tiny_head(model, **options)
    runs = []
    for seed in range(120):
        generator = torch.Generator().manual_seed(seed)
        runs.append(decode(model, head, PROMPT, 16, do_sample=True, top_k=0, generator=generator))
    walks = replay(head, with_states(model, [document for document, _ in runs]), mode="sampled")
    found = torch.tensor([[w.cycles, *w.accepted] for w in walks], dtype=torch.float64)
    counted = torch.tensor(
        [[s.steps, *accepted_at_least(s, head.config.horizon)] for _, s in runs], dtype=torch.float64
    )
    assert bool((counted[:, 1] > 0).float().mean() > 0.5)  # there is something to compare
    difference = found - counted
    error = difference.std(0) / len(runs) ** 0.5
    assert bool((difference.mean(0).abs() <= 4.5 * error + 1e-9).all()), (difference.mean(0), error)
    assert float(error[0] / counted[:, 0].mean()) < 0.02  # the interval is narrow


def test_kept_tokens_by_hand(model: PreTrainedModel) -> None:
    """min(1, q / p) from the rows of the joint, one anchor and one position at a time."""
    head = tiny_head(model, joint="cp-markov", rank=2, horizon=3, draft_vocab_size=6)
    document, _ = decode(model, head, PROMPT, 9, do_sample=False)
    (text,) = with_states(model, [document])
    logits = cast(Any, model)(input_ids=torch.tensor([document.input_ids])).logits[0].detach()
    table = survival(head, [text], mode="sampled")[0]
    assert table.shape == (8, 3)
    for i in range(8):
        expected = 1.0
        with torch.no_grad():
            joint = head(text.hidden[i : i + 1], text.tokens[i : i + 1])
        drafted: list[int] = []
        for s in range(3):
            place = i + 1 + s
            index = int(head.draft_index(text.tokens[place])) if place < 8 else -1
            if index < 0:
                expected = 0.0
            if expected:
                before = torch.tensor(drafted, dtype=torch.long).view(1, s)
                q = float(joint.conditional(before)[0, index].detach().exp())
                p = float(logits[len(PROMPT) + place - 1].softmax(-1)[text.tokens[place]])
                expected *= min(1.0, q / p)
            drafted.append(index)
            assert float(table[i, s]) == pytest.approx(expected, abs=1e-6)


def recursion(table: Tensor, *, ended: bool) -> tuple[float, list[float], list[float]]:
    """Expected cycles, drafts judged and drafts accepted from a token on, by going through all outcomes."""
    anchors, n = table.shape

    @cache
    def rest(i: int) -> tuple[float, ...]:
        if i >= anchors:
            return (0.0,) * (1 + 2 * n)
        reached = [1.0, *table[i].tolist()]
        total = [1.0] + [0.0] * (2 * n)
        for s in range(1, n + 1):
            total[s] += reached[s - 1] * (s < anchors - i + ended)
            total[n + s] += reached[s]
        for a in range(n + 1):
            chance = reached[a] - (reached[a + 1] if a < n else 0.0)
            total = [x + chance * y for x, y in zip(total, rest(i + a + 1), strict=True)]
        return tuple(total)

    found = rest(0)
    return found[0], list(found[1 : n + 1]), list(found[n + 1 :])


@pytest.mark.parametrize("ended", [False, True])
@pytest.mark.parametrize(("anchors", "n"), [(1, 1), (1, 4), (7, 3), (12, 5), (3, 6)])
def test_walk_against_recursion(anchors: int, n: int, ended: bool) -> None:
    table = torch.rand(anchors, n, dtype=torch.float64).cumprod(-1)
    for i in range(anchors):
        table[i, max(anchors - 1 - i + ended, 0) :] = 0  # nothing is drafted beyond the last token (but one)
    assert torch.equal(fitting(anchors, n, ended=ended), table > 0)
    found = walk(table, ended=ended)
    cycles, tried, accepted = recursion(table, ended=ended)
    assert found.tokens == anchors
    assert found.cycles == pytest.approx(cycles)
    assert found.tried == pytest.approx(tried)
    assert found.accepted == pytest.approx(accepted)
    if not ended:  # else a cycle may end with a draft, and emits one token less
        assert found.cycles + sum(found.accepted) == pytest.approx(found.tokens)


def test_walk_at_the_ends() -> None:
    assert walk(torch.zeros(5, 3)).cycles == 5
    assert walk(torch.zeros(0, 3)) == Walk(tokens=0, cycles=0.0, tried=[0.0] * 3, accepted=[0.0] * 3)


def test_chunks_and_batches_change_nothing(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    head = tiny_head(model, joint="cp", rank=2, horizon=3)
    documents = [Document([1, 2, 3, *[4, 5, 6, 0] * k], 3) for k in (1, 3, 2)]
    texts = with_states(model, documents, batch_size=2)
    whole = survival(head, texts, mode="sampled")
    monkeypatch.setattr(replay_module, "CHUNK_BYTES", 4 * 3 * 2 * VOCAB_SIZE * 5)
    for table, again, text in zip(whole, survival(head, texts, mode="sampled"), texts, strict=True):
        torch.testing.assert_close(table, again, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(table, survival(head, [text], mode="sampled")[0], rtol=1e-5, atol=1e-6)
    alone: list[Text] = [with_states(model, [document])[0] for document in documents]
    for one, other in zip(texts, alone, strict=True):
        torch.testing.assert_close(one.hidden, other.hidden, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(one.log_probs, other.log_probs, rtol=1e-4, atol=1e-4)
