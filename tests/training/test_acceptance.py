"""The held-out acceptance length against the decoder: the same head, the same texts, decoded for real."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

import polydraft
from polydraft.bench.prompts import prompts_path, read_prompts
from polydraft.decoding.statistics import DecodingStatistics
from polydraft.embedded import EMBEDDED
from polydraft.heads import DraftHead
from polydraft.heads.block import block_sizes
from polydraft.loading import load_head, load_model
from polydraft.training.anchors import build_anchors
from polydraft.training.collect import write_batch
from polydraft.training.data import Document, collate
from polydraft.training.losses import head_losses
from polydraft.training.validation import validate
from polydraft.training.weights import LossWeights
from tests.tiny import tiny_head, tiny_model

VOCAB_SIZE = 12
END = 5
HORIZON = 3
HEADS: list[dict[str, Any]] = [
    {"joint": "cp", "rank": 2, "features": "fused"},
    {"joint": "cp", "rank": 3, "features": "hidden"},
    {"joint": "cp-markov", "rank": 2, "features": "block", "draft_vocab_size": 9},
    {"joint": "markov", "rank": 1, "features": "fused", "draft_vocab_size": 9},
]


@pytest.fixture(scope="module", params=[None, END], ids=["endless", "ending"])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    """A model sure enough of itself that a head can learn it, and not so sure that all heads do."""
    return tiny_model(vocab_size=VOCAB_SIZE, initializer_range=0.15, eos_token_id=request.param)


def prompts(count: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(count)
    lengths = torch.randint(1, 6, (count,), generator=generator).tolist()
    return [torch.randint(VOCAB_SIZE, (length,), generator=generator).tolist() for length in lengths]


def trained(model: PreTrainedModel, *, temperature: float, steps: int = 12, **options: Any) -> DraftHead:
    """A head after a few steps on the model's own text: better than chance, far from perfect."""
    if options["features"] == "block":
        options["block"] = block_sizes(model.config)
    head = tiny_head(model, horizon=HORIZON, **options)
    batch = [(ids, {}) for ids in prompts(16)]
    rows = write_batch(model, batch, temperature=temperature, max_new_tokens=24, pad_token_id=0)
    batch_of = collate([vars(Document(row["input_ids"], row["prompt_length"])) for row in rows])
    optimizer = torch.optim.Adam(head.parameters(), lr=0.02)
    for _ in range(steps):
        losses = head_losses(head, build_anchors(head, model, batch_of, teacher=False), LossWeights())
        optimizer.zero_grad()
        (losses.total / losses.counts[0]).backward()
        optimizer.step()
    return head.eval()


def decoded(
    model: PreTrainedModel, head: DraftHead, *, count: int, max_new_tokens: int, temperature: float
) -> tuple[list[Document], DecodingStatistics]:
    """Texts of drafted decoding, verified token by token, and what the decoder counted over all."""
    documents, counted = [], []
    for seed, prompt in enumerate(prompts(count)):
        generator = torch.Generator().manual_seed(seed)
        sampling = {"do_sample": True, "top_k": 0} if temperature else {"do_sample": False}
        out = polydraft.generate(
            model,
            head,
            torch.tensor([prompt]),
            max_new_tokens=max_new_tokens,
            generator=generator,
            verification="token",
            **sampling,
        )
        assert out.sequences is not None and out.statistics is not None
        documents.append(Document(out.sequences[0].tolist(), len(prompt), temperature))
        counted.append(out.statistics)
    return documents, DecodingStatistics.merged(counted)


def standard_error(statistics: DecodingStatistics) -> float:
    """Of the mean acceptance length, cycles taken as independent."""
    counts = torch.tensor(statistics.acceptance_histogram, dtype=torch.float64)
    values = torch.arange(len(counts), dtype=torch.float64)
    mean = (counts * values).sum() / counts.sum()
    return float(((counts * (values - mean) ** 2).sum() / counts.sum() ** 2).sqrt())


@pytest.mark.parametrize("options", HEADS, ids=str)
def test_greedy_is_what_decoding_accepts(model: PreTrainedModel, options: dict[str, Any]) -> None:
    head = trained(model, temperature=0.0, **options)
    documents, counted = decoded(model, head, count=16, max_new_tokens=24, temperature=0.0)
    assert 1.15 < counted.mean_acceptance_length < HORIZON + 0.8
    found = validate(head, model, documents, batch_size=5)
    assert found["greedy_acceptance_length"] == pytest.approx(counted.mean_acceptance_length, rel=1e-9)
    assert "sampled_acceptance_length" not in found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("end", "options"), [(None, HEADS[1]), (END, HEADS[2])], ids=["endless, hidden", "ending, block"]
)
def test_sampled_is_what_decoding_accepts_on_average(end: int | None, options: dict[str, Any]) -> None:
    """Within 5%, at least 3.5 standard errors of what was decoded: a false alarm in one of 2,000 seeds."""
    model = tiny_model(vocab_size=VOCAB_SIZE, initializer_range=0.15, eos_token_id=end)
    head = trained(model, temperature=1.0, **options)
    count, most = (110, 34) if end is None else (210, 30)
    documents, counted = decoded(model, head, count=count, max_new_tokens=most, temperature=1.0)
    length = counted.mean_acceptance_length
    assert 1.15 < length < HORIZON + 0.8
    assert 3.5 * standard_error(counted) < 0.05 * length
    found = validate(head, model, documents, batch_size=32)
    assert found["sampled_acceptance_length"] == pytest.approx(length, rel=0.05)
    assert "greedy_acceptance_length" not in found


def test_texts_that_end_by_themselves_are_among_them() -> None:
    model = tiny_model(vocab_size=VOCAB_SIZE, initializer_range=0.15, eos_token_id=END)
    head = tiny_head(model, horizon=HORIZON)
    documents, _ = decoded(model, head, count=16, max_new_tokens=24, temperature=1.0)
    ended = [d.input_ids[-1] == END for d in documents]
    assert 0 < sum(ended) < len(ended)


@pytest.mark.slow
@pytest.mark.real_model
def test_the_shipped_head_on_prompts_it_has_not_seen() -> None:
    """Within 5%: bfloat16 rounds a few tokens at a time and a whole text differently, but seldom decides."""
    model, tokenizer = load_model(EMBEDDED, dtype=torch.bfloat16)
    head = load_head(EMBEDDED, model=model, tokenizer=tokenizer)
    documents, counted = [], []
    for prompt in read_prompts(prompts_path("heldout"))[::4]:
        ids = prompt.encode(tokenizer)
        out = polydraft.generate(model, head, torch.tensor([ids]), max_new_tokens=48, do_sample=False)
        assert out.sequences is not None and out.statistics is not None
        documents.append(Document(out.sequences[0].tolist(), len(ids), 0.0))
        counted.append(out.statistics)
    found = validate(head, model, documents, batch_size=3)["greedy_acceptance_length"]
    assert found == pytest.approx(DecodingStatistics.merged(counted).mean_acceptance_length, rel=0.05)
