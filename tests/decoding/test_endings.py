"""Where a generation ends, what it streams and counts, and what its randomness depends on."""

from __future__ import annotations

import string
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, StoppingCriteria, StoppingCriteriaList, TextStreamer

import polydraft
from polydraft.decoding import DraftedOutput
from polydraft.heads import DraftHead
from tests.decoding.models import known, oracle_of_many, padded
from tests.decoding.oracle import oracle
from tests.tiny import tiny_head, tiny_model, tiny_tokenizer

HORIZON = 4
PROMPT = torch.tensor([[5, 6, 7, 8]])
START = PROMPT.shape[1]


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return tiny_model()


@pytest.fixture(scope="module")
def text(model: PreTrainedModel) -> Tensor:
    """Forty tokens of plain greedy text, prompt first."""
    return plain(model, max_new_tokens=40)


@pytest.fixture
def sure(model: PreTrainedModel, text: Tensor) -> DraftHead:
    """A head whose drafts are always accepted."""
    return oracle(model, text, horizon=HORIZON, pattern=[HORIZON])


def plain(model: PreTrainedModel, **options: Any) -> Tensor:
    out: Tensor = cast(Any, model).generate(PROMPT, do_sample=False, **options)
    return out


def tokens_of(out: DraftedOutput) -> list[int]:
    assert out.sequences is not None
    ids: list[int] = out.sequences[0].tolist()
    return ids


def origins_of(out: DraftedOutput) -> list[int]:
    assert out.origins is not None
    origins: list[int] = out.origins[0].tolist()
    return origins


def check_counts(out: DraftedOutput) -> None:
    """The statistics are those that `origins` tell, and the cache lacks the last token."""
    assert out.statistics is not None and out.sequences is not None
    runs: list[int] = []
    run = 0
    origins = origins_of(out)
    assert origins[0] == 0  # the prefill's, of no step
    for origin in origins[1:]:
        if origin == 0:
            runs.append(run)
            run = 0
        else:
            run += 1
            assert origin == run
    runs += [run] if run else []  # a run that the end has cut
    assert out.statistics.steps == len(runs)
    assert out.statistics.accepted_tokens == sum(runs)
    histogram = out.statistics.acceptance_histogram
    assert histogram == [runs.count(k) for k in range(len(histogram))]
    assert out.cache.get_seq_length() == out.sequences.shape[1] - 1


class TestEndToken:
    @pytest.mark.parametrize("place", range(12))
    def test_nothing_follows_it(
        self, model: PreTrainedModel, text: Tensor, sure: DraftHead, place: int
    ) -> None:
        end = int(text[0, START + place])
        expected = plain(model, max_new_tokens=40, eos_token_id=end)[0].tolist()
        out = polydraft.generate(model, sure, PROMPT, max_new_tokens=40, eos_token_id=end)
        assert tokens_of(out) == expected
        assert tokens_of(out)[-1] == end
        assert end not in tokens_of(out)[START:-1]
        check_counts(out)

    def test_inside_an_accepted_run(self, model: PreTrainedModel, text: Tensor, sure: DraftHead) -> None:
        cut_at = set()
        for place in range(12):
            end = int(text[0, START + place])
            out = polydraft.generate(model, sure, PROMPT, max_new_tokens=40, eos_token_id=end)
            cut_at.add(origins_of(out)[-1])
        assert cut_at >= {1, 2, 3}  # with more accepted drafts behind it

    def test_as_the_first_token(self, model: PreTrainedModel, text: Tensor, sure: DraftHead) -> None:
        out = polydraft.generate(model, sure, PROMPT, max_new_tokens=40, eos_token_id=int(text[0, START]))
        assert tokens_of(out) == text[0, : START + 1].tolist()
        assert origins_of(out) == [0]
        assert out.statistics is not None
        assert out.statistics.steps == out.statistics.drafted_tokens == 0

    def test_any_of_several(self, model: PreTrainedModel, text: Tensor, sure: DraftHead) -> None:
        ends = text[0, START + 7 : START + 9].tolist()
        expected = plain(model, max_new_tokens=40, eos_token_id=ends)
        out = polydraft.generate(model, sure, PROMPT, max_new_tokens=40, eos_token_id=ends)
        assert tokens_of(out) == expected[0].tolist()

    def test_sampled(self, model: PreTrainedModel) -> None:
        head = tiny_head(model, horizon=HORIZON)
        for seed in range(20):
            generator = torch.Generator().manual_seed(seed)
            out = polydraft.generate(
                model,
                head,
                PROMPT,
                do_sample=True,
                temperature=3.0,
                max_new_tokens=30,
                eos_token_id=[1, 2, 3, 4],
                generator=generator,
            )
            new = tokens_of(out)[START:]
            assert len(new) == 30 or new[-1] in (1, 2, 3, 4)
            assert not {1, 2, 3, 4} & set(new[:-1])
            check_counts(out)


