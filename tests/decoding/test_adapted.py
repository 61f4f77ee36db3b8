"""Drafts from an adapted model, verified by the same model without its adapter: lossless for the latter."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from polydraft import generate
from polydraft.adapters import AdapterSwitch, add_adapter, trained_parameters
from polydraft.compat import CACHE
from polydraft.decoding.adapted import verify_with_base
from polydraft.decoding.drafts import Draft, Kept
from polydraft.decoding.engine import Engine
from polydraft.decoding.row import Row
from polydraft.errors import InputError
from polydraft.heads import DraftHead
from polydraft.hidden import HiddenTap
from polydraft.modes import VERIFICATIONS, check_verifier
from tests.tiny import tiny_head, tiny_model

pytestmark = pytest.mark.adapters

PROMPT = torch.tensor([[3, 14, 15, 9, 26, 5]])
SIZES = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "intermediate_size": 16}
FORMS: dict[str, dict[str, Any]] = {
    "hidden": {"features": "hidden"},
    "fused": {"features": "fused"},
    "mix": {"features": "fused", "layers": [1]},
    "block": {"features": "block", "block": SIZES | {"rope_theta": 1e4}, "layers": [1]},
}


def pair(form: str = "fused", *, kind: str = "llama") -> tuple[PreTrainedModel, DraftHead]:
    """A model with a random adapter, far from none, and a head for the two."""
    model = tiny_model(kind)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        add_adapter(model, rank=4, alpha=8.0)
        with torch.no_grad():
            for parameter in trained_parameters(model):
                parameter.copy_(0.3 * torch.randn_like(parameter))
    model.requires_grad_(False)
    return model, tiny_head(model, **FORMS[form])


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mistral"])
def test_greedy_text_is_that_of_the_base_model(kind: str) -> None:
    model, head = pair(kind=kind)
    adapted = cast(Any, model).generate(PROMPT, max_new_tokens=24, do_sample=False)
    verify_with_base(model, head)
    expected = cast(Any, tiny_model(kind)).generate(PROMPT, max_new_tokens=24, do_sample=False)
    assert not torch.equal(adapted, expected)
    assert torch.equal(generate(model, head, PROMPT, max_new_tokens=24, do_sample=False).sequences, expected)
    assert torch.equal(cast(Any, model).generate(PROMPT, max_new_tokens=24, do_sample=False), expected)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("verification", VERIFICATIONS)
def test_p_is_the_base_models_and_q_the_adapted_ones(
    form: str, verification: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every step of a sampled text, against forwards over the whole text so far. With p and q as they are,
    the verification is that of `test_exact_sampling`."""
    model, head = pair(form)
    verify_with_base(model, head)
    seen: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    original = Engine.verify

    def watch(self: Engine, row: Row, draft: Draft, logits: Tensor, best: Any, settle: Any) -> Kept:
        if draft.log_rows is not None:
            seen.append((row.ids, torch.tensor([draft.tokens], dtype=torch.long), draft.log_rows, logits))
        return original(self, row, draft, logits, best, settle)

    monkeypatch.setattr(Engine, "verify", watch)
    generator = torch.Generator().manual_seed(0)
    options: dict[str, Any] = {"do_sample": True, "top_k": 0, "max_new_tokens": 24, "generator": generator}
    out = generate(model, head, PROMPT, verification=verification, **options)
    assert out.statistics.draft_acceptance_rate > 0
    base = tiny_model()
    assert head.switch is not None
    for prefix, drafts, log_rows, logits in seen:
        whole = torch.cat([prefix, drafts], -1)
        rows = cast(Any, base)(whole).logits[0, prefix.shape[1] - 1 :]
        assert torch.allclose(logits, rows, atol=1e-4)
        with (
            torch.no_grad(),
            head.switch.on(),
            HiddenTap(model, layers=head.config.layers, every=True) as tap,
        ):
            cast(Any, model)(prefix[:, :-1])
            joint = head(tap.hidden, prefix[:, 1:])
        for s in range(drafts.shape[1]):
            expected = joint.conditional(head.draft_index(drafts[:, :s]))
            assert torch.allclose(log_rows[s].exp(), expected[0].exp(), atol=1e-4)


def test_a_text_goes_on_from_a_cache() -> None:
    model, head = pair("block")
    verify_with_base(model, head)
    options: dict[str, Any] = {"max_new_tokens": 10, "do_sample": False}
    whole = generate(model, head, PROMPT, max_new_tokens=20, do_sample=False).sequences
    cache = DynamicCache(config=model.config)
    first = generate(model, head, PROMPT, **{CACHE: cache}, **options).sequences
    second = generate(model, head, first, **{CACHE: cache}, **options).sequences
    assert torch.equal(second, whole)


def test_the_switch_leaves_gradients_alone() -> None:
    model = tiny_model()
    add_adapter(model, rank=2, alpha=4.0)
    flags = [p.requires_grad for p in model.parameters()]
    with AdapterSwitch(model).off():
        pass
    assert [p.requires_grad for p in model.parameters()] == flags
    assert any(flags) and not all(flags)


def test_what_cannot_be() -> None:
    model = tiny_model()
    with pytest.raises(InputError, match="needs an adapter"):
        verify_with_base(model, tiny_head(model))
    with pytest.raises(InputError, match="trained or base"):
        check_verifier("other", adapter=True)
    with pytest.raises(InputError, match="give it with --adapter"):
        check_verifier("base", adapter=False)


def test_what_an_adapter_switches_is_not_compiled() -> None:
    model, head = pair()
    verify_with_base(model, head)
    with pytest.raises(InputError, match="an adapter on and off and cannot be compiled"):
        generate(model, head, PROMPT, max_new_tokens=2, compiled=True)
