"""The base model's rows from its hidden states: normalisers in blocks, and which models allow it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from polydraft.training import teacher as module
from polydraft.training.teacher import Teacher, has_linear_logits, log_normalisers, state_normalisers
from tests.tiny import tiny_model


@pytest.mark.parametrize("rows", [1, 5, 12])
@pytest.mark.parametrize("few", [1, 4, 100])
def test_normalisers_in_blocks(rows: int, few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_LOGITS", 5 * 40)
    monkeypatch.setattr(module, "MOST_SCRATCH", few * 40)
    hidden, matrix = 30 * torch.randn(rows, 16), torch.randn(40, 16)  # exp(logits) is inf in float32
    exact = (hidden.double() @ matrix.double().T).logsumexp(-1).float()
    assert torch.allclose(state_normalisers(hidden, matrix), exact, rtol=1e-5)
    assert torch.allclose(log_normalisers(hidden @ matrix.T), exact, rtol=1e-5)


def test_normalisers_are_those_of_the_rounded_logits() -> None:
    hidden, matrix = torch.randn(6, 16, dtype=torch.bfloat16), torch.randn(40, 16, dtype=torch.bfloat16)
    logits = hidden @ matrix.T
    found = state_normalisers(hidden, matrix)
    assert found.dtype == torch.float32
    assert torch.allclose(found, logits.double().logsumexp(-1).float(), atol=1e-5)


def test_rows_from_states_are_those_from_logits() -> None:
    hidden, matrix, ids = torch.randn(9, 16), torch.randn(40, 16), torch.tensor([3, 1, 39, 20])
    normaliser = state_normalisers(hidden, matrix)
    of_states = Teacher(normaliser, hidden=hidden, rows=matrix[ids])
    of_logits = Teacher(normaliser, logits=hidden @ matrix.T, draft_ids=ids)
    index = torch.tensor([8, 0, 0])
    expected = (hidden @ matrix.T).log_softmax(-1)[index][:, ids]
    for teacher in (of_states, of_logits):
        assert torch.allclose(teacher.log_rows(index), expected, atol=1e-5)


def changed(model: PreTrainedModel, change: Any) -> PreTrainedModel:
    """A model whose logits `change` has altered."""
    forward = model.forward

    def altered(*args: Any, **options: Any) -> Any:
        out = forward(*args, **options)
        out.logits = change(out.logits)
        return out

    model.forward = altered
    return model


class TestLinear:
    def test_plain_model(self) -> None:
        assert has_linear_logits(tiny_model())

    @pytest.mark.parametrize(
        "change", [lambda x: 30 * torch.tanh(x / 30), lambda x: x / 8], ids=["cap", "scale"]
    )
    def test_changed_after_the_unembedding(self, change: Any) -> None:
        assert not has_linear_logits(changed(tiny_model(), change))

    def test_changed_before_the_unembedding(self) -> None:
        model = tiny_model()
        model.lm_head.register_forward_pre_hook(lambda layer, inputs: (2 * inputs[0],))
        assert not has_linear_logits(model)
