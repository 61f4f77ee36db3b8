"""A batch that texts join and leave: every text is the one it would be alone."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from functools import partial
from typing import Any, cast

import numpy as np
import pytest
import torch
from scipy.stats import chi2
from transformers import LogitsProcessorList, PreTrainedModel

from polydraft.decoding.live import LiveBatch, LiveRow, new_row
from polydraft.decoding.noise import GumbelNoise
from polydraft.decoding.plan import Plan
from polydraft.errors import InputError
from polydraft.heads import DraftHead
from tests.decoding.models import NEW_TOKENS, known, oracle_of_many
from tests.decoding.test_exact_sampling import FALSE_ALARM_RATE, chi_square
from tests.tiny import BLOCK, tiny_head, tiny_model

VOCAB_SIZE, END = 64, 5
PLAN = Plan(draft_length=6, drafting="chain")
TREE = Plan(draft_length=6, drafting="tree")
HEADS: dict[str, dict[str, Any]] = {
    "cp": {"rank": 3, "draft_vocab_size": 40},
    "block": {"features": "block", "block": BLOCK, "layers": [1]},
    "recurrent": {"features": "block", "block": BLOCK, "joint": "recurrent", "rank": 1},
    "sequential": {"joint": "sequential", "rank": 1},
}


def prompts(count: int, *, longest: int = 20) -> list[list[int]]:
    chance = random.Random(1)
    return [[chance.randrange(VOCAB_SIZE) for _ in range(chance.randint(1, longest))] for _ in range(count)]


def row(model: PreTrainedModel, prompt: list[int], **options: Any) -> LiveRow:
    return new_row(prompt, **({"device": model.device, "max_new_tokens": 24, "end_tokens": (END,)} | options))


def come_and_go(batch: LiveBatch, rows: list[LiveRow]) -> list[LiveRow]:
    """Admit `rows` at random moments, one or two at once, until all have ended; in the order of their end."""
    chance, waiting, ended = random.Random(2), list(rows), []
    while waiting or batch.active:
        count = min(batch.free, len(waiting), chance.choice([0, 0, 1, 2]))
        ended += batch.admit(waiting[:count]) if count else []
        waiting = waiting[count:]
        ended += cast(Any, batch.step())
    return ended


def alone(model: PreTrainedModel, prompt: list[int]) -> list[int]:
    """What transformers writes, greedily."""
    ids = torch.tensor([prompt])
    out = cast(Any, model).generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=24,
        eos_token_id=END,
        pad_token_id=0,
    )
    return cast(list[int], out[0, len(prompt) :].tolist())


@pytest.mark.parametrize(
    ("kind", "plan"),
    [("llama", PLAN), ("gemma3", PLAN), ("mistral", PLAN), ("gpt2", PLAN), ("llama", TREE), ("gemma3", TREE)],
    ids=lambda given: given if isinstance(given, str) else given.drafting,
)
@pytest.mark.parametrize("head", HEADS)
def test_greedy_texts_are_those_of_transformers(kind: str, plan: Plan, head: str) -> None:
    model = tiny_model(kind, vocab_size=VOCAB_SIZE)
    batch = LiveBatch(model, tiny_head(model, **HEADS[head]), rows=4, plan=plan)
    rows = [row(model, prompt) for prompt in prompts(12)]
    assert {id(one) for one in come_and_go(batch, rows)} == {id(one) for one in rows}
    for one, prompt in zip(rows, prompts(12), strict=True):
        assert one.generated == alone(model, prompt)
        assert one.ended == (one.generated[-1] == END)


@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_a_head_that_is_often_right_is_followed_in_every_row(kind: str) -> None:
    """Rows that accept different numbers of drafts, and grow differently, beside rows that join."""
    model, begun, texts = known(kind)
    head = oracle_of_many(model, texts, pattern=(3, 1, 0, 2))
    batch = LiveBatch(model, head, rows=3, plan=Plan(draft_length=3, drafting="chain"))
    rows = [row(model, prompt.tolist(), max_new_tokens=NEW_TOKENS, end_tokens=()) for prompt in begun]
    come_and_go(batch, rows)
    for one, prompt, text in zip(rows, begun, texts, strict=True):
        assert one.generated == text[len(prompt) :].tolist()
        assert len(one.statistics.acceptance_histogram) == 4 and min(one.statistics.acceptance_histogram) > 0


def test_compiled_texts_are_those_of_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The programs are traced and run as they are, which takes no C++."""
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    model = tiny_model(vocab_size=VOCAB_SIZE)
    plan = Plan(draft_length=6, drafting="tree", compiled=True)
    rows = [row(model, prompt) for prompt in prompts(8)]
    come_and_go(LiveBatch(model, tiny_head(model, **HEADS["block"]), rows=3, plan=plan), rows)
    assert [one.generated for one in rows] == [alone(model, prompt) for prompt in prompts(8)]


