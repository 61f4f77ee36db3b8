"""Whole generations on a device that is not there: the CPU's text, and how often a cycle waits for a GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from polydraft import generate
from polydraft.decoding import DraftedOutput, LiveBatch, Plan, new_row
from polydraft.errors import InputError
from tests.elsewhere import DEVICE, Drafter, Elsewhere, pair, there
from tests.tiny import BLOCK

SIZE, NEW_TOKENS = 40, 10
CHAIN, TREE = {"drafting": "chain", "draft_length": 3}, {"drafting": "tree", "draft_length": 6}
WAYS: dict[str, dict[str, Any]] = {
    "greedy chain": CHAIN,
    "greedy tree": TREE,
    "sampled chain": CHAIN | {"do_sample": True},
    "sampled chain by block": CHAIN | {"do_sample": True, "verification": "block"},
    "sampled tree": TREE | {"do_sample": True},
    "seeded chain": CHAIN | {"do_sample": True, "seed": 3},
    "seeded tree": TREE | {"do_sample": True, "seed": 3},
    "processors": TREE | {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "repetition_penalty": 1.1},
    "copied": CHAIN | {"prompt_lookup_num_tokens": 5},
    "scores": TREE | {"output_scores": True, "output_logits": True},
    "pieces of the prompt": CHAIN | {"prefill_chunk_size": 2},
}
MODELS: dict[str, dict[str, Any]] = {
    "windows": {"kind": "gemma3"},
    "learned positions": {"kind": "gpt2"},
    "block": {"features": "block", "block": BLOCK},
    "recurrent": {"joint": "recurrent", "rank": 1, "features": "block", "block": BLOCK, "layers": [1]},
    "hidden": {"features": "hidden", "joint": "hmm"},
}


def prompts() -> tuple[Tensor, Tensor]:
    """Two prompts, of six tokens and of four, and their mask."""
    ids = torch.randint(64, (2, 6), generator=torch.Generator().manual_seed(0))
    ids[:, 4:] = ids[:, :2]
    mask = torch.ones_like(ids)
    mask[1, :2] = 0
    return ids, mask


def write(drafter: Drafter, ids: Tensor, mask: Tensor, **way: Any) -> DraftedOutput:
    torch.manual_seed(1)
    given = {"do_sample": False, "max_new_tokens": NEW_TOKENS, "pad_token_id": 0} | way
    return generate(*drafter, ids, attention_mask=mask, **given)


def check_same(here: Drafter, moved: Drafter, **way: Any) -> None:
    ids, mask = prompts()
    expected = write(here, ids, mask, **way)
    with Elsewhere():
        found = write(moved, there(ids), there(mask), **way)
        assert found.sequences is not None and expected.sequences is not None
        assert found.sequences.device == DEVICE
        assert found.sequences.tolist() == expected.sequences.tolist()
        assert found.statistics is not None and expected.statistics is not None
        assert found.statistics.drafted_tokens == expected.statistics.drafted_tokens > 0
        for own, other in zip(found.scores or (), expected.scores or (), strict=True):
            torch.testing.assert_close(own.cpu(), other)


@pytest.mark.parametrize("way", WAYS)
def test_writes_the_same_text(way: str) -> None:
    check_same(*pair(draft_vocab_size=SIZE), **WAYS[way])


@pytest.mark.parametrize("form", MODELS)
@pytest.mark.parametrize("way", ["greedy tree", "sampled chain"])
def test_other_models_and_heads(form: str, way: str) -> None:
    check_same(*pair(draft_vocab_size=SIZE, **MODELS[form]), **WAYS[way])


def test_a_live_batch() -> None:
    """Texts with settings of their own, that join later, with penalties and a trace."""
    ids, _ = prompts()
    settings = [{}, {"temperature": 0.8, "seed": 5, "top_p": 0.9, "frequency_penalty": 0.5, "trace": 2}]

    def texts(drafter: Drafter) -> list[list[int]]:
        batch = LiveBatch(*drafter, rows=2, plan=Plan(**TREE))
        device = drafter.model.device
        rows = [
            new_row(prompt.tolist(), device=device, max_new_tokens=8, end_tokens=[63], **more)
            for prompt, more in zip(ids, settings, strict=True)
        ]
        for row in rows:
            batch.admit([row])
            batch.step()
        while batch.active:
            batch.step()
        return [row.generated for row in rows]

    here, moved = pair(draft_vocab_size=SIZE)
    with Elsewhere():
        found = texts(moved)
    assert found == texts(here)


def test_a_generator_of_another_device_is_refused() -> None:
    here, moved = pair(draft_vocab_size=SIZE)
    ids, mask = prompts()
    with Elsewhere(), pytest.raises(InputError, match="the generator is of cpu, the model on lazy: make it"):
        write(moved, there(ids), there(mask), do_sample=True, generator=torch.Generator())
    assert write(here, ids, mask, do_sample=True, generator=torch.Generator()).sequences is not None


WAITS: dict[str, tuple[float, float]] = {
    "greedy chain": (4.1, 5.3),
    "greedy tree": (5.2, 9.4),
    "sampled chain": (14.8, 4.6),
    "seeded chain": (9.4, 8.4),
    "sampled tree": (21.6, 9.0),
    "seeded tree": (6.8, 12.4),
}
"""Reads and writes of a cycle of one text, the prompt counted in; docs/architecture.md tells of them."""


@pytest.mark.parametrize(("way", "layers"), [*((way, 2) for way in WAITS), ("sampled tree", 4)])
def test_how_often_a_cycle_waits(way: str, layers: int) -> None:
    """Trees of 12, chains of 3; more layers make no difference."""
    here, moved = pair(model={"num_hidden_layers": layers}, draft_vocab_size=SIZE)
    ids, mask = (part[:1] for part in prompts())
    given = WAYS[way] | {"draft_length": 12 if "tree" in way else 3, "max_new_tokens": 30}
    expected = write(here, ids, mask, **given)
    with Elsewhere() as device:
        moved_ids, moved_mask = there(ids), there(mask)
        device.clear()
        found = write(moved, moved_ids, moved_mask, **given)
        counts = device.reads.total(), device.writes.total()
        assert found.sequences is not None and expected.sequences is not None
        assert found.sequences.tolist() == expected.sequences.tolist()
    assert found.statistics is not None
    for count, most in zip(counts, WAITS[way], strict=True):
        assert most - 1.5 < count / found.statistics.steps < most + 1.5, counts
