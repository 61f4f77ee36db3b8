"""Logits processors: functions of the text shape drafts too, all others are called as in plain decoding.

The rule is `polydraft.decoding.stateless`; what it says of transformers' own processors is tested one by one.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    SynthIDTextWatermarkingConfig,
)
from transformers.generation import logits_process as own

import polydraft
from polydraft.decoding.stateless import STATELESS, is_pointwise, is_stateless, keeping_state
from polydraft.errors import InputError
from tests.decoding.cases import PLAIN, tables
from tests.decoding.exhaustive import EveryDraw, difference, drafted_texts, plain_texts
from tests.decoding.tables import TableModel
from tests.tiny import BLOCK, tiny_head, tiny_model

SIZE, END = 64, 8
PROMPT = torch.tensor([[3, 14, 15, 9, 26, 5]])
WAYS: dict[str, dict[str, Any]] = {
    "chain": {"drafting": "chain", "draft_length": 3},
    "tree": {"drafting": "tree", "draft_length": 7},
    "lookup": {"prompt_lookup_num_tokens": 6, "draft_length": 3},
}


def allowed(row: int, ids: Tensor) -> list[int]:
    """Tokens that go with the last one."""
    return [(int(ids[-1]) * 7 + k) % SIZE for k in range(9)]


MADE: dict[str, Callable[[], Any]] = {
    "TemperatureLogitsWarper": lambda: own.TemperatureLogitsWarper(0.7),
    "TopKLogitsWarper": lambda: own.TopKLogitsWarper(5),
    "TopPLogitsWarper": lambda: own.TopPLogitsWarper(0.8),
    "TopHLogitsWarper": lambda: own.TopHLogitsWarper(0.5),
    "MinPLogitsWarper": lambda: own.MinPLogitsWarper(0.1),
    "TypicalLogitsWarper": lambda: own.TypicalLogitsWarper(0.8),
    "EpsilonLogitsWarper": lambda: own.EpsilonLogitsWarper(0.02),
    "EtaLogitsWarper": lambda: own.EtaLogitsWarper(0.02, device="cpu"),
    "LogitNormalization": own.LogitNormalization,
    "InfNanRemoveLogitsProcessor": own.InfNanRemoveLogitsProcessor,
    "MinLengthLogitsProcessor": lambda: own.MinLengthLogitsProcessor(8, END, device="cpu"),
    "MinNewTokensLengthLogitsProcessor": lambda: own.MinNewTokensLengthLogitsProcessor(
        6, 3, END, device="cpu"
    ),
    "RepetitionPenaltyLogitsProcessor": lambda: own.RepetitionPenaltyLogitsProcessor(1.4),
    "EncoderRepetitionPenaltyLogitsProcessor": lambda: own.EncoderRepetitionPenaltyLogitsProcessor(
        1.4, PROMPT
    ),
    "NoRepeatNGramLogitsProcessor": lambda: own.NoRepeatNGramLogitsProcessor(2),
    "EncoderNoRepeatNGramLogitsProcessor": lambda: own.EncoderNoRepeatNGramLogitsProcessor(2, PROMPT),
    "SequenceBiasLogitsProcessor": lambda: own.SequenceBiasLogitsProcessor([[[3], 2.0], [[5, 6], -3.0]]),
    "NoBadWordsLogitsProcessor": lambda: own.NoBadWordsLogitsProcessor([[9], [5, 7]], eos_token_id=END),
    "ForcedBOSTokenLogitsProcessor": lambda: own.ForcedBOSTokenLogitsProcessor(4),
    "ForcedEOSTokenLogitsProcessor": lambda: own.ForcedEOSTokenLogitsProcessor(9, END, device="cpu"),
    "ExponentialDecayLengthPenalty": lambda: own.ExponentialDecayLengthPenalty((1, 1.5), END, 6),
    "SuppressTokensAtBeginLogitsProcessor": lambda: own.SuppressTokensAtBeginLogitsProcessor([1], 6, "cpu"),
    "SuppressTokensLogitsProcessor": lambda: own.SuppressTokensLogitsProcessor([1, 2], "cpu"),
    "WatermarkLogitsProcessor": lambda: own.WatermarkLogitsProcessor(SIZE, "cpu", context_width=2),
}
"""One of each that is said to be a function of text and row."""
IN_ORDER = {
    "PrefixConstrainedLogitsProcessor",  # a caller's function, which may say that it is stateless
    "UnbatchedClassifierFreeGuidanceLogitsProcessor",  # a cache of keys and values
    "SynthIDTextWatermarkLogitsProcessor",  # a history of contexts
    "WhisperTimeStampLogitsProcessor", "WhisperNoSpeechDetection", "ClassifierFreeGuidanceLogitsProcessor",
    "AlternatingCodebooksLogitsProcessor", "BarkEosPrioritizerLogitsProcessor",
    "DiaClassifierFreeGuidanceLogitsProcessor", "DiaEOSChannelFilterLogitsProcessor",
    "DiaEOSDelayPatternLogitsProcessor",  # of speech and sound
}  # fmt: skip
"""Those that are called as plain decoding calls them."""


def test_every_processor_of_transformers_is_known() -> None:
    """A new one is called in the order of the text until somebody has looked at it."""
    found = {
        name
        for name, kind in inspect.getmembers(own, inspect.isclass)
        if issubclass(kind, LogitsProcessor) and kind is not LogitsProcessor
    }
    assert found <= STATELESS | IN_ORDER
    assert set(MADE) == STATELESS and not STATELESS & IN_ORDER


@pytest.mark.parametrize("name", MADE)
def test_those_called_stateless_are_functions(name: str) -> None:
    """Asked in any order, about texts that go nowhere too, they give what a new one gives at once."""
    made = MADE[name]()
    assert type(made).__name__ == name and is_stateless(made)
    generator = torch.Generator().manual_seed(0)
    texts = [torch.randint(0, 10, (1, length), generator=generator) for length in (6, 7, 9, 7, 6, 8, 8, 7)]
    texts = [torch.cat([PROMPT, text], -1) for text in texts] + texts
    rows = [torch.randn(1, SIZE, generator=generator) for _ in texts]
    changed = 0
    for text, row in [*zip(texts, rows, strict=True)] * 2:
        expected = MADE[name]()(text, row.clone())
        assert torch.equal(made(text, row.clone()), expected)
        changed += not torch.equal(expected, row)
        if is_pointwise(made):
            assert torch.equal(made(PROMPT[:, :1], row.clone()), expected)
    assert changed or name in ("InfNanRemoveLogitsProcessor", "ForcedBOSTokenLogitsProcessor")


def test_what_is_not_known_is_not_stateless() -> None:
    class Mine(LogitsProcessor):
        pass

    class Sub(own.TopKLogitsWarper):
        """May do anything."""

    free = Mine()
    cast(Any, free).stateless = True
    given = [Mine(), Sub(3), lambda ids, scores: scores, free, own.TopKLogitsWarper(3)]
    assert keeping_state(given) == given[:3]
    assert not is_stateless(own.PrefixConstrainedLogitsProcessor(allowed, 1))

    def pure(row: int, ids: Tensor) -> list[int]:
        return allowed(row, ids)

    cast(Any, pure).stateless = True
    assert is_stateless(own.PrefixConstrainedLogitsProcessor(pure, 1))


class Counting(LogitsProcessor):
    """Its state: how often it was called."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        self.calls += 1
        out = scores.clone()
        out[:, (5 * self.calls) % scores.shape[-1]] += 3.0
        return out


