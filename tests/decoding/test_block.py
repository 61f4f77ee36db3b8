"""Block verification, and token-wise beside it, by enumeration: no outcome is left to chance.

All drafts of small random p and q, every way their verification can go, and the weights of the token that
follows: what comes out is p, the drafts kept are as many as the algebra says, and never fewer by block.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from polydraft.decoding import block, verify
from polydraft.decoding.verify import Verified
from tests.decoding.outcomes import Choices

Array = NDArray[np.float64]
Prefix = tuple[int, ...]
Verifier = Callable[..., Verified]
VERIFIERS: dict[str, Verifier] = {"token": verify.verify_sampled, "block": block.verify_block}
HORIZON = 3


@dataclass
class Pair:
    """p and q as trees of rows, float64; q has none where a draft ends early.

    Attributes:
        p: base tokens so far, up to `HORIZON` of them -> (V,). q: the same -> (V',) over `draft_ids`.
    """

    p: dict[Prefix, Tensor]
    q: dict[Prefix, Tensor]
    draft_ids: Tensor
    chains: list[tuple[float, Prefix]] = field(init=False)

    def __post_init__(self) -> None:
        self.chains = list(self._chains(1.0, ()))

    def _chains(self, chance: float, drafts: Prefix) -> Iterator[tuple[float, Prefix]]:
        """Every draft, with its probability."""
        if len(drafts) == HORIZON or drafts not in self.q:
            yield chance, drafts
            return
        for index, token in enumerate(self.draft_ids.tolist()):
            if self.q[drafts][index] > 0:
                yield from self._chains(chance * float(self.q[drafts][index]), (*drafts, token))

    def ratio(self, drafts: Prefix) -> float:
        """p / q of the last one."""
        index = int((self.draft_ids == drafts[-1]).nonzero())
        return float(self.p[drafts[:-1]][drafts[-1]] / self.q[drafts[:-1]][index])

    def verified(self, verifier: Verifier, drafts: Prefix) -> int:
        """Drafts accepted; the weights of the next token are left in `Choices`."""
        index = [int((self.draft_ids == token).nonzero()) for token in drafts]
        rows = [self.q[drafts[:s]].log() for s in range(len(drafts))]
        width = len(self.draft_ids)
        return verifier(
            lambda s: self.p[drafts[:s]],
            drafts,
            torch.tensor(index),
            torch.stack(rows) if rows else torch.empty(0, width),
            self.draft_ids,
        ).accepted


def random_row(rng: np.random.Generator, size: int) -> Array:
    """Far from even; some entries are zero, and some rows are one-hot."""
    row = rng.dirichlet(np.full(size, rng.choice([0.3, 1.0, 3.0])))
    row[rng.random(size) < 0.2] = 0
    if row.sum() == 0 or rng.random() < 0.05:
        row = np.eye(size)[rng.integers(size)]
    return np.asarray(row / row.sum())


def random_pair(seed: int) -> Pair:
    """V of 3 or 4, V' of 2 to V in any order, rows that are equal here and there, drafts that end early."""
    rng = np.random.default_rng(seed)
    size = int(rng.integers(3, 5))
    draft_ids = rng.permutation(size)[: rng.integers(2, size + 1)]
    equal, ending = rng.choice([0.0, 0.3, 0.9]), rng.choice([0.0, 0.2])
    p: dict[Prefix, Tensor] = {}
    q: dict[Prefix, Tensor] = {}
    for length in range(HORIZON + 1):
        for prefix in itertools.product(range(size), repeat=length):
            p[prefix] = torch.tensor(random_row(rng, size))
            row = torch.tensor(random_row(rng, len(draft_ids)))
            if rng.random() < equal:  # p and q the same, up to what q cannot say
                p[prefix] = torch.zeros(size, dtype=torch.float64)
                p[prefix][draft_ids] = row
            if rng.random() >= ending:
                q[prefix] = row
    return Pair(p, q, torch.tensor(draft_ids))


PAIRS = [random_pair(seed) for seed in range(100)]


@dataclass
class Outcome:
    """What a verifier makes of a pair.

    Attributes:
        text: probability of every text of `HORIZON` + 1 tokens, p going on where the step ends.
        reached: drafts x_1..x_i -> P(at least i are kept | they were drafted).
        kept: expected number of drafts kept.
    """

    text: Array
    reached: dict[Prefix, float]
    kept: float


def continued(p: dict[Prefix, Tensor], prefix: Prefix) -> Array:
    """Probability under p of each way to go on after `prefix`, up to `HORIZON` + 1 tokens in all."""
    if len(prefix) > HORIZON:
        return np.ones(())
    row = p[prefix].numpy()
    return np.stack([row[token] * continued(p, (*prefix, token)) for token in range(len(row))])


def outcome(pair: Pair, verifier: Verifier, choices: Choices) -> Outcome:
    """By enumeration of drafts and of every way their verification can go."""
    size = len(pair.p[()])
    text = np.zeros((size,) * (HORIZON + 1))
    reached: dict[Prefix, float] = {}
    drafted: dict[Prefix, float] = {}
    kept = 0.0
    for drawn, drafts in pair.chains:
        for i in range(len(drafts) + 1):
            drafted[drafts[:i]] = drafted.get(drafts[:i], 0.0) + drawn
        for chance, accepted in choices.every(lambda drafts=drafts: pair.verified(verifier, drafts)):
            kept += drawn * chance * accepted
            for i in range(accepted + 1):
                reached[drafts[:i]] = reached.get(drafts[:i], 0.0) + drawn * chance
            for token, weight in enumerate(choices.weights.tolist()):
                begun = (*drafts[:accepted], token)
                text[begun] += drawn * chance * weight * continued(pair.p, begun)
    return Outcome(text, {drafts: mass / drafted[drafts] for drafts, mass in reached.items()}, kept)


@pytest.fixture
def choices(monkeypatch: pytest.MonkeyPatch) -> Choices:
    return Choices(monkeypatch)


def test_the_pairs_hold_every_case() -> None:
    """What the tests below stand on: none of the corners is missing by bad luck."""
    lengths = {len(drafts) for pair in PAIRS for _, drafts in pair.chains}
    assert lengths == set(range(HORIZON + 1))
    ratios = [pair.ratio(drafts) for pair in PAIRS for _, drafts in pair.chains if drafts]
    assert min(ratios) == 0  # what p rules out is drafted
    assert sum(ratio == 1 for ratio in ratios) > 100
    assert max(ratios) > 10
    assert any(len(pair.draft_ids) < len(pair.p[()]) for pair in PAIRS)


@pytest.mark.parametrize("verifier", VERIFIERS.values(), ids=VERIFIERS)
def test_what_comes_out_is_p(verifier: Verifier, choices: Choices) -> None:
    for seed, pair in enumerate(PAIRS):
        found = outcome(pair, verifier, choices).text
        assert np.abs(found - continued(pair.p, ())).max() < 1e-12, seed


def test_drafts_are_kept_with_the_chance_that_the_algebra_gives(choices: Choices) -> None:
    """P(at least i are kept | x_1..x_i): p_i by block, the product of min(1, p/q) token by token."""
    for pair in PAIRS:
        found = {name: outcome(pair, verifier, choices).reached for name, verifier in VERIFIERS.items()}
        expected = {"token": {(): 1.0}, "block": {(): 1.0}}
        for _, drafts in pair.chains:
            for i in range(1, len(drafts) + 1):
                ratio = pair.ratio(drafts[:i])
                token, path = (expected[name][drafts[: i - 1]] for name in ("token", "block"))
                expected["token"][drafts[:i]] = token * min(1.0, ratio)
                expected["block"][drafts[:i]] = min(1.0, path * ratio)
        for name, chances in expected.items():
            assert {d: found[name].get(d, 0.0) for d in chances} == pytest.approx(chances, abs=1e-12)


def test_block_never_keeps_fewer_on_average(choices: Choices) -> None:
    """The theorem of Sun et al.; and the gain is real."""
    gains = []
    for pair in PAIRS:
        token, together = (outcome(pair, verifier, choices).kept for verifier in VERIFIERS.values())
        assert together >= token - 1e-12
        gains.append(together - token)
    assert sum(gain > 0.01 for gain in gains) > len(PAIRS) / 5


def test_one_draft_is_verified_alike(choices: Choices) -> None:
    for pair in PAIRS:
        single = Pair(pair.p, {d: row for d, row in pair.q.items() if not d}, pair.draft_ids)
        token, together = (outcome(single, verifier, choices) for verifier in VERIFIERS.values())
        assert np.abs(token.text - together.text).max() < 1e-12
        assert token.kept == pytest.approx(together.kept)


ROW = torch.tensor([0.5, 0.3, 0.2])


class TestRows:
    """Which rows are asked for, and equal ones in float32."""

    def verified(self, target: Callable[[int], Tensor], drafts: list[int], q: Tensor) -> Verified:
        rows = q.log().repeat(len(drafts), 1)
        generator = torch.Generator().manual_seed(1)
        return block.verify_block(
            target, drafts, torch.tensor(drafts), rows, torch.arange(3), generator=generator
        )

    def test_all_are_kept_where_p_and_q_are_equal(self) -> None:
        for token in range(3):
            assert self.verified(lambda s: ROW.log().exp(), [token] * 5, ROW).accepted == 5

    def test_none_are_asked_for_beyond_a_draft_that_p_rules_out(self) -> None:
        asked: list[int] = []

        def target(s: int) -> Tensor:
            asked.append(s)
            return torch.tensor([0.5, 0.5, 0.0]) if s == 1 else ROW

        assert self.verified(target, [0, 2, 0, 0], ROW).accepted <= 1
        assert asked == [0, 1]

    def test_without_drafts_the_token_is_p_s(self) -> None:
        generator = torch.Generator().manual_seed(1)
        found = block.verify_block(
            lambda s: torch.tensor([0.0, 1.0, 0.0]),
            [],
            torch.empty(0, dtype=torch.long),
            torch.empty(0, 3),
            torch.arange(3),
            generator=generator,
        )
        assert found == Verified(0, 1)