class TestLength:
    @pytest.mark.parametrize("count", range(1, 2 * HORIZON + 4))
    def test_is_never_overrun(
        self, model: PreTrainedModel, text: Tensor, sure: DraftHead, count: int
    ) -> None:
        out = polydraft.generate(model, sure, PROMPT, max_new_tokens=count)
        assert tokens_of(out) == text[0, : START + count].tolist()
        check_counts(out)
        by_length = polydraft.generate(model, sure, PROMPT, max_length=START + count)
        assert tokens_of(by_length) == tokens_of(out)

    @pytest.mark.parametrize(
        ("count", "steps", "drafted"), [(1, 0, 0), (2, 1, 0), (4, 1, 2), (5, 1, 3), (6, 1, 4), (7, 2, 4)]
    )
    def test_no_more_is_drafted_than_there_is_room(
        self, model: PreTrainedModel, sure: DraftHead, count: int, steps: int, drafted: int
    ) -> None:
        statistics = polydraft.generate(model, sure, PROMPT, max_new_tokens=count).statistics
        assert statistics is not None
        assert (statistics.steps, statistics.drafted_tokens) == (steps, drafted)
        assert statistics.accepted_tokens == drafted

    @pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6])
    def test_sampled(self, model: PreTrainedModel, count: int) -> None:
        out = polydraft.generate(
            model, tiny_head(model, horizon=HORIZON), PROMPT, max_new_tokens=count, do_sample=True
        )
        assert len(tokens_of(out)) == START + count
        check_counts(out)


class EndsWith(StoppingCriteria):
    """Stops behind certain tokens; has no length limit to look at."""

    def __init__(self, ends: set[int]) -> None:
        self.ends = ends

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        return torch.tensor([int(input_ids[0, -1]) in self.ends])


class TestStoppingCriteria:
    @pytest.mark.parametrize("place", [1, 2, 3, 8])
    def test_of_one_s_own(self, model: PreTrainedModel, text: Tensor, sure: DraftHead, place: int) -> None:
        criteria = StoppingCriteriaList([EndsWith({int(text[0, START + place])})])
        expected = plain(model, max_new_tokens=40, stopping_criteria=criteria)
        out = polydraft.generate(model, sure, PROMPT, max_new_tokens=40, stopping_criteria=criteria)
        assert tokens_of(out) == expected[0].tolist()
        assert len(criteria) == 1  # the caller's own list is left alone
        check_counts(out)

    @pytest.mark.parametrize("place", [2, 3, 4, 9])
    def test_stop_strings_inside_an_accepted_run(self, place: int) -> None:
        tokenizer = tiny_tokenizer()
        model = tiny_model(vocab_size=len(tokenizer))
        readable = set(cast(list[int], tokenizer.convert_tokens_to_ids(list(string.ascii_letters))))
        options: dict[str, Any] = {
            "max_new_tokens": 20,
            "suppress_tokens": [k for k in range(len(tokenizer)) if k not in readable],
        }
        text = plain(model, **options)
        head = oracle(model, text, horizon=HORIZON, pattern=[HORIZON])
        written = tokenizer.decode(text[0, START:])
        options["stop_strings"] = [str(written[place - 1 : place + 1])]
        expected = plain(model, tokenizer=tokenizer, **options)
        out = polydraft.generate(model, head, PROMPT, tokenizer=tokenizer, **options)
        assert tokens_of(out) == expected[0].tolist()
        assert str(tokenizer.decode(tokens_of(out)[START:])).endswith(options["stop_strings"][0])
        assert len(tokens_of(out)) < text.shape[1]
        check_counts(out)


