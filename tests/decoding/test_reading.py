"""Prompts that a live batch reads in chunks: the texts are the same, and those at work go on."""

from __future__ import annotations

import weakref
from functools import partial
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from polydraft.decoding.live import LiveBatch, LiveRow
from polydraft.decoding.loop import Loop
from polydraft.decoding.plan import Plan
from polydraft.decoding.reading import Reading, grouped
from polydraft.errors import InputError
from tests.decoding.test_live import (
    HEADS,
    PLAN,
    SETTINGS,
    TREE,
    VOCAB_SIZE,
    alone,
    come_and_go,
    prompts,
    row,
)
from tests.tiny import tiny_head, tiny_model

LONG = sorted(prompts(30, longest=60), key=len)[-2:]
"""Two of more than fifty tokens."""


def batch_of(model: PreTrainedModel, *, chunk: int | None, head: str = "block", **options: Any) -> LiveBatch:
    given = {"rows": 4, "plan": PLAN} | options
    return LiveBatch(model, tiny_head(model, **HEADS[head]), prefill_chunk_size=chunk, **given)


@pytest.mark.parametrize(
    ("kind", "plan", "head", "chunk"),
    [
        ("llama", PLAN, "cp", 1),
        ("llama", TREE, "block", 3),
        ("gemma3", TREE, "recurrent", 4),
        ("mistral", PLAN, "block", 9),
        ("gpt2", PLAN, "sequential", 5),
    ],
)
def test_greedy_texts_are_those_of_transformers(kind: str, plan: Plan, head: str, chunk: int) -> None:
    model = tiny_model(kind, vocab_size=VOCAB_SIZE)
    rows = [row(model, prompt) for prompt in prompts(7)]
    ended = come_and_go(batch_of(model, chunk=chunk, head=head, plan=plan), rows)
    assert {id(one) for one in ended} == {id(one) for one in rows}
    for one, prompt in zip(rows, prompts(7), strict=True):
        assert one.generated == alone(model, prompt)


def test_sampled_texts_are_those_of_prompts_read_whole() -> None:
    model = tiny_model(vocab_size=VOCAB_SIZE)

    def texts(chunk: int | None) -> list[list[int]]:
        rows = [row(model, prompt, **given) for prompt, given in zip(prompts(5), SETTINGS, strict=False)]
        come_and_go(batch_of(model, chunk=chunk), rows)
        return [one.generated for one in rows]

    assert texts(4) == texts(None)


def test_compiled_texts_are_those_of_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    model = tiny_model(vocab_size=VOCAB_SIZE)
    rows = [row(model, prompt) for prompt in prompts(3)]
    plan = Plan(draft_length=6, drafting="chain", compiled=True)
    come_and_go(batch_of(model, chunk=4, head="cp", plan=plan), rows)
    assert [one.generated for one in rows] == [alone(model, prompt) for prompt in prompts(3)]


@pytest.mark.parametrize(("head", "chunk"), [("block", 7), ("block", 1), ("recurrent", 7)])
def test_the_head_is_told_of_every_position(head: str, chunk: int) -> None:
    """What it says of every token afterwards is what it says behind a prompt that was read whole."""
    model = tiny_model(vocab_size=VOCAB_SIZE)

    def said(chunk: int | None) -> list[float]:
        rows = [row(model, prompt, trace=0, end_tokens=(), max_new_tokens=16) for prompt in LONG]
        come_and_go(batch_of(model, chunk=chunk, head=head), rows)
        found = [token.draft_log_prob for one in rows for token in one.trace]
        return [value for value in found if value is not None]

    whole = said(None)
    assert len(whole) > 20
    assert said(chunk) == pytest.approx(whole, abs=1e-4)


