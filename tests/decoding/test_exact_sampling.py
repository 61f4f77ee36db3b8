"""Drafted sampling is distributed as plain sampling: chi-square against the enumerated distribution.

False alarms: a correct decoder fails one test with probability 1e-4; seeds are fixed, so it never changes.
Power: above 0.9999 for each of the planted faults, at 5,000 draws; asserted. The tests have 10,000.
`test_exact_steps` has every case under every verification, without draws; here each case has one of them,
and but two of them are drawn by day.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pytest
import torch
from scipy.stats import chi2, ncx2
from torch import Tensor
from transformers import MaxLengthCriteria, StoppingCriteriaList

import polydraft
from polydraft.decoding import block, verify
from polydraft.decoding.drafts import Draft, Kept
from polydraft.decoding.engine import Engine
from polydraft.decoding.row import Row
from polydraft.decoding.verify import Verified
from polydraft.joint import JointDistribution
from polydraft.modes import VERIFICATIONS
from tests.decoding.cases import (
    CASES,
    CHAINED,
    HORIZON,
    PLAIN,
    PREFIX_DEPENDENT,
    PROMPT,
    TIED,
    VOCAB_SIZE,
    WARPED,
    Case,
    table,
    tables,
)
from tests.decoding.tables import LENGTH, Array, WatchedEngine, drawn, enumerated, generated
from tests.tiny import tiny_model

FALSE_ALARM_RATE = 1e-4
DRAWS = 10_000


@dataclass(frozen=True)
class Result:
    """Chi-square of drafted against plain sampling, and what the verification did meanwhile."""

    statistic: float
    degrees: int
    seen: dict[tuple[int, int], int]

    @property
    def p_value(self) -> float:
        """Chance that a correct decoder is at least this far off."""
        return float(chi2.sf(self.statistic, self.degrees))

    @property
    def power(self) -> float:
        """Chance to reject a decoder as far off as this one looks: by `statistic - degrees`."""
        limit = chi2.isf(FALSE_ALARM_RATE, self.degrees)
        return float(ncx2.sf(limit, self.degrees, max(self.statistic - self.degrees, 1e-9)))


def chi_square(counts: Array, probabilities: Array) -> tuple[float, int]:
    """Statistic and degrees of freedom; what expects fewer than 5 is merged, impossible draws are refused."""
    assert counts[probabilities == 0].sum() == 0, "drew what plain sampling never draws"
    expected = probabilities * counts.sum()
    rare = expected < 5
    counts = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    if expected[-1] < 5:  # too little to stand alone
        counts, expected = (
            np.append(counts[:-2], counts[-2:].sum()),
            np.append(expected[:-2], expected[-2:].sum()),
        )
    return float(((counts - expected) ** 2 / expected).sum()), len(counts) - 1


def compare(
    case: Case,
    *,
    draws: int,
    verification: str = "token",
    engine_class: type[WatchedEngine] = WatchedEngine,
) -> Result:
    """Run the decoding loop `draws` times and compare with the enumeration."""
    table, head = tables(case)
    processors = case.processors
    probabilities = enumerated(table, processors)
    assert abs(probabilities.sum() - 1) < 1e-6
    generator = torch.Generator().manual_seed(20)
    engine = engine_class(
        cast(Any, head),
        processors=processors,
        do_sample=True,
        generator=generator,
        verification=verification,
    )
    statistic, degrees = chi_square(drawn(table, engine, draws=draws), probabilities)
    return Result(statistic, degrees, dict(engine.seen))


def check_exact(case: Case, *, draws: int, verification: str) -> None:
    """The distribution is plain sampling's, and everything that could have spoilt it happened."""
    result = compare(case, draws=draws, verification=verification)
    assert result.p_value > FALSE_ALARM_RATE, (result.statistic, result.degrees)
    often = draws // 200
    for accepted in range(HORIZON + 1):
        assert result.seen.get((HORIZON, accepted), 0) > often, f"{accepted} of {HORIZON}: {result.seen}"
    for position in range(1, HORIZON + 1):  # position 2 and 3: behind one and two accepted drafts
        refused = sum(n for (given, taken), n in result.seen.items() if taken + 1 == position <= given)
        assert refused > often, f"refusals at position {position}: {result.seen}"


DAILY = (PREFIX_DEPENDENT, "block")
NIGHTLY = [
    *((case, "token") for case in CASES[:6:2]),
    *((case, "block") for case in CASES[1:6:2]),
]


