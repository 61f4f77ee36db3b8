"""What goes wrong in the middle of a generation leaves nothing behind: the next call is right."""

from __future__ import annotations

import copy
import gc
import signal
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    DynamicCache,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
)

import polydraft
from polydraft.compat import CACHE
from polydraft.decoding.adapted import verify_with_base
from polydraft.heads import DraftHead
from polydraft.hidden import decoder_layers
from polydraft.slots import SlotCache
from tests.decoding.models import drafted, known, new_tokens, oracle_of_many, plain
from tests.decoding.test_adapted import pair
from tests.tiny import BLOCK, tiny_head, tiny_model

KIND = "gemma3"
"""With a sliding window, which is where a cache is easiest to spoil."""


def interrupt() -> None:
    """Ctrl-C, also where the tests run in the background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def fail() -> None:
    """Somebody's bug."""
    raise ZeroDivisionError


def run_out() -> None:
    """What a device without room raises."""
    raise torch.OutOfMemoryError("no room for 20 GiB")


FAULTS: dict[type[BaseException], Callable[[], None]] = {
    KeyboardInterrupt: interrupt,
    ZeroDivisionError: fail,
    torch.OutOfMemoryError: run_out,
}


class Fuse:
    """Counts its calls, and does `fault` at number `at`, counted from 1; `stays`: and at all later ones."""

    def __init__(self, fault: Callable[[], None], *, at: int, stays: bool = False) -> None:
        self._fault = fault
        self._left = at
        self._stays = stays

    def burn(self) -> None:
        """Count."""
        self._left -= 1
        if self._left == 0 or (self._stays and self._left < 0):
            self._fault()


class Streamer:
    """Fails as it takes tokens."""

    def __init__(self, fuse: Fuse) -> None:
        self._fuse = fuse

    def put(self, value: Tensor) -> None:
        self._fuse.burn()

    def end(self) -> None:
        """Nothing."""


class Processor(LogitsProcessor):
    """Changes nothing, until it fails."""

    def __init__(self, fuse: Fuse, *, stateless: bool = False) -> None:
        self._fuse = fuse
        self.stateless = stateless

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        self._fuse.burn()
        return scores


class Criterion(StoppingCriteria):
    """Never stops, but fails."""

    def __init__(self, fuse: Fuse) -> None:
        self._fuse = fuse

    def __call__(self, input_ids: Any, scores: Any, **options: Any) -> Any:
        self._fuse.burn()
        return torch.zeros(len(input_ids), dtype=torch.bool)


@contextmanager
def burning(module: nn.Module, fuse: Fuse) -> Iterator[None]:
    """Burn at every forward of `module`, when it is through."""
    handle = module.register_forward_hook(lambda *_: fuse.burn())
    try:
        yield
    finally:
        handle.remove()


