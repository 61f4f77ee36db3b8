"""What goes wrong in the middle of a generation leaves nothing behind: the next call is right."""

from __future__ import annotations

import copy
import gc
import signal
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
    """Ctrl-C."""
    signal.raise_signal(signal.SIGINT)


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
    """Counts its calls, and does `fault` at the one called `at`, counted from 1."""

    def __init__(self, fault: Callable[[], None], *, at: int) -> None:
        self._fault = fault
        self._left = at

    def burn(self) -> None:
        """Count."""
        self._left -= 1
        if self._left == 0:
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

    def __init__(self, fuse: Fuse) -> None:
        self._fuse = fuse

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


def slot_caches() -> int:
    """How many caches of ours are alive."""
    gc.collect()
    return sum(isinstance(found, SlotCache) for found in gc.get_objects())


def heads(model: PreTrainedModel, texts: list[Tensor]) -> dict[str, DraftHead]:
    """One that is mostly right, and one that remembers the context."""
    return {
        "oracle": oracle_of_many(model, texts),
        "block": tiny_head(model, features="block", block=BLOCK, layers=[1]),
    }


PLACES: dict[str, Callable[[Fuse], dict[str, Any]]] = {
    "streamer": lambda fuse: {"streamer": Streamer(fuse)},
    "processor": lambda fuse: {"logits_processor": LogitsProcessorList([Processor(fuse)])},
    "criterion": lambda fuse: {"stopping_criteria": StoppingCriteriaList([Criterion(fuse)])},
}


@pytest.mark.parametrize("error", FAULTS)
@pytest.mark.parametrize("kind", ["oracle", "block"])
class TestOneText:
    """Row 2: its prompt is longer than the window."""

    @pytest.mark.parametrize("place", PLACES)
    @pytest.mark.parametrize("at", [1, 2, 8])
    def test_what_the_caller_hands_in_fails(
        self, place: str, at: int, kind: str, error: type[BaseException]
    ) -> None:
        model, prompts, texts = known(KIND)
        head, before = heads(model, texts[2:3])[kind], hooks(model)
        given = PLACES[place](Fuse(FAULTS[error], at=at))
        fails(error, lambda: drafted(model, head, prompts[2:3], **given))
        self.check(model, head, before)

    @pytest.mark.parametrize("layer", [1, 2])
    @pytest.mark.parametrize("at", [1, 2, 5])
    def test_a_layer_of_the_model_fails(
        self, layer: int, at: int, kind: str, error: type[BaseException]
    ) -> None:
        """By then the layers before it have written what this forward reads."""
        model, prompts, texts = known(KIND)
        head, before = heads(model, texts[2:3])[kind], hooks(model)
        with burning(decoder_layers(model, upto=layer)[layer - 1], Fuse(FAULTS[error], at=at)):
            fails(error, lambda: drafted(model, head, prompts[2:3]))
        self.check(model, head, before)

    @pytest.mark.parametrize("at", [1, 4])
    def test_the_head_fails(self, at: int, kind: str, error: type[BaseException]) -> None:
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
        """No hook and no cache is left, and the next text is right."""
        assert hooks(model) == before
        assert slot_caches() == 0
        _, prompts, texts = known(KIND)
        out = drafted(model, head, prompts[2:3])
        assert out.sequences is not None
        assert out.sequences[0].tolist() == texts[2].tolist()


@pytest.mark.parametrize("error", FAULTS)
class TestACacheOfTheCallers:
    """It holds the first 15 tokens of a text, more than the window, when the continuation fails."""

    @pytest.mark.parametrize("place", ["streamer", "processor", "criterion", "layer"])
    @pytest.mark.parametrize("at", [1, 2, 6])
    def test_is_as_it_was(self, place: str, at: int, error: type[BaseException]) -> None:
        model, _, texts = known(KIND)
        text, head = texts[2][:30], oracle_of_many(known(KIND).model, texts[2:3])
        cache = DynamicCache(config=model.config)
        with torch.no_grad():
            cast(Any, model)(input_ids=text[None, :15], past_key_values=cache, use_cache=True)
        held = copy.deepcopy(cache)
        fuse = Fuse(FAULTS[error], at=at)
        given = PLACES[place](fuse) if place in PLACES else {}
        with burning(decoder_layers(model, upto=2)[1], fuse if place == "layer" else Fuse(fail, at=0)):
            fails(
                error,
                lambda: drafted(model, head, [text[:16]], past_key_values=cache, max_new_tokens=14, **given),
            )
        assert cache.get_seq_length() == held.get_seq_length() == 15
        for layer, copied in zip(cast(Any, cache.layers), cast(Any, held.layers), strict=True):
            assert torch.equal(layer.keys, copied.keys) and torch.equal(layer.values, copied.values)
        out = drafted(model, head, [text[:16]], past_key_values=cache, max_new_tokens=7)
        assert out.sequences is not None
        assert out.sequences[0].tolist() == text[:23].tolist()
        on = plain(model, text[None, :23], past_key_values=cache, max_new_tokens=7)
        assert on[0].tolist() == text.tolist()


@pytest.mark.parametrize("error", FAULTS)
@pytest.mark.parametrize("place", ["processor", "criterion", "layer"])
@pytest.mark.parametrize("at", [1, 3, 9])
def test_a_batch(place: str, at: int, error: type[BaseException]) -> None:
    model, prompts, texts = known(KIND)
    head, before = oracle_of_many(model, texts[:5]), hooks(model)
    fuse = Fuse(FAULTS[error], at=at)
    given = PLACES[place](fuse) if place in PLACES else {}
    with burning(decoder_layers(model, upto=2)[1], fuse if place == "layer" else Fuse(fail, at=0)):
        fails(error, lambda: drafted(model, head, prompts[:5], **given))
    assert hooks(model) == before
    assert slot_caches() == 0
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


@pytest.mark.parametrize("error", FAULTS)
@pytest.mark.parametrize("at", [1, 2, 3, 6])
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