class Listener:
    """A streamer that writes down what it hears."""

    def __init__(self) -> None:
        self.heard: list[list[int]] = []
        self.ends = 0

    def put(self, value: Tensor) -> None:
        assert not self.ends
        self.heard.append(value.flatten().tolist())

    def end(self) -> None:
        self.ends += 1


@pytest.mark.parametrize("do_sample", [False, True])
class TestStreaming:
    def test_the_prompt_then_every_token_once(
        self, model: PreTrainedModel, sure: DraftHead, do_sample: bool
    ) -> None:
        listener = Listener()
        out = polydraft.generate(
            model, sure, PROMPT, streamer=listener, max_new_tokens=17, do_sample=do_sample
        )
        assert listener.heard[0] == PROMPT[0].tolist()
        assert [token for (token,) in listener.heard[1:]] == tokens_of(out)[START:]
        assert listener.ends == 1

    def test_through_the_other_door(self, model: PreTrainedModel, sure: DraftHead, do_sample: bool) -> None:
        listener = Listener()
        ids = cast(Any, model).generate(
            PROMPT,
            custom_generate=polydraft.decoder(sure, streamer=listener),
            max_new_tokens=9,
            do_sample=do_sample,
        )
        assert [token for part in listener.heard for token in part] == ids[0].tolist()
        assert listener.ends == 1

    def test_text_streamer_prints_the_decoded_output(
        self, do_sample: bool, capsys: pytest.CaptureFixture[str]
    ) -> None:
        tokenizer = tiny_tokenizer()
        model = tiny_model(vocab_size=len(tokenizer))
        streamer = TextStreamer(tokenizer, skip_prompt=True)
        out = polydraft.generate(
            model,
            tiny_head(model),
            PROMPT,
            streamer=cast(Any, streamer),
            max_new_tokens=30,
            do_sample=do_sample,
            suppress_tokens=[k for k in range(len(tokenizer)) if not str(tokenizer.decode([k])).isalpha()],
        )
        assert capsys.readouterr().out == f"{tokenizer.decode(tokens_of(out)[START:])}\n"


@pytest.mark.parametrize("do_sample", [False, True])
@pytest.mark.parametrize("features", ["fused", "hidden"])
def test_counts_are_those_of_the_origins(model: PreTrainedModel, features: str, do_sample: bool) -> None:
    head = tiny_head(model, features=features, horizon=HORIZON, draft_vocab_size=20)
    for count in (1, 3, 25):
        out = polydraft.generate(model, head, PROMPT, do_sample=do_sample, max_new_tokens=count)
        check_counts(out)
        assert out.statistics is not None
        assert 0 <= out.statistics.drafting_seconds <= out.statistics.seconds
        drafted = {int(token) for token in head.draft_ids}
        pairs = zip(tokens_of(out)[START:], origins_of(out), strict=True)
        assert all(token in drafted for token, origin in pairs if origin)


SAMPLED: dict[str, Any] = {"do_sample": True, "temperature": 2.0, "max_new_tokens": 24}


class TestRandomness:
    def sampled(self, model: PreTrainedModel, seed: int) -> list[int]:
        generator = torch.Generator().manual_seed(seed)
        head = tiny_head(model)
        return tokens_of(polydraft.generate(model, head, PROMPT, generator=generator, **SAMPLED))

    def test_a_generator_fixes_the_text_and_leaves_the_global_one_alone(self, model: PreTrainedModel) -> None:
        before = torch.random.get_rng_state()
        first = self.sampled(model, 1)
        assert torch.equal(torch.random.get_rng_state(), before)
        torch.manual_seed(99)
        assert self.sampled(model, 1) == first
        assert self.sampled(model, 2) != first

    def test_the_global_seed_fixes_it_otherwise(self, model: PreTrainedModel) -> None:
        head, found = tiny_head(model), []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            found.append(tokens_of(polydraft.generate(model, head, PROMPT, **SAMPLED)))
        assert found[0] == found[1] != found[2]

    def test_greedy_uses_none(self, model: PreTrainedModel, text: Tensor) -> None:
        generator = torch.Generator().manual_seed(1)
        states = generator.get_state(), torch.random.get_rng_state()
        head = tiny_head(model)
        out = polydraft.generate(model, head, PROMPT, generator=generator, max_new_tokens=40)
        assert tokens_of(out) == text[0].tolist()
        assert torch.equal(generator.get_state(), states[0])
        assert torch.equal(torch.random.get_rng_state(), states[1])