def hooks(model: nn.Module) -> int:
    """How many hooks the modules of `model` have."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def fails(error: type[BaseException], call: Callable[[], object]) -> None:
    """`call` raises `error`, of which nothing is kept."""
    try:
        call()
    except error:
        return
    pytest.fail(f"no {error.__name__}")


@pytest.fixture
def caches(monkeypatch: pytest.MonkeyPatch) -> list[weakref.ref[SlotCache]]:
    """Every slot cache that is made during the test."""
    made: list[weakref.ref[SlotCache]] = []
    begin = SlotCache.__init__

    def noting(self: SlotCache, *args: Any, **options: Any) -> None:
        begin(self, *args, **options)
        made.append(weakref.ref(self))

    monkeypatch.setattr(SlotCache, "__init__", noting)
    return made


def heads(model: PreTrainedModel, texts: list[Tensor]) -> dict[str, DraftHead]:
    """One that is mostly right, and one that remembers the context."""
    return {
        "oracle": oracle_of_many(model, texts),
        "block": tiny_head(model, features="block", block=BLOCK, layers=[1]),
    }


PLACES: dict[str, Callable[[Fuse], dict[str, Any]]] = {
    "streamer": lambda fuse: {"streamer": Streamer(fuse)},
    "processor": lambda fuse: {"logits_processor": LogitsProcessorList([Processor(fuse)])},
    "stateless": lambda fuse: {"logits_processor": LogitsProcessorList([Processor(fuse, stateless=True)])},
    "criterion": lambda fuse: {"stopping_criteria": StoppingCriteriaList([Criterion(fuse)])},
}


def in_turn(*cases: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    """Each case with an error, these taking turns."""
    return [(*case, list(FAULTS)[at % len(FAULTS)]) for at, case in enumerate(cases)]


@pytest.mark.parametrize("kind", ["oracle", "block"])
class TestOneText:
    """Row 2: its prompt is longer than the window."""

    @pytest.mark.parametrize(
        ("place", "at", "error"),
        in_turn(*((place, at) for at in (1, 2, 5, 8) for place in ("streamer", "processor", "criterion"))),
    )
    def test_what_the_caller_hands_in_fails(
        self, place: str, at: int, error: type[BaseException], kind: str
    ) -> None:
        model, prompts, texts = known(KIND)
        head, before = heads(model, texts[2:3])[kind], hooks(model)
        given = PLACES[place](Fuse(FAULTS[error], at=at))
        fails(error, lambda: drafted(model, head, prompts[2:3], **given))
        self.check(model, head, before)

    @pytest.mark.parametrize(
        ("layer", "at", "error"), in_turn((1, 1), (2, 1), (1, 2), (2, 2), (1, 5), (2, 6))
    )
    def test_a_layer_of_the_model_fails(
        self, layer: int, at: int, error: type[BaseException], kind: str
    ) -> None:
        """By then the layers before it have written what this forward reads."""
        model, prompts, texts = known(KIND)
        head, before = heads(model, texts[2:3])[kind], hooks(model)
        with burning(decoder_layers(model, upto=layer)[layer - 1], Fuse(FAULTS[error], at=at)):
            fails(error, lambda: drafted(model, head, prompts[2:3]))
        self.check(model, head, before)

    @pytest.mark.parametrize(("at", "error"), in_turn((1,), (2,), (4,)))
    def test_the_head_fails(self, at: int, error: type[BaseException], kind: str) -> None:
        model, prompts, texts = known(KIND)
        head, before = heads(model, texts[2:3])[kind], hooks(model)
        fuse, reader = Fuse(FAULTS[error], at=at), head.reader

        def failing(**options: Any) -> Any:
            found = reader(**options)
            joint = found.joint
            found.joint = lambda: (fuse.burn(), joint())[1]  # type: ignore[method-assign]
            return found

        cast(Any, head).reader = failing
        fails(error, lambda: drafted(model, head, prompts[2:3]))
        del cast(Any, head).reader
        self.check(model, head, before)

    def check(self, model: PreTrainedModel, head: DraftHead, before: int) -> None:
        """No hook is left, and the next text is right."""
        assert hooks(model) == before
        _, prompts, texts = known(KIND)
        out = drafted(model, head, prompts[2:3])
        assert out.sequences is not None
        assert out.sequences[0].tolist() == texts[2].tolist()


class TestACacheOfTheCallers:
    """It holds the first 22 tokens of a text, more than the window, when the continuation fails."""

    @pytest.mark.parametrize(
        ("place", "at", "error"),
        in_turn(
            *((place, at) for place in ("streamer", "processor", "criterion", "layer") for at in (1, 2, 6))
        ),
    )
    def test_is_as_it_was(self, place: str, at: int, error: type[BaseException]) -> None:
        model, _, texts = known(KIND)
        text, head = texts[2], oracle_of_many(model, texts[2:3])
        cache = DynamicCache(config=model.config)
        with torch.no_grad():
            cast(Any, model)(input_ids=text[None, :22], **{CACHE: cache}, use_cache=True)
        held = copy.deepcopy(cache)
        fuse = Fuse(FAULTS[error], at=at)
        given = PLACES[place](fuse) if place in PLACES else {}
        with burning(decoder_layers(model, upto=2)[1], fuse if place == "layer" else Fuse(fail, at=0)):
            fails(
                error,
                lambda: drafted(model, head, [text[:23]], **{CACHE: cache}, max_new_tokens=20, **given),
            )
        assert cache.get_seq_length() == held.get_seq_length() == 22
        for layer, copied in zip(cast(Any, cache.layers), cast(Any, held.layers), strict=True):
            assert torch.equal(layer.keys, copied.keys) and torch.equal(layer.values, copied.values)
        out = drafted(model, head, [text[:23]], **{CACHE: cache}, max_new_tokens=7)
        assert out.sequences is not None
        assert out.sequences[0].tolist() == text[:30].tolist()
        on = plain(model, text[None, :30], **{CACHE: cache}, max_new_tokens=len(text) - 30)
        assert on[0].tolist() == text.tolist()


@pytest.mark.parametrize(
    ("place", "at", "error"),
    in_turn(*((place, at) for place in ("stateless", "criterion", "layer") for at in (1, 3, 9))),
)
def test_a_batch(place: str, at: int, error: type[BaseException]) -> None:
    """What a processor raises on a draft is raised when the text comes to it."""
    model, prompts, texts = known(KIND)
    head, before = oracle_of_many(model, texts[:5]), hooks(model)
    fuse = Fuse(FAULTS[error], at=at, stays=place == "stateless")
    given = PLACES[place](fuse) if place in PLACES else {}
    with burning(decoder_layers(model, upto=2)[1], fuse if place == "layer" else Fuse(fail, at=0)):
        fails(error, lambda: drafted(model, head, prompts[:5], **given))
    assert hooks(model) == before
    out = drafted(model, head, prompts[:5])
    assert new_tokens(out, prompts[:5]) == [known(KIND).new(row) for row in range(5)]


def test_the_decoder_of_generate_can_be_used_again() -> None:
    model, prompts, texts = known(KIND)
    decode = polydraft.decoder(oracle_of_many(model, texts[2:3]), streamer=Streamer(Fuse(interrupt, at=9)))
    fails(
        KeyboardInterrupt, lambda: plain(model, prompts[2][None], custom_generate=decode, max_new_tokens=24)
    )
    assert decode.statistics is None
    again = plain(model, prompts[2][None], custom_generate=decode, max_new_tokens=24)
    assert again[0].tolist() == texts[2].tolist()
    assert decode.statistics is not None


@pytest.mark.adapters
@pytest.mark.parametrize(("at", "error"), in_turn((1,), (2,), (3,), (6,)))
def test_an_adapter_that_was_switched_on_to_draft_is_off_again(at: int, error: type[BaseException]) -> None:
    """Forwards of the base model and of the adapted one take turns."""
    model, head = pair()
    verify_with_base(model, head)
    prompt = torch.tensor([[3, 14, 15, 9, 26, 5]])
    expected = plain(tiny_model(), prompt, max_new_tokens=12)
    with burning(decoder_layers(model, upto=2)[1], Fuse(FAULTS[error], at=at)):
        fails(error, lambda: polydraft.generate(model, head, prompt, max_new_tokens=12))
    assert plain(model, prompt, max_new_tokens=12).tolist() == expected.tolist()
    out = polydraft.generate(model, head, prompt, max_new_tokens=12)
    assert out.sequences is not None
    assert out.sequences.tolist() == expected.tolist()


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("error", [None, ZeroDivisionError])
def test_a_generation_leaves_no_cache_behind(
    rows: int, error: type[BaseException] | None, caches: list[weakref.ref[SlotCache]]
) -> None:
    """It goes at once, not when Python looks for cycles: on a device those of many texts would pile up."""
    model, prompts, _ = known(KIND)
    head = tiny_head(model, features="block", block=BLOCK)
    gc.collect()
    gc.disable()
    try:
        for _ in range(2):
            if error is None:
                drafted(model, head, prompts[:rows])
            else:
                given = PLACES["stateless"](Fuse(FAULTS[error], at=4, stays=True))
                fails(error, lambda given=given: drafted(model, head, prompts[:rows], **given))  # type: ignore[misc]
        assert len(caches) == 4  # the model's and the block's
        assert [cache for cache in caches if cache() is not None] == []
    finally:
        gc.enable()