class Remembering(LogitsProcessor):
    """Its state: a hash of the last tokens that it was shown, as an incremental parser has."""

    def __init__(self) -> None:
        self.state = 1

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        self.state = (3 * self.state + int(input_ids[0, -1])) % 1009
        out = scores.clone()
        out[:, self.state % scores.shape[-1]] += 3.0
        return out


class CountingFunction:
    """A `prefix_allowed_tokens_fn` with a state."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, row: int, ids: Tensor) -> list[int]:
        self.calls += 1
        return [(k + self.calls) % SIZE for k in range(0, SIZE, 3)]


WITH_STATE: dict[str, Callable[[], dict[str, Any]]] = {
    "counting": lambda: {"logits_processor": LogitsProcessorList([Counting()])},
    "remembering": lambda: {"logits_processor": LogitsProcessorList([Remembering(), Counting()])},
    "guidance": lambda: {"guidance_scale": 1.8},
    "negative prompt": lambda: {"guidance_scale": 2.5, "negative_prompt_ids": torch.tensor([[4, 4, 9]])},
    "function": lambda: {"prefix_allowed_tokens_fn": CountingFunction()},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("what", WITH_STATE)
@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_greedy_text_with_a_state_is_plain_text(kind: str, what: str, way: str) -> None:
    model = tiny_model(kind, initializer_range=0.1)
    head = tiny_head(model, features="block", block=BLOCK, layers=[1])
    given: dict[str, Any] = {"do_sample": False, "max_new_tokens": 24, "repetition_penalty": 1.1}
    plain = cast(Any, model).generate(PROMPT, **given, **WITH_STATE[what]())
    assert not torch.equal(plain, cast(Any, model).generate(PROMPT, **given))
    out = polydraft.generate(model, head, PROMPT, **given, **WAYS[way], **WITH_STATE[what]())
    assert cast(Tensor, out.sequences).tolist() == plain.tolist()


def test_guidance_with_a_compiled_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """The processor calls the model's own forward in between."""
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    model = tiny_model()
    given: dict[str, Any] = {"do_sample": False, "max_new_tokens": 12, "guidance_scale": 1.8}
    out = polydraft.generate(model, tiny_head(model), PROMPT, compiled=True, draft_length=3, **given)
    assert cast(Tensor, out.sequences).tolist() == cast(Any, model).generate(PROMPT, **given).tolist()


