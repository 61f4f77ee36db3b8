"""What stepwise members say beside the contract: unrolled training is the joint's own way, step by step."""

from __future__ import annotations

import pytest
import torch

from polydraft.joint import unrolled
from tests.joint.members import HORIZON, VOCAB_SIZE, StepCase, TableStepper, random_case


@pytest.fixture
def case() -> StepCase:
    found = random_case("recurrent", batch=6)
    assert isinstance(found, StepCase)
    return found


def test_unrolled_gives_the_rows_of_the_text(case: StepCase) -> None:
    tokens = torch.randint(-1, VOCAB_SIZE, (6, HORIZON))
    z = unrolled(TableStepper(case), tokens)
    assert z.shape == (6, HORIZON, case.features.shape[1])
    for s in range(HORIZON):
        row = (z[:, s] @ case.unembedding[s].T).log_softmax(-1)
        torch.testing.assert_close(row, case.joint().conditional(tokens[:, :s]))


def test_a_row_depends_on_every_token_before(case: StepCase) -> None:
    tokens = torch.randint(VOCAB_SIZE, (6, HORIZON - 1))
    row = case.joint().conditional(tokens)
    for s in range(HORIZON - 1):
        changed = tokens.clone()
        changed[:, s] = (changed[:, s] + 1) % VOCAB_SIZE
        assert (case.joint().conditional(changed) - row).abs().amax(-1).min() > 1e-3


def test_an_unknown_token_is_a_zero_embedding(case: StepCase) -> None:
    tokens = torch.randint(VOCAB_SIZE, (6, HORIZON - 1))
    silent = torch.cat([case.tokens, torch.zeros(1, case.tokens.shape[1], dtype=torch.float64)])
    rows = torch.nn.functional.pad(case.unembedding, (0, 0, 0, 1))
    more = StepCase(case.gate, case.features, case.logits, None, case.cell, silent, rows)
    joint, known = case.joint(), more.joint()
    tokens[:, 1] = -1
    state, other = joint.start(), known.start()
    for s in range(HORIZON - 1):
        state = joint.advance(state, s, tokens[:, s])
        other = known.advance(other, s, tokens[:, s] % (VOCAB_SIZE + 1))
    torch.testing.assert_close(state.z, other.z)