@pytest.mark.parametrize(
    ("case", "verification"),
    [
        DAILY,
        pytest.param(WARPED, "token", marks=pytest.mark.slow),
        *(pytest.param(*pair, marks=pytest.mark.nightly) for pair in NIGHTLY),
    ],
    ids=str,
)
def test_drafted_sampling_is_plain_sampling(case: Case, verification: str) -> None:
    check_exact(case, draws=DRAWS, verification=verification)


@pytest.mark.slow
class TestPlantedFaults:
    """Each is caught by `compare`, at a fraction of the draws, with a power above 0.9999."""

    DRAWS = 5000

    def check_caught(self, case: Case, **options: Any) -> None:
        result = compare(case, draws=self.DRAWS, **options)
        assert result.p_value < FALSE_ALARM_RATE
        assert result.power > 0.9999

    @pytest.mark.parametrize("case", [PLAIN, WARPED], ids=str)
    def test_residual_skipped(self, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(verify, "residual", lambda target, draft, draft_ids: target)
        self.check_caught(case)

    @pytest.mark.parametrize("case", [PLAIN, WARPED], ids=str)
    def test_chance_of_the_last_draft_for_all_of_a_block(
        self, case: Case, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(block, "chance_to_keep", lambda path, more: path)
        self.check_caught(case, verification="block")

    def test_q_taken_before_the_warper(self) -> None:
        class Unwarped(WatchedEngine):
            def draft(
                self, joint: JointDistribution, rows: Sequence[Row], count: int, depth: int
            ) -> list[Draft]:
                draft = super().draft(joint, rows, count, depth)[0]
                index = draft.draft_index
                assert index is not None
                unwarped = [joint.conditional(index[None, :s])[0] for s in range(len(index))]
                return [Draft(draft.tokens, index, torch.stack(unwarped))]

        self.check_caught(WARPED, engine_class=Unwarped)

    @pytest.mark.parametrize("case", [PLAIN, WARPED], ids=str)
    def test_correction_dropped(self, case: Case) -> None:
        class Dropping(WatchedEngine):
            """After a refusal at position 2 or later goes on from the last accepted draft."""

            def verify(self, row: Row, draft: Draft, logits: Tensor, *rest: Any) -> Kept:
                kept = super().verify(row, draft, logits, *rest)
                refused = 0 < len(kept.path) < len(draft.tokens)
                return kept._replace(token=None) if refused else kept

        self.check_caught(case, engine_class=Dropping)


class TestTheTables:
    """What the tests above stand on: tables and enumeration say what the real model does."""

    @pytest.mark.parametrize("verification", VERIFICATIONS)
    @pytest.mark.parametrize("case", [PLAIN, WARPED, PREFIX_DEPENDENT, CHAINED, TIED], ids=str)
    def test_same_seed_gives_the_tokens_of_polydraft_generate(self, case: Case, verification: str) -> None:
        model = tiny_model(vocab_size=VOCAB_SIZE, initializer_range=0.2)
        head = case.attached(model)
        table, one_by_one = tables(case, pooled=False)
        processors = case.processors
        criteria = StoppingCriteriaList([MaxLengthCriteria(PROMPT.shape[1] + LENGTH + 1)])
        for seed in range(20):
            generator = torch.Generator().manual_seed(seed)
            engine = Engine(
                cast(Any, one_by_one),
                processors=processors,
                do_sample=True,
                generator=generator,
                verification=verification,
            )
            found = generated(table, engine, criteria)
            generator = torch.Generator().manual_seed(seed)
            out = polydraft.generate(
                model,
                head,
                PROMPT,
                do_sample=True,
                max_new_tokens=LENGTH + 1,
                generator=generator,
                verification=verification,
                **case.options,
            )
            assert out.sequences is not None
            assert found == out.sequences[0, PROMPT.shape[1] :].tolist()

    @pytest.mark.parametrize("case", [WARPED, PREFIX_DEPENDENT], ids=str)
    def test_enumeration_is_plain_sampling(self, case: Case) -> None:
        model, looked_up = table()
        probabilities = enumerated(looked_up, case.processors)
        counts = np.zeros((VOCAB_SIZE,) * LENGTH)
        prompts = PROMPT.expand(DRAWS, -1)
        out = cast(Any, model).generate(prompts, do_sample=True, max_new_tokens=LENGTH, **case.options)
        np.add.at(counts, tuple(out[:, PROMPT.shape[1] :].T.numpy()), 1)
        assert chi2.sf(*chi_square(counts.ravel(), probabilities)) > FALSE_ALARM_RATE


def exact_output(target: Array, draft: Array) -> Array:
    """One drafted token, by the algebra: q min(1, p/q) + P(refused) max(0, p - q) / sum."""
    kept = np.minimum(target, draft)
    rest = np.maximum(target - draft, 0)
    return np.asarray(kept + (1 - kept.sum()) * (rest / rest.sum() if rest.sum() > 0 else target))


def verifier(target: Array, draft: Array) -> Callable[[int], Verified]:
    """`verify_sampled` on one draft, for a fixed p and q; the bonus token comes from p as well."""
    p, log_q, ids = torch.tensor(target), torch.tensor(draft).log()[None], torch.arange(len(draft))
    generator = torch.Generator().manual_seed(3)

    def check(token: int) -> Verified:
        index = torch.tensor([token])
        return verify.verify_sampled(lambda s: p, [token], index, log_q, ids, generator=generator)

    return check


ROWS = {
    "far apart": ([0.1, 0.2, 0.3, 0.4], [0.6, 0.3, 0.1, 0.0]),
    "one-hot q": ([0.1, 0.2, 0.3, 0.4], [0.0, 1.0, 0.0, 0.0]),
    "one-hot q outside p": ([0.5, 0.0, 0.2, 0.3], [0.0, 1.0, 0.0, 0.0]),
    "one-hot p": ([0.0, 0.0, 1.0, 0.0], [0.25, 0.25, 0.25, 0.25]),
    "equal": ([0.4, 0.3, 0.2, 0.1], [0.4, 0.3, 0.2, 0.1]),
    "disjoint": ([0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.3, 0.7]),
}


@pytest.mark.parametrize(("p", "q"), ROWS.values(), ids=ROWS)
class TestVerifySampled:
    DRAWS = 20_000

    def test_one_position_follows_p(self, p: list[float], q: list[float]) -> None:
        target, draft = np.array(p), np.array(q)
        assert np.abs(exact_output(target, draft) - target).max() < 1e-15
        check = verifier(target, draft)
        tokens = np.random.default_rng(0).choice(len(q), size=self.DRAWS, p=draft)
        counts, accepted = np.zeros(len(p)), 0
        for token in tokens:
            verified = check(int(token))
            accepted += verified.accepted
            counts[token if verified.accepted else verified.token] += 1
        statistic, degrees = chi_square(counts, target)
        assert degrees == 0 or chi2.sf(statistic, degrees) > FALSE_ALARM_RATE
        rate = np.minimum(target, draft).sum()
        spread = 4 * (rate * (1 - rate) / self.DRAWS) ** 0.5
        assert abs(accepted / self.DRAWS - rate) <= spread + 1e-12  # no wider than chance, 6e-5

    def test_each_draft_is_kept_with_probability_p_over_q(self, p: list[float], q: list[float]) -> None:
        check = verifier(np.array(p), np.array(q))
        for token in np.flatnonzero(q):
            rate = min(1.0, p[token] / q[token])
            kept = np.mean([check(int(token)).accepted for _ in range(2000)])
            assert abs(kept - rate) <= 4 * (rate * (1 - rate) / 2000) ** 0.5 + 1e-12

    def test_residual_is_what_p_has_more_than_q(self, p: list[float], q: list[float]) -> None:
        target, draft = torch.tensor(p), torch.tensor(q)
        rest = verify.residual(target, draft, torch.arange(len(q)))
        expected = (target - draft).clamp(min=0)
        assert torch.equal(rest, target if p == q else expected)
        assert target.tolist() == pytest.approx(p)  # left as it was


def test_residual_over_a_draft_vocabulary_leaves_the_other_tokens_alone() -> None:
    target = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    rest = verify.residual(target, torch.tensor([0.7, 0.3], dtype=torch.float64), torch.tensor([3, 1]))
    assert rest.tolist() == pytest.approx([0.1, 0.0, 0.3, 0.0])


def test_verification_asks_for_no_row_behind_the_first_refusal() -> None:
    asked: list[int] = []

    def row(s: int) -> Tensor:
        asked.append(s)
        return torch.tensor([1.0, 0.0])

    log_rows = torch.tensor([[0.5, 0.5]] * 3).log()
    drafts = [0, 1, 0]
    found = verify.verify_sampled(row, drafts, torch.tensor(drafts), log_rows, torch.arange(2))
    assert (found, asked) == (Verified(1, 0), [0, 1])
    asked.clear()
    assert verify.verify_chosen(lambda s: int(row(s).argmax()), drafts) == ([0], 0)
    assert asked == [0, 1]
