"""A step of a live batch that fails: one text's own error ends that text, any other ends the batch."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from transformers import LogitsProcessor, PreTrainedModel, StoppingCriteria

from polydraft.decoding.live import LiveBatch, LiveRow
from polydraft.decoding.plan import Plan
from polydraft.errors import InputError, PolydraftError
from polydraft.hidden import decoder_layers
from polydraft.slots import SlotCache
from tests.decoding.models import Known, known, oracle_of_many
from tests.decoding.test_faults import Criterion, Fuse, Processor, burning, caches, fail, hooks, interrupt
from tests.decoding.test_live import row
from tests.tiny import BLOCK, tiny_head

assert caches  # a fixture
ROWS, NEW = 4, 20
PLANS = {
    "chain": Plan(draft_length=3, drafting="chain"),
    "tree": Plan(draft_length=5, drafting="tree"),
}
HEADS: dict[str, Callable[[Known], Any]] = {
    "oracle": lambda given: oracle_of_many(given.model, given.texts[:8], pattern=(3, 1, 0, 2)),
    "block": lambda given: tiny_head(given.model, features="block", block=BLOCK, layers=[1]),
}


class Case:
    """A batch of a model whose greedy texts are known, and rows for their prompts."""

    def __init__(self, head: str = "oracle", plan: str = "chain", kind: str = "gemma3") -> None:
        self.known = known(kind)
        self.head = HEADS[head](self.known)
        self.plan = PLANS[plan]
        self.batch = self.another()

    @property
    def model(self) -> PreTrainedModel:
        return self.known.model

    def another(self) -> LiveBatch:
        return LiveBatch(self.model, self.head, rows=ROWS, plan=self.plan)

    def row(self, at: int, **options: Any) -> LiveRow:
        prompt = self.known.prompts[at].tolist()
        return row(self.model, prompt, max_new_tokens=NEW, end_tokens=(), **options)

    def finish(self) -> None:
        while self.batch.active:
            self.batch.step()

    def check(self, at: int, one: LiveRow) -> None:
        """The text is whole, and right."""
        assert one.finished and not one.failed
        assert one.generated == self.known.new(at)[:NEW]


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("what", ["processor", "criterion"])
@pytest.mark.parametrize("place", [0, 2])
@pytest.mark.parametrize("at", [1, 7])
def test_an_error_of_one_text_ends_that_text_alone(
    head: str, plan: str, what: str, place: int, at: int
) -> None:
    case = Case(head, plan)
    rows = [case.row(k) for k in range(ROWS)]
    fuse = Fuse(fail, at=at)
    if what == "processor":
        rows[place] = case.row(place, logits_processor=[Processor(fuse)])
    else:
        rows[place]._criteria.append(cast(StoppingCriteria, Criterion(fuse)))
    raised = 0
    try:
        case.batch.admit(rows)
    except ZeroDivisionError:
        raised += 1
    late = None
    while case.batch.active:
        try:
            case.batch.step()
        except ZeroDivisionError:
            raised += 1
        if raised and late is None:
            late = case.row(6)
            case.batch.admit([late])
    assert raised == 1 and not case.batch.dead
    assert rows[place].failed and not rows[place].finished
    assert rows[place].generated == case.known.new(place)[: len(rows[place].generated)]
    for other in set(range(ROWS)) - {place}:
        case.check(other, rows[other])
    assert late is not None
    case.check(6, late)
    assert rows[place].statistics.steps <= len(rows[place].generated)


def test_two_errors_in_one_step_are_both_told() -> None:
    case = Case()
    rows = [case.row(k, logits_processor=[Processor(Fuse(fail, at=3))] if k < 2 else []) for k in range(3)]
    case.batch.admit(rows)
    with pytest.raises(ZeroDivisionError) as caught:
        case.finish()
    assert caught.value.__notes__ == ["another text of the batch failed too: ZeroDivisionError()"]
    case.finish()
    assert [one.failed for one in rows] == [True, True, False]
    case.check(2, rows[2])


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("fault", [fail, interrupt])
@pytest.mark.parametrize("place", ["layer", "head", "cache"])
def test_any_other_error_ends_the_batch_and_a_new_one_goes_on(
    head: str, fault: Callable[[], None], place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, fuse = Case(head), Fuse(fault, at=1)
    rows, before = [case.row(k) for k in range(3)], hooks(case.model)
    case.batch.admit(rows)
    case.batch.step()
    error: type[BaseException] = ZeroDivisionError if fault is fail else KeyboardInterrupt
    layer = decoder_layers(case.model, upto=2)[1]
    with monkeypatch.context() as patch, burning(layer, fuse if place == "layer" else Fuse(fail, at=0)):
        if place == "head":
            patch.setattr(type(case.head), "forward" if head == "oracle" else "joint", lambda *_: fuse.burn())
        elif place == "cache":
            patch.setattr(SlotCache, "keep", lambda *_: fuse.burn())
        with pytest.raises(error):
            case.batch.step()
    assert case.batch.dead and not case.batch.active and hooks(case.model) == before
    for call in (case.batch.step, lambda: case.batch.admit([case.row(5)])):
        with pytest.raises(
            PolydraftError, match="failed in an earlier step and holds no text any more"
        ) as caught:
            call()
        assert "\n" not in str(caught.value)
    case.batch.drop(rows[0])
    case.batch = case.another()
    case.batch.admit([one for one in rows if not one.finished])
    case.finish()
    for at, one in enumerate(rows):
        case.check(at, one)


@pytest.mark.parametrize("fault", [fail, interrupt])
def test_prompts_that_cannot_be_read_leave_those_at_work(fault: Callable[[], None]) -> None:
    case = Case()
    first = [case.row(k) for k in range(2)]
    case.batch.admit(first)
    case.batch.step()
    late = [case.row(k) for k in range(4, 6)]
    with (
        pytest.raises((ZeroDivisionError, KeyboardInterrupt)),
        burning(decoder_layers(case.model, upto=2)[1], Fuse(fault, at=1)),
    ):
        case.batch.admit(late)
    assert not case.batch.dead and case.batch.active == first
    case.batch.admit(late)
    case.finish()
    for at, one in zip((0, 1, 4, 5), (*first, *late), strict=True):
        case.check(at, one)


def test_rows_that_cannot_be_put_together_end_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case()
    case.batch.admit([case.row(0)])
    monkeypatch.setattr(SlotCache, "join", lambda *_: fail())
    with pytest.raises(ZeroDivisionError):
        case.batch.admit([case.row(1)])
    assert case.batch.dead


class Counting(LogitsProcessor):
    """Prefers another token at each call."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        self.calls += 1
        out = scores.clone()
        out[:, self.calls % 60] += 30.0
        return out


