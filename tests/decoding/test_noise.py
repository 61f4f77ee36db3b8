"""Noise that belongs to a position: the right distribution, and the same text however it is drafted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import log
from typing import Any, cast

import numpy as np
import pytest
import torch
from scipy.stats import chi2, kstest
from torch import Tensor
from transformers import LogitsProcessorList, StoppingCriteriaList

import polydraft
from polydraft.compat import CACHE
from polydraft.decoding.live import LiveBatch, new_row
from polydraft.decoding.loop import run
from polydraft.decoding.noise import GumbelNoise, choices_of, gumbel, mixed, mixed_by_numpy
from polydraft.decoding.plan import Plan
from polydraft.decoding.policy import Fixed
from polydraft.decoding.row import Row
from polydraft.errors import InputError
from tests.decoding.cases import CASES, HORIZON, PREFIX_DEPENDENT, PROMPT, WARPED, Case, tables
from tests.decoding.tables import Enough, TableTrunk, WatchedEngine, enumerated
from tests.decoding.test_exact_sampling import FALSE_ALARM_RATE, chi_square
from tests.tiny import tiny_head, tiny_model


def texts(case: Case, *, draws: int, drafts: int = HORIZON) -> tuple[list[tuple[int, ...]], WatchedEngine]:
    """`draws` texts of the seeds 0, 1, ..; and what verification saw."""
    table, head = tables(case, pooled=False)
    engine = WatchedEngine(
        cast(Any, head),
        processors=LogitsProcessorList(),
        do_sample=False,
        generator=None,
        policy=Fixed(drafts),
    )
    criteria = StoppingCriteriaList([Enough(PROMPT)])
    shaped = list(case.processors)
    found = []
    for seed in range(draws):
        noise = GumbelNoise(seed, prompt=table.prompt[0].tolist())
        processors = LogitsProcessorList([*shaped, noise])
        row = Row(table.prompt, criteria, processors=processors)
        with torch.inference_mode():
            run(engine, [row], [table.prompt[0]], TableTrunk(table))
        found.append(tuple(row.generated))
    return found, engine


def check_exact(case: Case, *, draws: int) -> None:
    """Chi-square against the enumeration, with refusals at every position; false alarms at 1e-4."""
    table, _ = tables(case)
    found, engine = texts(case, draws=draws)
    counts = np.zeros((table.vocab_size,) * len(found[0]))
    np.add.at(counts, tuple(np.array(found).T), 1)
    probabilities = enumerated(table, case.processors)
    assert chi2.sf(*chi_square(counts.ravel(), probabilities)) > FALSE_ALARM_RATE
    for position in range(1, HORIZON + 1):
        refused = sum(n for (given, taken), n in engine.seen.items() if taken + 1 == position <= given)
        assert refused > draws // 200, f"refusals at position {position}: {engine.seen}"


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        WARPED,
        CASES[9],
        *(pytest.param(case, marks=pytest.mark.nightly) for case in (PREFIX_DEPENDENT, CASES[0])),
    ],
    ids=str,
)
def test_texts_are_distributed_as_plain_sampling(case: Case) -> None:
    """Of all heads the test below shows that drafts leave no trace."""
    check_exact(case, draws=5000)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_drafts_leave_no_trace_in_a_text(case: Case) -> None:
    drafted, engine = texts(case, draws=150)
    plain, _ = texts(case, draws=150, drafts=0)
    assert drafted == plain
    assert sum(n * taken for (_, taken), n in engine.seen.items()) > 30


TEXT = [3, 9, 27]
KNOWN = [0.135178, 1.86979, -0.043766]
Stream = tuple[GumbelNoise, int]
"""A noise, and behind how many tokens it is asked for."""


def stream(
    seed: int, prompt: list[int] = TEXT, *, choice: int = 0, padding: int = 0, length: int = 3
) -> Stream:
    return GumbelNoise(seed, prompt=prompt, choice=choice, padding=padding), length


def drawn(streams: Sequence[Stream], probabilities: Tensor) -> Tensor:
    """The token that each draws."""
    noise = gumbel([one.start(length) for one, length in streams], torch.arange(len(probabilities)))
    return (probabilities.log() + noise).argmax(-1)


PAIRS: dict[str, Callable[[int], tuple[Stream, Stream]]] = {
    "seeds in a row": lambda i: (stream(2 * i), stream(2 * i + 1)),
    "choices": lambda i: (stream(i), stream(i, choice=1)),
    "a choice, and the next seed": lambda i: (stream(2 * i, choice=1), stream(2 * i + 1)),
    "seed and choice swapped": lambda i: (stream(i, choice=i + 1), stream(i + 1, choice=i)),
    "prompts of one length": lambda i: (stream(7, [5, i, 8]), stream(7, [6, i, 8])),
    "a token moved from text to prompt": lambda i: (stream(i, length=4), stream(i, [*TEXT, 1], length=4)),
    "positions": lambda i: (stream(7, length=2 * i + 3), stream(7, length=2 * i + 4)),
    "seeds and their negatives": lambda i: (stream(i + 1), stream(-i - 1)),
}


class TestTheNoise:
    @pytest.mark.parametrize("way", ["tokens", "positions", "seeds"])
    def test_is_a_standard_gumbel_distribution(self, way: str) -> None:
        count = torch.arange(20_000)
        noise = {
            "tokens": lambda: gumbel([stream(3)[0].start(7)], count),
            "positions": lambda: gumbel([stream(3)[0].start(at) for at in count.tolist()], count[:1]),
            "seeds": lambda: gumbel([stream(seed)[0].start(7) for seed in count.tolist()], count[:1]),
        }[way]()
        values = noise.double().flatten().numpy()
        assert kstest(values, "gumbel_r").pvalue > FALSE_ALARM_RATE
        assert abs(values.mean() - np.euler_gamma) < 4 * np.pi / np.sqrt(6 * len(values))
        assert abs(values.var() - np.pi**2 / 6) < 4 * np.sqrt(4.4 / len(values)) * np.pi**2 / 6

    def test_comes_from_the_numbers_of_the_reference_implementation(self) -> None:
        """Those of splitmix64.c from 1234567."""
        numbers = (6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431)
        expected = [-log(-log(((number >> 12) + 0.5) / 2**52)) for number in numbers]
        assert gumbel([1234567], torch.arange(4))[0].tolist() == pytest.approx(expected, rel=1e-6)
        picked = gumbel([1234567, 5], torch.tensor([3, 1]))
        assert picked[0].tolist() == pytest.approx([expected[3], expected[1]], rel=1e-6)
        exact = [number >> 12 for number in numbers]
        for mix in (mixed, mixed_by_numpy):
            assert mix(torch.tensor([1234567]), torch.arange(4))[0].tolist() == exact

    def test_is_the_same_on_every_way_and_beside_other_streams(self) -> None:
        """numpy's unsigned numbers and torch's signed ones; one stream, and many at once."""
        starts, tokens = [1234567, -1, 2**63 - 1, -(2**63)], torch.arange(500)
        assert torch.equal(mixed(torch.tensor(starts), tokens), mixed_by_numpy(torch.tensor(starts), tokens))
        alone = torch.cat([gumbel([start], tokens) for start in starts])
        assert torch.equal(gumbel(starts, tokens), alone)
        some = torch.tensor([400, 3, 77])
        assert torch.equal(gumbel(starts, some), alone[:, some])

    def test_stays_the_same_in_later_versions(self) -> None:
        noise = GumbelNoise(7, prompt=TEXT, choice=1).noise(5, 3)
        assert noise.tolist() == pytest.approx(KNOWN, abs=1e-5)

    @pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
    def test_pairs_are_independent(self, pair: Callable[[int], tuple[Stream, Stream]]) -> None:
        """Chi-square of both draws together against the product; false alarms at 1e-4."""
        p = torch.tensor([0.4, 0.3, 0.2, 0.1])
        left, right = (drawn(streams, p) for streams in zip(*map(pair, range(5000)), strict=True))
        counts = torch.bincount(4 * left + right, minlength=16).numpy()
        expected = (p[:, None] * p).flatten().double().numpy()
        assert chi2.sf(*chi_square(counts, expected)) > FALSE_ALARM_RATE

    def test_counts_from_the_first_real_token(self) -> None:
        padded, alone = GumbelNoise(3, prompt=TEXT, padding=4), GumbelNoise(3, prompt=TEXT)
        assert torch.equal(padded.noise(9, 50), alone.noise(5, 50))

    def test_never_takes_what_is_all_but_impossible(self) -> None:
        """With noise from 23 bits about 10 of these 2,000 rows go wrong."""
        noise, _ = stream(0)
        scores = torch.full((50_000,), -40.0)
        scores[123] = 0.0
        for length in range(2000):
            ids = torch.zeros(1, length, dtype=torch.long)
            assert int(noise(ids, scores[None]).argmax()) == 123

    def test_leaves_out_what_is_ruled_out(self) -> None:
        scores = torch.tensor([[0.0, -torch.inf, 0.0]])
        noise, _ = stream(1)
        found = {int(noise(torch.zeros(1, k, dtype=torch.long), scores).argmax()) for k in range(1, 60)}
        assert found == {0, 2}

    @pytest.mark.parametrize("seed", [-(2**63) - 1, 2**63])
    def test_refuses_a_seed_out_of_range(self, seed: int) -> None:
        with pytest.raises(InputError, match="seed must be between -2"):
            GumbelNoise(seed, prompt=TEXT)


def test_choices_count_texts_of_one_prompt() -> None:
    assert choices_of([[1], [2], [1], torch.tensor([1, 2]).tolist(), [1], [2]]) == [0, 0, 1, 0, 2, 1]


class TestSeededGeneration:
    """`generate(seed=...)`."""

    def generate(self, seed: int | None = 7, **options: Any) -> list[list[int]]:
        model = tiny_model(vocab_size=64)
        prompt = torch.tensor([[3, 9, 27]]).expand(3, -1)
        given = {"do_sample": True, "max_new_tokens": 16, "temperature": 0.9}
        out = polydraft.generate(
            model, tiny_head(model, draft_vocab_size=40), prompt, seed=seed, **(given | options)
        )
        assert out.sequences is not None
        return cast(list[list[int]], out.sequences[:, 3:].tolist())

    def test_gives_the_same_text_whatever_is_drafted(self) -> None:
        found = self.generate()
        assert self.generate(draft_length=0) == self.generate(draft_length=12) == found
        assert self.generate(drafting="chain", draft_length=2, prompt_lookup_num_tokens=3) == found
        assert self.generate(seed=8) != found
        assert len({tuple(row) for row in found}) == 3

    def test_is_that_of_a_live_batch(self) -> None:
        """Rows of one prompt are its choices."""
        model = tiny_model(vocab_size=64)
        options: dict[str, Any] = {"max_new_tokens": 16, "temperature": 0.9, "top_k": 50, "seed": 7}
        rows = [new_row([3, 9, 27], device=model.device, choice=at, **options) for at in range(3)]
        batch = LiveBatch(model, tiny_head(model), rows=3, plan=Plan(draft_length=4))
        batch.admit(rows)
        while batch.active:
            batch.step()
        assert [row.generated for row in rows] == self.generate()

    def test_does_not_depend_on_padding_nor_on_the_batch(self) -> None:
        """Beside longer texts, with and without a mask, as choices of `num_return_sequences`."""
        model = tiny_model(vocab_size=64)
        head = tiny_head(model, draft_vocab_size=40)
        prompts = [[3, 9, 27], [5], [3, 9, 27], [8, 4, 4, 8, 1]]
        ids = torch.tensor([[0] * (5 - len(prompt)) + prompt for prompt in prompts])
        mask = (ids > 0).long()
        common: dict[str, Any] = {"do_sample": True, "max_new_tokens": 12, "seed": 7, "pad_token_id": 0}

        def new(ids: Tensor, **options: Any) -> list[list[int]]:
            out = polydraft.generate(model, head, ids, **common, **options)
            assert out.sequences is not None
            return cast(list[list[int]], out.sequences[:, ids.shape[1] :].tolist())

        together = new(ids, attention_mask=mask)
        assert new(ids) == together  # transformers makes the mask of the padding
        alone = {tuple(prompt): new(torch.tensor([prompt]), num_return_sequences=2) for prompt in prompts}
        assert together == [alone[3, 9, 27][0], alone[5,][0], alone[3, 9, 27][1], alone[8, 4, 4, 8, 1][0]]
        assert len({tuple(text) for texts in alone.values() for text in texts}) == 6

    def test_goes_on_from_a_cache_as_without_one(self) -> None:
        """The whole text before the first new token is the prompt."""
        model = tiny_model(vocab_size=64)
        head = tiny_head(model)
        common: dict[str, Any] = {"do_sample": True, "max_new_tokens": 12, "seed": 7}
        first = polydraft.generate(model, head, torch.tensor([[3, 9, 27]]), **common)
        assert first.sequences is not None
        text = torch.cat([first.sequences, torch.tensor([[1, 2]])], dim=1)
        fresh = polydraft.generate(model, head, text, **common).sequences
        continued = polydraft.generate(model, head, text, **common, **{CACHE: first.cache}).sequences
        assert fresh is not None and continued is not None
        assert torch.equal(continued, fresh)

    def test_changes_nothing_of_a_greedy_text(self) -> None:
        assert self.generate(do_sample=False) == self.generate(seed=None, do_sample=False)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"generator": torch.Generator()}, "takes the place of a generator"),
            ({"verification": "block", "drafting": "chain"}, "couples the draws"),
            ({"output_scores": True}, "hold its noise"),
        ],
    )
    def test_refuses_what_it_cannot_go_with(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(InputError, match=message):
            self.generate(**options)
