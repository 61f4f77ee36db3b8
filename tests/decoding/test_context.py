"""A block that follows the text in the decoding loop sees that text, whatever was drafted and refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import polydraft
from polydraft.compat import CACHE
from polydraft.heads import DraftHead
from polydraft.hidden import HiddenTap
from polydraft.joint import JointDistribution
from tests.tiny import BLOCK, tiny_head, tiny_model

PROMPT = torch.tensor([[5, 9, 2, 7, 7, 1]])


def watched(head: DraftHead) -> list[JointDistribution]:
    """The joints that the head will give to the loop, in order."""
    seen: list[JointDistribution] = []
    make = head.reader

    def reader(*, rows: int) -> Any:
        read = make(rows=rows)
        joint = read.joint

        def watch() -> JointDistribution:
            seen.append(joint())
            return seen[-1]

        read.joint = watch  # type: ignore[method-assign]
        return read

    head.reader = reader  # type: ignore[method-assign]
    return seen


@torch.no_grad()
@pytest.mark.parametrize("kind", ["llama", "gemma3", "gpt2"])
@pytest.mark.parametrize("do_sample", [False, True])
def test_joints_of_the_loop_are_those_of_the_finished_text(kind: str, do_sample: bool) -> None:
    model = tiny_model(kind, initializer_range=0.2)
    head = tiny_head(model, features="block", block=BLOCK, layers=[1], joint="markov", rank=1)
    seen = watched(head)
    generator = torch.Generator().manual_seed(3)
    options = {"max_new_tokens": 40, "do_sample": do_sample}
    out = polydraft.generate(model, head, PROMPT, generator=generator, **options)
    assert out.sequences is not None and out.origins is not None
    ids = out.sequences
    with HiddenTap(model, layers=[1]) as tap:
        model(ids)
        hidden = tap.hidden
    pending = [PROMPT.shape[1] + i for i, origin in enumerate(out.origins[0].tolist()) if origin == 0]
    assert 1 <= len(pending) - len(seen) <= 2  # nothing is drafted after the last, or where one is left
    assert len(seen) < 39  # some drafts were kept
    for place, joint in zip(pending, seen, strict=False):
        whole = head(hidden[:, :place], ids[:, 1 : place + 1])
        torch.testing.assert_close(
            joint.row(joint.start(), 0), whole.row(whole.start(), 0), rtol=1e-3, atol=1e-4
        )


@torch.no_grad()
def test_goes_on_from_a_cache_without_its_past() -> None:
    model = tiny_model()
    head = tiny_head(model, features="block", block=BLOCK)
    first = polydraft.generate(model, head, PROMPT, max_new_tokens=9, do_sample=False)
    assert first.sequences is not None
    again = polydraft.generate(
        model, head, first.sequences, max_new_tokens=9, do_sample=False, **{CACHE: first.cache}
    )
    whole = model.generate(PROMPT, max_new_tokens=18, do_sample=False)  # type: ignore[operator]
    assert again.sequences is not None and again.sequences.tolist() == whole.tolist()
