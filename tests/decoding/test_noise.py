"""Noise that belongs to a place: the right distribution, and the same text however it is drafted."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
import torch
from scipy.stats import chi2, kstest
from transformers import LogitsProcessorList, StoppingCriteriaList

import polydraft
from polydraft.decoding.live import LiveBatch, new_row
from polydraft.decoding.loop import run
from polydraft.decoding.noise import GumbelNoise
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
        processors = LogitsProcessorList([*shaped, GumbelNoise(seed)])
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
@pytest.mark.parametrize("case", [WARPED, PREFIX_DEPENDENT, CASES[0], CASES[9]], ids=str)
def test_texts_are_distributed_as_plain_sampling(case: Case) -> None:
    """Of all heads the test below shows that drafts leave no trace."""
    check_exact(case, draws=5000)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_drafts_leave_no_trace_in_a_text(case: Case) -> None:
    drafted, engine = texts(case, draws=150)
    plain, _ = texts(case, draws=150, drafts=0)
    assert drafted == plain
    assert sum(n * taken for (_, taken), n in engine.seen.items()) > 30


class TestTheNoise:
    def test_is_a_standard_gumbel_distribution(self) -> None:
        noise = GumbelNoise(3).noise(7, 20_000).double().numpy()
        assert kstest(noise, "gumbel_r").pvalue > FALSE_ALARM_RATE

    def test_knows_seed_row_and_place_alone(self) -> None:
        one = GumbelNoise(3)
        again = one.noise(7, 50).clone()
        for place in range(100):
            one.noise(place, 50)
        assert torch.equal(one.noise(7, 50), again)
        for other in (GumbelNoise(4).noise(7, 50), GumbelNoise(3, row=1).noise(7, 50), one.noise(8, 50)):
            assert abs(float(torch.corrcoef(torch.stack([other, again]))[0, 1])) < 0.5

    def test_never_takes_what_is_all_but_impossible(self) -> None:
        """With noise from 23 bits about 10 of these 2,000 rows go wrong."""
        noise = GumbelNoise(0)
        scores = torch.full((50_000,), -40.0)
        scores[123] = 0.0
        for place in range(2000):
            ids = torch.zeros(1, place, dtype=torch.long)
            assert int(noise(ids, scores[None]).argmax()) == 123

    def test_leaves_out_what_is_ruled_out(self) -> None:
        scores = torch.tensor([[0.0, -torch.inf, 0.0]])
        noise = GumbelNoise(1)
        found = {int(noise(torch.zeros(1, k, dtype=torch.long), scores).argmax()) for k in range(1, 60)}
        assert found == {0, 2}

    @pytest.mark.parametrize("seed", [-1, 2**63])
    def test_refuses_a_seed_out_of_range(self, seed: int) -> None:
        with pytest.raises(InputError, match="seed must be between 0 and"):
            GumbelNoise(seed)


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
        model = tiny_model(vocab_size=64)
        row = new_row([3, 9, 27], device=model.device, max_new_tokens=16, temperature=0.9, top_k=50, seed=7)
        batch = LiveBatch(model, tiny_head(model), rows=1, plan=Plan(draft_length=4))
        batch.admit([row])
        while batch.active:
            batch.step()
        assert row.generated == self.generate()[0]

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