class Watch(StoppingCriteria):
    """Stops a row at a token, and notes which scores it was given."""

    def __init__(self, token: int = -1) -> None:
        self._token = token
        self.seen: list[list[Tensor] | None] = []

    def __call__(self, input_ids: Any, scores: Any, **options: Any) -> Any:
        self.seen.append(None if scores is None else list(scores))
        return (input_ids[:, START:] == self._token).any(-1)


@pytest.mark.parametrize("output_scores", [True, False])
def test_criteria_see_the_scores_of_every_token(
    model: PreTrainedModel, sure: DraftHead, output_scores: bool
) -> None:
    found, right = Watch(), Watch()
    options: dict[str, Any] = {"max_new_tokens": 9, "output_scores": output_scores, "repetition_penalty": 1.2}
    polydraft.generate(model, sure, PROMPT, stopping_criteria=StoppingCriteriaList([found]), **options)
    plain(model, return_dict_in_generate=True, stopping_criteria=StoppingCriteriaList([right]), **options)
    assert len(found.seen) == len(right.seen) == 9
    if not output_scores:
        assert found.seen == right.seen == [None] * 9
    for ours, theirs in zip(found.seen, right.seen, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


class EverySeventh(StoppingCriteria):
    """Stops the rows that have said a token of this remainder by 7, behind `start` tokens."""

    def __init__(self, start: int, remainder: int) -> None:
        self._start, self._remainder = start, remainder

    def __call__(self, input_ids: Any, scores: Any, **options: Any) -> Any:
        return (input_ids[:, self._start :] % 7 == self._remainder).any(-1)


class TestABatchWithoutAnEndToken:
    """Plain decoding pads a row that was stopped only where there is an end token; else it writes on."""

    LIMIT = 24

    def texts(self, remainder: int, *, drafted: bool, **options: Any) -> Tensor:
        """Of four rows that a criterion stops at places of their own; new tokens (4, n)."""
        model, prompts, texts = known("llama")
        ids, mask = padded(prompts[:4])
        start = ids.shape[1]
        criteria = StoppingCriteriaList([EverySeventh(start, remainder)])
        given = {"attention_mask": mask, "do_sample": False, "max_new_tokens": self.LIMIT, "pad_token_id": 0}
        given |= {"stopping_criteria": criteria} | options
        if not drafted:
            return cast(Tensor, cast(Any, model).generate(ids, **given))[:, start:]
        out = polydraft.generate(model, oracle_of_many(model, texts[:4]), ids, output_logits=True, **given)
        assert out.sequences is not None and out.origins is not None and out.logits is not None
        new = out.sequences[:, start:]
        assert out.origins.shape == new.shape
        written = out.origins >= 0
        assert torch.stack(out.logits, 1).argmax(-1)[written].equal(new[written])
        return new

    @pytest.mark.parametrize("drafting", ["chain", "tree"])
    def test_is_written_as_plain_decoding_writes_it(self, drafting: str) -> None:
        sizes = set()
        for remainder in range(7):
            right = self.texts(remainder, drafted=False)
            found = self.texts(remainder, drafted=True, drafting=drafting, draft_length=5)
            assert found.tolist() == right.tolist()
            sizes.add(right.shape[1])
        assert len(sizes) > 3 and min(sizes) < self.LIMIT

    def test_with_one_the_rows_that_were_stopped_are_padded(self) -> None:
        padded_rows = 0
        for remainder in range(3):
            right = self.texts(remainder, drafted=False, eos_token_id=62)
            assert self.texts(remainder, drafted=True, eos_token_id=62).tolist() == right.tolist()
            padded_rows += int((right[:, -1] == 0).sum())
        assert padded_rows