class Events:
    """What a processor, a criterion and a streamer of one generation are told, in order.

    Args:
        last: stops once this token has come twice.
    """

    def __init__(self, last: int) -> None:
        self.told: list[tuple[Any, ...]] = []
        self._last = last

    def options(self) -> dict[str, Any]:
        events = self

        class Processor(LogitsProcessor):
            def __call__(self, input_ids: Any, scores: Any) -> Any:
                events.told.append(("processor", input_ids.tolist(), scores.clone()))
                return scores

        class Criterion(StoppingCriteria):
            def __call__(self, input_ids: Any, scores: Any, **rest: Any) -> Any:
                events.told.append(("criterion", input_ids.tolist()))
                return (input_ids == events._last).sum(-1) >= 2

        class Streamer:
            def put(self, value: Tensor) -> None:
                events.told.append(("streamer", value.flatten().tolist()))

            def end(self) -> None:
                events.told.append(("end",))

        return {
            "logits_processor": LogitsProcessorList([Processor()]),
            "stopping_criteria": StoppingCriteriaList([Criterion()]),
            "streamer": Streamer(),
        }


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("stop", ["criterion", "end token", "length"])
def test_what_the_caller_hands_in_is_called_as_in_plain_decoding(way: str, stop: str) -> None:
    """Nothing is asked about a draft, nor after the end, and everything in the same order."""
    model = tiny_model(initializer_range=0.1)
    given: dict[str, Any] = {"do_sample": False, "max_new_tokens": 40, "no_repeat_ngram_size": 3}
    text = cast(Any, model).generate(PROMPT, **given)[0, PROMPT.shape[1] :].tolist()
    twice = next(token for token in text if text.count(token) > 1)
    if stop == "end token":
        given["eos_token_id"] = text[17]
    expected, found = (Events(twice if stop == "criterion" else -1) for _ in range(2))
    plain = cast(Any, model).generate(PROMPT, **given, **expected.options())
    head = tiny_head(model, features="block", block=BLOCK)
    out = polydraft.generate(model, head, PROMPT, **given, **WAYS[way], **found.options())
    assert cast(Tensor, out.sequences).tolist() == plain.tolist()
    assert out.statistics is not None and out.statistics.drafted_tokens > 0
    for kinds in (("processor", "criterion"), ("streamer", "end")):
        a, b = ([event for event in events.told if event[0] in kinds] for events in (found, expected))
        assert [event[:2] for event in a] == [event[:2] for event in b]
        for one, other in zip(a, b, strict=True):
            if one[0] == "processor":
                torch.testing.assert_close(one[2], other[2], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("way", ["chain", "tree"])
@pytest.mark.parametrize("watermark", [False, True])
def test_sampled_text_is_told_in_its_order(way: str, watermark: bool) -> None:
    """And exact for that reason: see the enumeration below."""
    model = tiny_model(initializer_range=0.1)
    for seed in range(10):
        events = Events(-1)
        given = events.options()
        del given["streamer"]
        if watermark:
            given["watermarking_config"] = SynthIDTextWatermarkingConfig(ngram_len=3, keys=[11, 23])
        out = polydraft.generate(
            model, tiny_head(model), PROMPT, do_sample=True, top_k=0, max_new_tokens=12,
            generator=torch.Generator().manual_seed(seed), **WAYS[way], **given,
        )  # fmt: skip
        text = cast(Tensor, out.sequences)[0].tolist()
        asked = [event[1][0] for event in events.told if event[0] == "processor"]
        assert asked == [text[:length] for length in range(PROMPT.shape[1], len(text))]


@pytest.fixture
def choices(monkeypatch: pytest.MonkeyPatch) -> EveryDraw:
    return EveryDraw(monkeypatch)


class Ending(LogitsProcessor):
    """Takes no text after its end, as a grammar does; a function of the text."""

    stateless = True

    def __init__(self, ends: set[int], fails: bool) -> None:
        self._ends, self._fails = ends, fails

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        if self._ends & set(input_ids[0, 3:].tolist()):
            if self._fails:
                raise AssertionError("the grammar has ended")
            return torch.full_like(scores, -torch.inf)
        return scores / 0.9


@pytest.mark.parametrize(
    ("fresh", "verifications"),
    [
        (lambda: LogitsProcessorList([Remembering(), own.TopKLogitsWarper(2)]), ("token",)),
        (lambda: LogitsProcessorList([Ending({1, 3}, fails=True)]), ("token", "block")),
        (lambda: LogitsProcessorList([Ending({1, 3}, fails=False)]), ("token", "block")),
    ],
    ids=["state", "fails at the end", "-inf at the end"],
)
def test_sampled_text_is_distributed_as_plain_sampling(
    choices: EveryDraw, fresh: Any, verifications: tuple[str, ...]
) -> None:
    """Enumerated: whole generations, every choice made every way; tokens 1 and 3 end a text."""
    table, head = small()
    expected = plain_texts(table, fresh, ends={1, 3})
    assert sum(expected.values()) == pytest.approx(1, abs=1e-6)
    for verification in verifications:
        found = drafted_texts(choices, table, head, fresh, ends={1, 3}, verification=verification)
        assert difference(found, expected) < 1e-6, verification


def small() -> tuple[TableModel, Any]:
    """Tables of the model and of a head that drafts two tokens."""
    table, head = tables(PLAIN, pooled=False)
    return table, head


class TestDraftsEndAtEndTokens:
    """Greedy and sampled, whole and in batches: nothing is asked after a drafted end token either."""

    @pytest.mark.parametrize("way", WAYS)
    @pytest.mark.parametrize("fails", [False, True])
    @pytest.mark.parametrize("sampled", [{}, {"do_sample": True, "top_k": 0}, {"do_sample": True, "seed": 4}])
    def test_of_a_batch(self, way: str, fails: bool, sampled: dict[str, Any]) -> None:
        model = tiny_model(vocab_size=12, initializer_range=0.1)
        head = tiny_head(model)
        prompts = torch.tensor([[5, 6, 7], [9, 9, 1], [2, 2, 2]])
        given: dict[str, Any] = {"max_new_tokens": 30, "pad_token_id": 0, "eos_token_id": [1, 3]} | sampled
        given["do_sample"] = bool(sampled)
        processors = LogitsProcessorList([Ending({1, 3}, fails=fails)])
        out = polydraft.generate(model, head, prompts, **given, **WAYS[way], logits_processor=processors)
        texts = cast(Tensor, out.sequences)[:, 3:].tolist()
        ended = 0
        for row, text in enumerate(texts):
            ends = [at for at, token in enumerate(text) if token in (1, 3)]
            assert len(ends) <= 1 and not any(text[ends[0] + 1 :] if ends else [])
            ended += bool(ends)
            if not sampled:
                alone = (
                    cast(Any, model)
                    .generate(prompts[row : row + 1], **given, logits_processor=processors)[0, 3:]
                    .tolist()
                )
                assert text[: len(alone)] == alone
        assert ended

    def test_of_copied_drafts(self) -> None:
        """Greedy text in a loop, cut at a token of the loop."""
        model = tiny_model()
        loop = cast(Any, model).generate(PROMPT, max_new_tokens=60, do_sample=False)[0, -1].item()
        given: dict[str, Any] = {"max_new_tokens": 60, "do_sample": False, "eos_token_id": loop}
        processors = LogitsProcessorList([Ending({loop}, fails=True)])
        plain = cast(Any, model).generate(PROMPT, **given)
        out = polydraft.generate(
            model, tiny_head(model), PROMPT, **given, **WAYS["lookup"], logits_processor=processors
        )
        assert cast(Tensor, out.sequences).tolist() == plain.tolist()


class TestRefusals:
    def line(self, prompts: Tensor = PROMPT, **options: Any) -> str:
        model = tiny_model()
        with pytest.raises(InputError) as caught:
            polydraft.generate(model, tiny_head(model), prompts, max_new_tokens=4, **options)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    def test_in_a_batch(self) -> None:
        batch = PROMPT.repeat(2, 1)
        line = self.line(batch, logits_processor=LogitsProcessorList([Counting()]))
        assert line == (
            "Counting may keep a state of its own, which the texts of a batch would mix up: give one text at "
            "a time, or set its attribute stateless = True if its scores depend on its arguments alone"
        )
        assert "(guidance_scale) may keep" in self.line(batch, guidance_scale=2.0)
        config = SynthIDTextWatermarkingConfig(ngram_len=3, keys=[11, 23])
        assert "(watermarking_config) may keep" in self.line(batch, watermarking_config=config)

    def test_in_block_verification(self) -> None:
        options = {"do_sample": True, "verification": "block", "guidance_scale": 2.0}
        assert "which block verification would mix up: use verification 'token'" in self.line(**options)

    def test_what_says_that_it_is_stateless_is_taken(self) -> None:
        model = tiny_model()
        batch, bias = PROMPT.repeat(2, 1), Counting()
        cast(Any, bias).stateless = True
        polydraft.generate(
            model, tiny_head(model), batch, max_new_tokens=4, logits_processor=LogitsProcessorList([bias])
        )


def test_what_is_not_shown_to_drafts_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    class Named(Counting):
        """A class of this test's own."""

    model = tiny_model()
    for _ in range(2):
        polydraft.generate(
            model,
            tiny_head(model),
            PROMPT,
            max_new_tokens=6,
            draft_length=3,
            logits_processor=LogitsProcessorList([Named(), own.TopKLogitsWarper(4)]),
        )
    (record,) = [record for record in caplog.records if record.name == "polydraft.decoding"]
    assert record.getMessage().startswith("Named may keep a state of its own, so drafts are made without it")