@pytest.mark.parametrize("new", [0, 24])
@pytest.mark.parametrize("chunk", [None, 7])
@pytest.mark.parametrize(
    ("kind", "compiled"), [("llama", False), ("gemma3", False), ("gpt2", False), ("llama", True)]
)
def test_prompts_are_traced_as_they_are_read(
    kind: str, compiled: bool, chunk: int | None, new: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside others that are not; the texts stay what they are."""
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    model = tiny_model(kind, vocab_size=VOCAB_SIZE)
    plan = Plan(draft_length=3, drafting="chain", compiled=compiled)
    batch = LiveBatch(model, tiny_head(model, **HEADS["block"]), rows=3, plan=plan, prefill_chunk_size=chunk)
    asked = [{"trace": 2, "trace_prompt": True, "max_new_tokens": new} if at % 2 else {} for at in range(6)]
    rows = [row(model, prompt, **more) for prompt, more in zip(prompts(6), asked, strict=True)]
    assert {id(one) for one in come_and_go(batch, rows)} == {id(one) for one in rows}
    for one, prompt, more in zip(rows, prompts(6), asked, strict=True):
        assert one.generated == (alone(model, prompt) if more.get("max_new_tokens", 24) else [])
        assert one.finished
        trace = one.prompt_trace
        assert [token.token for token in trace] == (prompt[1:] if more else [])
        if trace:
            with torch.no_grad():
                expected = model(torch.tensor([prompt])).logits[0, :-1].log_softmax(-1)
            own = expected[range(len(trace)), prompt[1:]]
            assert [token.log_prob for token in trace] == pytest.approx(own.tolist(), abs=1e-4)
            likely = [token.top[0][1] for token in trace]
            assert likely == pytest.approx(expected.max(-1).values.tolist(), abs=1e-4)
            assert {(token.kind, token.step, len(token.top)) for token in trace} == {("prompt", 0, 2)}


def test_a_prompt_is_traced_only_with_a_trace() -> None:
    model = tiny_model(vocab_size=VOCAB_SIZE)
    with pytest.raises(InputError, match="give it too"):
        row(model, [1, 2], trace_prompt=True)
    with pytest.raises(InputError, match="max_new_tokens must be 1 or more, got 0"):
        row(model, [1, 2], max_new_tokens=0)
    with pytest.raises(InputError, match="got -1"):
        row(model, [1, 2], max_new_tokens=-1, trace=0, trace_prompt=True)


SETTINGS: list[dict[str, Any]] = [
    {"temperature": 1.0, "seed": 1},
    {"temperature": 0.7, "top_p": 0.9, "seed": 2},
    {"temperature": 1.3, "top_k": 20, "min_p": 0.02, "seed": 3},
    {"temperature": 1.0, "repetition_penalty": 1.3, "seed": 2**63 - 1},
    {"temperature": 1.0, "frequency_penalty": 0.8, "presence_penalty": -0.5, "seed": 5},
    {"temperature": 0.0, "frequency_penalty": 1.5},
    {"temperature": 1.0, "logit_bias": {3: 4.0, 7: -100.0}, "seed": 6},
    {},
]


@pytest.mark.parametrize("plan", [PLAN, TREE], ids=lambda plan: plan.drafting)
@pytest.mark.parametrize("head", ["cp", "block"])
def test_a_sampled_text_follows_from_its_seed_alone(head: str, plan: Plan) -> None:
    """Not from drafts, nor from the others in the batch."""
    model = tiny_model(vocab_size=VOCAB_SIZE)
    asked = [
        (prompt, options) for prompt, options in zip(prompts(16), itertools.cycle(SETTINGS), strict=False)
    ]
    drafts = tiny_head(model, **HEADS[head])
    together = [
        row(model, prompt, drafted=at % 5 > 0, **options) for at, (prompt, options) in enumerate(asked)
    ]
    come_and_go(LiveBatch(model, drafts, rows=6, plan=plan), together)
    lonely = [row(model, prompt, drafted=False, **options) for prompt, options in asked]
    for one in lonely:
        come_and_go(LiveBatch(model, drafts, rows=1, plan=PLAN), [one])
        assert one.statistics.drafted_tokens == 0
    assert [one.generated for one in together] == [one.generated for one in lonely]
    assert sum(one.statistics.accepted_tokens for one in together) > 0


def test_penalties_count_what_was_said_behind_the_prompt() -> None:
    """Against the formula, token by token, with forwards of the model."""
    model = tiny_model(vocab_size=VOCAB_SIZE)
    prompt = [3, 9, 3]
    one = row(model, prompt, frequency_penalty=2.0, presence_penalty=1.0, temperature=0.9, seed=11)
    come_and_go(LiveBatch(model, tiny_head(model), rows=1, plan=PLAN), [one])
    said: list[int] = []
    for token in one.generated:
        with torch.no_grad():
            scores = cast(Any, model)(torch.tensor([[*prompt, *said]])).logits[0, -1].double()
        for other, count in Counter(said).items():
            scores[other] -= 2.0 * count + 1.0
        noise = GumbelNoise(11, prompt=prompt).noise(len(prompt) + len(said), VOCAB_SIZE)
        assert token == int((scores / 0.9 + noise).argmax())
        said.append(token)


@pytest.mark.slow
@pytest.mark.parametrize("head", ["cp", pytest.param("block", marks=pytest.mark.nightly)])
def test_trees_in_a_live_batch_sample_from_the_model(head: str) -> None:
    """Chi-square over all texts of three tokens of a vocabulary of five; false alarms at 1e-4."""
    model = tiny_model(vocab_size=5, initializer_range=0.2)
    options = HEADS[head] | ({"draft_vocab_size": 4} if head == "cp" else {})
    plan = Plan(draft_length=3, drafting="tree")
    batch = LiveBatch(model, tiny_head(model, **options), rows=150, plan=plan)
    rows = [
        new_row([0, 3, 1], device=model.device, max_new_tokens=4, temperature=0.8, seed=seed, trace=0)
        for seed in range(6000)
    ]
    waiting = list(rows)
    while waiting or batch.active:
        batch.admit([waiting.pop() for _ in range(min(batch.free, len(waiting)))])
        batch.step()
    counts = np.zeros((5, 5, 5))
    np.add.at(counts, tuple(np.array([one.generated[:3] for one in rows]).T), 1)
    every = torch.tensor(list(itertools.product(range(5), repeat=3)))
    with torch.no_grad():
        texts = torch.cat([torch.tensor([[0, 3, 1]]).expand(len(every), -1), every], dim=1)
        logits = cast(Any, model)(texts).logits[:, 2:-1].double() / 0.8
    log_probs = logits.log_softmax(-1).gather(-1, every[..., None]).sum((1, 2))
    assert chi2.sf(*chi_square(counts.ravel(), log_probs.exp().numpy())) > FALSE_ALARM_RATE
    for position in (1, 2):
        assert sum(refused_at(one, position) for one in rows) > 200


def refused_at(one: LiveRow, position: int) -> bool:
    """Whether some cycle kept the drafts before `position` and none of those that stood there."""
    steps = [[token for token in one.trace if token.step == step] for step in range(1, 4)]
    return any(len(step) == position and step[-1].kind == "correction" for step in steps)


class TestComingAndGoing:
    def make(self, **options: Any) -> tuple[PreTrainedModel, DraftHead, LiveBatch]:
        model = tiny_model(vocab_size=VOCAB_SIZE)
        head = tiny_head(model)
        return model, head, LiveBatch(model, head, rows=3, plan=PLAN, **options)

    def test_a_dropped_text_makes_room_and_changes_no_other(self) -> None:
        model, _, batch = self.make()
        first, second, third = (row(model, prompt, end_tokens=()) for prompt in prompts(3))
        batch.admit([first, second, third])
        assert batch.free == 0
        batch.step()
        batch.drop(second)
        batch.drop(second)
        assert batch.free == 1 and second not in batch.active and not second.finished
        late = row(model, prompts(4)[3], end_tokens=())
        batch.admit([late])
        while batch.active:
            batch.step()
        expected = [row(model, prompt, end_tokens=(), drafted=False) for prompt in prompts(4)]
        for one in expected:
            come_and_go(LiveBatch(model, tiny_head(model), rows=1, plan=PLAN), [one])
        assert [one.generated for one in (first, third, late)] == [expected[at].generated for at in (0, 2, 3)]
        assert second.generated == expected[1].generated[: len(second.generated)]

    def test_a_text_of_one_token_ends_when_admitted(self) -> None:
        model, _, batch = self.make()
        one = row(model, [1, 2], max_new_tokens=1)
        assert batch.admit([one]) == [one]
        assert one.finished and not batch.active and batch.free == 3
        assert batch.step() == []

    def test_nothing_may_be_admitted(self) -> None:
        model, _, batch = self.make()
        assert batch.admit([]) == []
        batch.admit([row(model, [1, 2], end_tokens=())])
        assert batch.admit([]) == []
        assert batch.free == 2

    def test_refuses_more_than_there_is_room_for(self) -> None:
        model, _, batch = self.make()
        with pytest.raises(InputError, match="4 texts for 3 free rows"):
            batch.admit([row(model, [1]) for _ in range(4)])
        assert not batch.active

    def test_refuses_a_text_that_outgrows_the_model(self) -> None:
        model, _, batch = self.make()
        with pytest.raises(InputError, match="10 tokens and 503 new ones are more than the 512"):
            batch.admit([row(model, [1] * 10, max_new_tokens=503)])
        assert not batch.active

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"prompt": []}, "no tokens"),
            ({"max_new_tokens": 0}, "1 or more"),
            ({"temperature": -0.1}, "0 .greedy. or more"),
            ({"temperature": float("nan")}, "0 .greedy. or more"),
            ({"temperature": 1.0, "seed": 2**63}, "seed must be"),
        ],
    )
    def test_refuses_numbers_out_of_their_range(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(InputError, match=message):
            new_row(**({"prompt": [1], "device": torch.device("cpu"), "max_new_tokens": 4} | options))

    def test_refuses_what_it_cannot_couple(self) -> None:
        model = tiny_model(vocab_size=VOCAB_SIZE)
        with pytest.raises(InputError, match="couples its draws"):
            LiveBatch(model, tiny_head(model), rows=2, plan=Plan(verification="block", drafting="chain"))
        with pytest.raises(InputError, match="at least one row"):
            LiveBatch(model, tiny_head(model), rows=0)

    def test_processors_of_one_row_are_in_the_order_of_transformers(self) -> None:
        model = tiny_model(vocab_size=VOCAB_SIZE)
        one = row(model, [1], temperature=0.5, top_k=3, top_p=0.9, min_p=0.1, repetition_penalty=1.1)
        prepared = cast(Any, model)._get_logits_processor(
            generation_config=_config(temperature=0.5, top_k=3, top_p=0.9, min_p=0.1, repetition_penalty=1.1),
            input_ids_seq_length=1,
            encoder_input_ids=torch.tensor([[1]]),
            prefix_allowed_tokens_fn=None,
            logits_processor=LogitsProcessorList(),
            device="cpu",
            model_kwargs={},
        )
        own = [type(processor) for processor in cast(Any, one.processors)]
        assert own == [*(type(processor) for processor in prepared), GumbelNoise]


def _config(**options: Any) -> Any:
    from transformers import GenerationConfig

    return GenerationConfig(do_sample=True, **options)