class Watch:
    """What a batch does, in order: "chunk", or "cycle" with how many tokens it added."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, model: PreTrainedModel) -> None:
        self.done: list[str] = []
        self.widths: list[int] = []
        for of, name, said in ((Reading, "read", "chunk"), (Loop, "cycle", "cycle")):
            monkeypatch.setattr(of, name, self._noted(getattr(of, name), said))
        model.register_forward_pre_hook(
            lambda _, __, given: self.widths.append(given["input_ids"].shape[1]), with_kwargs=True
        )

    def _noted(self, method: Any, said: str) -> Any:
        def noted(given: Any) -> Any:
            self.done.append(said)
            return method(given)

        return noted


def begun(batch: LiveBatch, model: PreTrainedModel, **options: Any) -> LiveRow:
    """A text at work."""
    one = row(model, [1, 2, 3], end_tokens=(), max_new_tokens=60, **options)
    batch.admit([one])
    batch.step()
    assert one.generated
    return one


def test_texts_at_work_go_on_between_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(vocab_size=VOCAB_SIZE)
    batch = batch_of(model, chunk=10)
    running = begun(batch, model)
    watch = Watch(monkeypatch, model)
    late = row(model, LONG[0][:41])
    batch.admit([late])
    assert batch.free == 2 and not watch.done
    before = len(running.generated)
    for step in range(1, 6):
        assert not late.generated
        batch.step()
        assert len(running.generated) >= before + step
    assert late.generated
    assert watch.done == ["chunk", "cycle"] * 5
    assert max(watch.widths) <= 10


def test_prompts_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """A short one does not wait for the long ones that came before it, nor they for each other."""
    model = tiny_model(vocab_size=VOCAB_SIZE)
    batch = batch_of(model, chunk=10)
    first, second = (row(model, LONG[0][:41]) for _ in range(2))
    batch.admit([first, second])
    batch.step()
    short = row(model, [1, 2, 3])
    batch.admit([short])
    steps = {}
    for step in range(2, 15):
        batch.step()
        for name, one in (("first", first), ("second", second), ("short", short)):
            if one.generated:
                steps.setdefault(name, step)
    assert steps == {"short": 4, "first": 10, "second": 11}


def test_prompts_that_fit_into_a_chunk_are_read_together(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(vocab_size=VOCAB_SIZE)
    batch = batch_of(model, chunk=12)
    watch = Watch(monkeypatch, model)
    rows = [row(model, [7] * size) for size in (4, 2, 3)]
    batch.admit(rows)
    batch.step()
    assert watch.done == ["chunk", "cycle"]
    assert all(one.generated for one in rows)


@pytest.mark.parametrize(
    ("sizes", "chunk", "expected"),
    [
        ([], 4, []),
        ([9], 4, [[9]]),
        ([2, 2, 2], 4, [[2, 2], [2]]),
        ([1, 3, 1], 4, [[1], [3], [1]]),
        ([1, 1, 1, 1, 1], 4, [[1] * 4, [1]]),
        ([9, 1, 9, 2], None, [[9, 1, 9, 2]]),
        ([9, 9, 1, 1], 4, [[9], [9], [1, 1]]),
    ],
)
def test_groups_are_as_wide_as_a_chunk_padding_included(
    sizes: list[int], chunk: int | None, expected: list[list[int]]
) -> None:
    model = tiny_model(vocab_size=VOCAB_SIZE)
    groups = grouped([row(model, [1] * size) for size in sizes], chunk)
    assert [[one.ids.shape[1] for one in group] for group in groups] == expected


def test_a_text_that_is_dropped_is_not_read_any_further(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(vocab_size=VOCAB_SIZE)
    batch = batch_of(model, chunk=10)
    running = begun(batch, model)
    gone, group = row(model, LONG[0]), [row(model, prompt) for prompt in ([1], [2, 3])]
    batch.admit([gone, *group])
    batch.step()
    trunk = weakref.ref(batch._readings._waiting[-1]._begun[0])  # type: ignore[index]
    watch = Watch(monkeypatch, model)
    batch.drop(gone)
    batch.drop(group[0])
    assert trunk() is None  # what was read of it is let go of
    assert batch.free == 2 and batch.active == [running, group[1]]
    batch.step()
    batch.step()
    assert watch.done == ["chunk", "cycle", "cycle"]
    assert not gone.generated and not group[0].generated
    while not group[1].finished:
        batch.step()
    assert group[1].generated == alone(model, [2, 3])


def test_a_prompt_that_cannot_be_read_leaves_the_others_as_they_are() -> None:
    model = tiny_model(vocab_size=VOCAB_SIZE)
    batch = batch_of(model, chunk=10)
    running, bad = begun(batch, model), row(model, LONG[0])
    batch.admit([bad])
    batch.step()
    handle = model.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        batch.step()
    handle.remove()
    assert batch.active == [running] and not bad.generated
    while batch.active:
        batch.step()
    again = row(model, [1, 2, 3], end_tokens=(), max_new_tokens=60)
    come_and_go(batch_of(model, chunk=None), [again])
    assert running.generated == again.generated


def test_a_chunk_has_a_token_at_least() -> None:
    model = tiny_model(vocab_size=VOCAB_SIZE)
    with pytest.raises(InputError, match="prefill_chunk_size must be 1 or more, got 0"):
        batch_of(model, chunk=0)
