"""Drafted sampling is distributed as plain sampling: step by step, with every choice made every way.

Nothing is left to chance: what comes out differs from the enumeration by float32 rounding, 1e-8. The planted
faults are off by at least a hundred thousand times as much.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest
import torch
from transformers import StoppingCriteriaList

from polydraft.decoding import block, verify
from polydraft.decoding.drafts import Draft
from polydraft.decoding.engine import Engine
from polydraft.decoding.row import Row
from polydraft.modes import VERIFICATIONS
from tests.decoding.cases import CASES, HORIZON, PROMPT, VOCAB_SIZE, WARPED, Case, tables
from tests.decoding.outcomes import Choices
from tests.decoding.tables import LENGTH, Array, enumerated

ROUNDING, FAULT = 1e-7, 1e-3
Tokens = tuple[int, ...]


@pytest.fixture
def choices(monkeypatch: pytest.MonkeyPatch) -> Choices:
    return Choices(monkeypatch)


class Steps:
    """The steps of the decoding loop from every text it can have come to, for one case.

    Attributes:
        refused: positions of refused drafts.
    """

    def __init__(self, case: Case, choices: Choices) -> None:
        self.table, head = tables(case, pooled=False)
        self.engine = Engine(cast(Any, head), processors=case.processors, do_sample=True, generator=None)
        self.choices = choices
        self.refused: set[int] = set()
        self._drafts: dict[Tokens, list[tuple[float, Draft]]] = {}

    def drafts(self, begun: Tokens) -> list[tuple[float, Draft]]:
        """Everything that can be drafted after `begun`, with its probability."""
        if begun not in self._drafts:
            hidden = torch.tensor([[self.table.number[begun[:-1]]]])
            limit = min(HORIZON, LENGTH - len(begun))
            row = self.row(begun)
            draw: Callable[[], Draft] = lambda: (  # noqa: E731
                self.engine.draft(self.engine.head(hidden, row.ids[:, -1]), [row], limit, limit)[0]
                if limit
                else self.engine.no_drafts()
            )
            self._drafts[begun] = list(self.choices.every(draw, depth=limit))  # what comes after is cut off
        return self._drafts[begun]

    def row(self, tokens: Tokens) -> Row:
        """The prompt and `tokens`."""
        ids = torch.cat([PROMPT, torch.tensor([tokens], dtype=torch.long)], dim=-1)
        return Row(ids, StoppingCriteriaList())

    def after(self, begun: Tokens) -> dict[Tokens, Array]:
        """One step: text with the drafts kept -> probability of each token as the next (V,)."""
        row = self.row(begun)
        out: dict[Tokens, Array] = {}
        for drawn, draft in self.drafts(begun):
            told: Tokens = tuple(draft.tokens)
            logits = torch.stack([self.table.logits[begun + told[:s]] for s in range(len(told) + 1)])
            verified = self.choices.every(
                lambda draft=draft, logits=logits: self.engine.verify(row, draft, logits)
            )
            for chance, (path, _) in verified:
                accepted = len(path)
                kept = begun + told[:accepted]
                mass = drawn * chance * self.choices.weights.numpy()
                out[kept] = out.get(kept, np.zeros(VOCAB_SIZE)) + mass
                if accepted < len(told):
                    self.refused.add(accepted + 1)
        return out

    @torch.inference_mode()
    def text(self, verification: str) -> Array:
        """Exact probability of every continuation of `LENGTH` tokens; (V^LENGTH,)."""
        self.engine.verification = verification
        self.engine.first(self.row(()), self.table.logits[()])
        reached: dict[Tokens, float] = {
            (k,): chance for k, chance in enumerate(self.choices.weights.tolist())
        }
        whole = np.zeros((VOCAB_SIZE,) * LENGTH)
        for length in range(1, LENGTH):
            for begun in itertools.product(range(VOCAB_SIZE), repeat=length):
                chance = reached.get(begun, 0.0)
                for kept, mass in self.after(begun).items() if chance else ():
                    if len(kept) + 1 >= LENGTH:  # the token behind the last one is of no interest
                        whole[kept] += chance * (mass if len(kept) < LENGTH else mass.sum())
                        continue
                    for token in range(VOCAB_SIZE):
                        reached[*kept, token] = reached.get((*kept, token), 0.0) + chance * float(mass[token])
        return whole.ravel()


def errors(case: Case, choices: Choices) -> dict[str, float]:
    """Per verification, the largest difference to plain sampling's probability of a text."""
    steps = Steps(case, choices)
    expected = enumerated(steps.table, case.processors)
    found = {}
    for name in VERIFICATIONS:
        steps.refused.clear()
        found[name] = float(np.abs(steps.text(name) - expected).max())
        assert steps.refused == set(range(1, HORIZON + 1)), name
    return found


@pytest.mark.parametrize("case", CASES, ids=str)
def test_drafted_sampling_is_plain_sampling(case: Case, choices: Choices) -> None:
    assert max(errors(case, choices).values()) < ROUNDING


def whole_target(target: torch.Tensor, draft: torch.Tensor, draft_ids: torch.Tensor) -> torch.Tensor:
    """max(0, M_b - M_s), p_i left out."""
    return verify.excess(target / target.sum(), draft, draft_ids)


class TestPlantedFaults:
    def test_chance_of_the_last_draft_for_all(
        self, choices: Choices, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(block, "chance_to_keep", lambda path, more: path)
        assert errors(WARPED, choices)["block"] > FAULT

    def test_path_left_out_of_the_residual(self, choices: Choices, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(block, "excess", whole_target)
        assert errors(WARPED, choices)["block"] > FAULT

    def test_residual_skipped(self, choices: Choices, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(verify, "residual", lambda target, draft, draft_ids: target)
        found = errors(WARPED, choices)
        assert found["token"] > FAULT
        assert found["block"] < ROUNDING