def test_a_processor_that_may_keep_a_state_belongs_to_one_text() -> None:
    case = Case()
    shared = Counting()
    first, second = (case.row(k, logits_processor=[shared]) for k in range(2))
    with pytest.raises(
        InputError, match="Counting may keep a state of its own, which two texts would mix up"
    ):
        case.batch.admit([first, second])
    assert not case.batch.active
    case.batch.admit([first])
    with pytest.raises(InputError, match="make one for each, or set its attribute stateless = True"):
        case.batch.admit([second])
    own = [case.row(k, logits_processor=[Counting()]) for k in range(2, 4)]
    case.batch.admit(own)
    case.finish()
    for one in (first, *own):  # a bias of 30 decides
        assert one.generated == [call % 60 for call in range(1, NEW + 1)]


@pytest.mark.parametrize("end", ["text", "batch"])
def test_a_failed_step_leaves_no_cache_behind(end: str, caches: list[weakref.ref[SlotCache]]) -> None:
    """The rows are still there; the states go at once."""
    case = Case("block")
    gc.collect()
    gc.disable()
    try:
        rows = [case.row(0, logits_processor=[Processor(Fuse(fail, at=4))])]
        case.batch.admit(rows)
        layer = decoder_layers(case.model, upto=2)[1]
        try:
            with burning(layer, Fuse(fail, at=0 if end == "text" else 2)):
                case.finish()
            pytest.fail("nothing was raised")
        except ZeroDivisionError:
            pass
        assert case.batch.dead == (end == "batch") and rows[0].failed == (end == "text")
        assert caches and [cache for cache in caches if cache() is not None] == []
    finally:
        gc.enable()
    torch.manual_seed(0)
