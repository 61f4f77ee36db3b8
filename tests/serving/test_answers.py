"""What is answered, asked with the official client: the model's own text, whole or in pieces."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import openai
import pytest
import torch

from tests.serving.server import (
    LENGTH,
    NAME,
    NEW,
    PROMPTS,
    Running,
    chat_prompt,
    encode,
    plain_text,
    plain_tokens,
    running,
    tiny,
    tiny_served,
)

SAMPLED = {"temperature": 1.0, "seed": 5, "max_tokens": 12}
ASK: list[Any] = [{"role": "user", "content": "hi"}]


def complete(client: openai.OpenAI, prompt: Any, **options: Any) -> Any:
    given = {"model": NAME, "temperature": 0, "max_tokens": NEW} | options
    return client.completions.create(prompt=prompt, **given)


def chat(client: openai.OpenAI, **options: Any) -> Any:
    given = {"model": NAME, "messages": ASK, "temperature": 0, "max_tokens": NEW} | options
    return client.chat.completions.create(**given)


def joined(chunks: Iterable[Any]) -> dict[int, str]:
    """The texts of a stream, by choice; every one must have ended once."""
    texts: dict[int, str] = {}
    ended: list[int] = []
    for chunk in chunks:
        for choice in chunk.choices:
            added = choice.delta.content if hasattr(choice, "delta") else choice.text
            texts[choice.index] = texts.get(choice.index, "") + (added or "")
            assert choice.index not in ended
            ended += [choice.index] * (choice.finish_reason is not None)
    assert sorted(ended) == sorted(texts)
    return texts


# -- greedy -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_completion_is_what_generate_says(client: openai.OpenAI, prompt: str) -> None:
    answer = complete(client, prompt)
    said = plain_tokens(encode(prompt), new=NEW)
    assert answer.choices[0].text == plain_text(prompt, new=NEW)
    assert answer.choices[0].finish_reason == ("stop" if said[-1] == 2 else "length")
    assert answer.usage.prompt_tokens == len(encode(prompt))
    assert answer.usage.completion_tokens == len(said)


def test_a_chat_goes_through_the_template(client: openai.OpenAI) -> None:
    answer = chat(client)
    assert answer.choices[0].message.content == plain_text(chat_prompt("hi"), new=NEW)
    assert answer.choices[0].message.role == "assistant"
    parts: Any = [{"role": "user", "content": [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]}]
    assert chat(client, messages=parts).choices[0].message.content == plain_text(chat_prompt("h\ni"), new=NEW)
    developer: Any = [{"role": "developer", "content": "x"}, *ASK]
    system: Any = [{"role": "system", "content": "x"}, *ASK]
    assert chat(client, messages=developer).choices == chat(client, messages=system).choices


def test_prompts_in_all_forms(client: openai.OpenAI) -> None:
    texts = [plain_text(prompt, new=NEW) for prompt in PROMPTS]
    ids = [encode(prompt) for prompt in PROMPTS]
    for prompt in (list(PROMPTS), ids):
        answer = complete(client, prompt)
        assert [choice.text for choice in answer.choices] == texts
        assert [choice.index for choice in answer.choices] == list(range(len(PROMPTS)))
    assert complete(client, ids[0]).choices[0].text == texts[0]
    streamed = joined(complete(client, list(PROMPTS), stream=True))
    assert [streamed[index] for index in range(len(PROMPTS))] == texts


def test_drafts_are_kept_and_counted(client: openai.OpenAI, server: Running) -> None:
    names = ("num_drafts", "num_draft_tokens", "num_accepted_tokens", "num_accepted_tokens_per_pos")

    def counted() -> list[float]:
        return [server.metric(f"spec_decode_{name}_total") for name in names]

    before = counted()
    usage = complete(client, "hello").usage
    figures = usage.polydraft
    drafts, drafted, kept, by_position = (now - then for now, then in zip(counted(), before, strict=True))
    assert kept == by_position == figures["accepted_tokens"] > 0
    assert drafted == figures["drafted_tokens"]
    assert drafts <= figures["steps"] == sum(figures["acceptance_histogram"])
    assert usage.completion_tokens == 1 + figures["steps"] + figures["accepted_tokens"]
    details = usage.completion_tokens_details
    assert details.accepted_prediction_tokens == kept
    assert details.rejected_prediction_tokens == drafted - kept
    assert figures["mean_acceptance_length"] == pytest.approx(1 + kept / figures["steps"])
    assert figures["tokens_per_second"] == pytest.approx(usage.completion_tokens / figures["seconds"])


def test_drafting_can_be_left_out(client: openai.OpenAI) -> None:
    plain = complete(client, "hello", extra_body={"polydraft": {"drafted": False}})
    assert plain.usage.polydraft["drafted_tokens"] == 0
    assert plain.choices[0].text == complete(client, "hello").choices[0].text


def test_max_tokens(client: openai.OpenAI) -> None:
    for count in (1, 2, 7):
        assert complete(client, "hello", max_tokens=count).usage.completion_tokens == count
    assert complete(client, "hello", max_tokens=openai.omit).usage.completion_tokens == 16
    newer = chat(client, max_tokens=openai.omit, max_completion_tokens=3)
    assert newer.usage.completion_tokens == 3
    without = chat(client, max_tokens=openai.omit)
    prompt = len(encode(chat_prompt("hi")))
    assert without.choices[0].finish_reason == "stop" or without.usage.total_tokens == LENGTH
    assert without.usage.prompt_tokens == prompt


def test_end_tokens_end_unless_ignored(client: openai.OpenAI) -> None:
    bias = {"2": 100}
    ended = complete(client, "hello", logit_bias=bias)
    assert (ended.choices[0].text, ended.choices[0].finish_reason) == ("", "stop")
    assert ended.usage.completion_tokens == 1
    ignored = complete(client, "hello", logit_bias=bias, max_tokens=5, extra_body={"ignore_eos": True})
    assert (ignored.choices[0].text, ignored.choices[0].finish_reason) == ("", "length")
    assert ignored.usage.completion_tokens == 5


@pytest.mark.parametrize("drafting", ["tree", "chain"])
def test_other_ways_to_draft_say_the_same(drafting: str) -> None:
    what = tiny_served(drafting=drafting, prompt_lookup_num_tokens=3)
    with running(what) as server:
        answer = complete(server.client(), list(PROMPTS[:3]))
        assert [choice.text for choice in answer.choices] == [plain_text(one, new=NEW) for one in PROMPTS[:3]]
        assert answer.usage.polydraft["accepted_tokens"] > 0


# -- streams ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, SAMPLED | {"n": 3}])
def test_a_stream_joins_to_the_whole(client: openai.OpenAI, options: dict[str, Any]) -> None:
    whole = chat(client, **options)
    streamed = joined(chat(client, stream=True, **options))
    assert [streamed[choice.index] for choice in whole.choices] == [
        choice.message.content for choice in whole.choices
    ]
    texts = [choice.text for choice in complete(client, "hello", **options).choices]
    again = joined(complete(client, "hello", stream=True, **options))
    assert [again[index] for index in range(len(texts))] == texts


def test_a_stream_has_a_role_first_and_its_usage_last(client: openai.OpenAI) -> None:
    chunks = list(chat(client, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert {chunk.id for chunk in chunks} == {chunks[0].id}
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == chat(client).usage.completion_tokens
    assert all(chunk.usage is None for chunk in chat(client, stream=True))


def test_a_streamed_character_is_never_broken(client: openai.OpenAI) -> None:
    biases = {str(token): 100 for token in encode("😀")}  # four tokens, over and over
    options = {"logit_bias": biases, "max_tokens": 64, "temperature": 1.0, "seed": 3}
    whole = complete(client, "hello", **options).choices[0].text
    chunks = [one.choices[0].text for one in complete(client, "hello", stream=True, **options)]
    assert "".join(chunks) == whole


# -- stop -------------------------------------------------------------------------------------------


def test_stop_strings_end_the_text_before_them(client: openai.OpenAI) -> None:
    text = plain_text("hello", new=NEW)
    for start, length in ((3, 1), (8, 2), (12, 4)):
        stop = text[start : start + length]
        expected = text[: text.index(stop)]
        answer = complete(client, "hello", stop=stop)
        assert (answer.choices[0].text, answer.choices[0].finish_reason) == (expected, "stop")
        assert answer.usage.completion_tokens < NEW
        assert joined(complete(client, "hello", stop=[stop, "never"], stream=True)) == {0: expected}
    partly = text[-2:] + "never"
    assert complete(client, "hello", stop=partly).choices[0].text == text
    assert joined(complete(client, "hello", stop=partly, stream=True)) == {0: text}


# -- sampling ---------------------------------------------------------------------------------------


def test_a_seed_decides_the_text_whoever_else_is_there(client: openai.OpenAI) -> None:
    alone = [choice.text for choice in complete(client, "hello", n=3, **SAMPLED).choices]
    assert len(set(alone)) == 3
    others = [complete(client, prompt, stream=True, **SAMPLED) for prompt in PROMPTS[1:4]]
    crowd = [choice.text for choice in complete(client, "hello", n=3, **SAMPLED).choices]
    for other in others:
        joined(other)
    assert crowd == alone
    plain = complete(client, "hello", n=3, **SAMPLED, extra_body={"polydraft": {"drafted": False}})
    assert [choice.text for choice in plain.choices] == alone
    for seed in (-1, 4, 6):
        assert complete(client, "hello", **SAMPLED | {"seed": seed}).choices[0].text not in alone


def test_choices_of_a_seed_do_not_depend_on_their_number(client: openai.OpenAI) -> None:
    """A prompt that stands twice in a request has more choices."""
    texts = [choice.text for choice in complete(client, "hello", n=4, **SAMPLED).choices]
    assert complete(client, "hello", **SAMPLED).choices[0].text == texts[0]
    both = complete(client, ["hello", "a", "hello"], n=2, **SAMPLED).choices
    assert [choice.text for choice in both[:2] + both[4:]] == texts


def test_without_a_seed_texts_differ(client: openai.OpenAI) -> None:
    options = {"temperature": 1.0, "max_tokens": 12}
    assert complete(client, "hello", **options).choices != complete(client, "hello", **options).choices


@pytest.mark.parametrize("name", ["top_k", "top_p", "min_p"])
def test_narrow_sampling_is_greedy(client: openai.OpenAI, name: str) -> None:
    narrow = {"top_k": 1, "top_p": 1e-6, "min_p": 1.0}[name]
    answer = complete(client, "hello", **SAMPLED, extra_body={name: narrow})
    assert answer.choices[0].text == plain_text("hello", new=12)


def test_penalties_are_those_of_the_api(client: openai.OpenAI) -> None:
    """Greedily, by hand: logits - frequency * count - presence * (count > 0) + bias over what was said."""
    model, tokenizer = tiny()
    ids, said = encode("hello"), []
    for _ in range(16):
        with torch.no_grad():
            row = model(input_ids=torch.tensor([ids + said])).logits[0, -1]
        counts = torch.bincount(torch.tensor(said, dtype=torch.long), minlength=len(row))
        row = row - 1.5 * counts - 0.5 * (counts > 0)
        row[80] += 3
        said.append(int(row.argmax()))
    options = {"frequency_penalty": 1.5, "presence_penalty": 0.5, "logit_bias": {"80": 3}, "max_tokens": 16}
    answer = complete(client, "hello", **options)
    assert answer.choices[0].text == tokenizer.decode(said, skip_special_tokens=True)
    assert answer.choices[0].text != plain_text("hello", new=16)


# -- log probabilities and traces -------------------------------------------------------------------


def rows_of(prompt: str, *, new: int) -> tuple[list[int], torch.Tensor]:
    """The greedy answer's tokens, and the model's log probabilities (new, V) for each, by one forward."""
    model, _ = tiny()
    ids, said = encode(prompt), plain_tokens(encode(prompt), new=new)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids + said])).logits[0]
    return said, logits[len(ids) - 1 : -1].log_softmax(-1)


def test_logprobs_of_a_chat(client: openai.OpenAI) -> None:
    _, tokenizer = tiny()
    said, rows = rows_of(chat_prompt("hi"), new=12)
    found = chat(client, max_tokens=12, logprobs=True, top_logprobs=3).choices[0].logprobs.content
    assert [entry.logprob for entry in found] == pytest.approx(
        rows[range(len(said)), said].tolist(), abs=1e-4
    )
    assert b"".join(bytes(entry.bytes) for entry in found).decode("utf-8", "replace") == plain_text(
        chat_prompt("hi"), new=12
    )
    values, likely = rows.topk(3)
    for entry, best, ids in zip(found, values.tolist(), likely.tolist(), strict=True):
        assert [top.logprob for top in entry.top_logprobs] == pytest.approx(best, abs=1e-4)
        for top, one in zip(entry.top_logprobs, ids, strict=True):
            assert bytes(top.bytes).decode("utf-8", "replace") == tokenizer.decode([one])
            assert top.token == tokenizer.decode([one]) or top.token == f"bytes:\\x{top.bytes[0]:02x}"
    streamed = chat(client, max_tokens=12, logprobs=True, top_logprobs=3, stream=True)
    parts = [chunk.choices[0].logprobs for chunk in streamed]
    pieces = [entry for part in parts if part is not None for entry in part.content]
    assert [(one.token, one.bytes) for one in pieces] == [(one.token, one.bytes) for one in found]
    assert [one.logprob for one in pieces] == pytest.approx([one.logprob for one in found], abs=1e-4)
    assert chat(client, max_tokens=2, logprobs=True).choices[0].logprobs.content[0].top_logprobs == []
    assert chat(client, max_tokens=2).choices[0].logprobs is None


def test_logprobs_of_a_completion(client: openai.OpenAI) -> None:
    said, rows = rows_of("a", new=12)
    choice = complete(client, "a", max_tokens=12, logprobs=2).choices[0]
    found = choice.logprobs
    assert found.token_logprobs == pytest.approx(rows[range(len(said)), said].tolist(), abs=1e-4)
    assert max(found.top_logprobs[0].values()) == pytest.approx(float(rows[0].max()), abs=1e-4)
    assert all(0 <= offset <= len(choice.text) for offset in found.text_offset)
    assert found.text_offset == sorted(found.text_offset)
    assert len(found.tokens) == len(found.top_logprobs) == len(said)
    assert complete(client, "a", max_tokens=2, logprobs=0).choices[0].logprobs.token_logprobs[0] < 0


# -- prompts that are told back --------------------------------------------------------------------


def read_rows(ids: list[int]) -> tuple[list[float], list[float], list[bool]]:
    """By one plain forward: of each token but the first its likelihood, the largest, whether it is that."""
    model, _ = tiny()
    with torch.no_grad():
        rows = model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
    after = torch.tensor(ids[1:])
    own = rows.gather(-1, after[:, None])[:, 0]
    return own.tolist(), rows.max(-1).values.tolist(), (rows.argmax(-1) == after).tolist()


LONG = "A long prompt that is read in pieces. Über 😀"


@pytest.mark.parametrize("new", [0, 1, 6])
@pytest.mark.parametrize("prompt", ["a", "hello", LONG])
def test_logprobs_of_an_echoed_prompt(client: openai.OpenAI, prompt: str, new: int) -> None:
    ids = encode(prompt)
    choice = complete(client, prompt, max_tokens=new, echo=True, logprobs=1).choices[0]
    said = complete(client, prompt, max_tokens=new, logprobs=1).choices[0] if new else None
    found = choice.logprobs
    own, largest, _ = read_rows(ids)
    assert choice.text == prompt + (said.text if said else "")
    assert choice.finish_reason == "length"
    assert found.tokens[: len(ids)] == [tiny()[1].decode([one]) for one in ids] or not prompt.isascii()
    assert found.token_logprobs[0] is None and found.top_logprobs[0] is None
    assert found.token_logprobs[1 : len(ids)] == pytest.approx(own, abs=1e-4)
    assert [max(one.values()) for one in found.top_logprobs[1 : len(ids)]] == pytest.approx(largest, abs=1e-4)
    assert len(found.tokens) == len(ids) + new
    assert found.text_offset == sorted(found.text_offset)
    assert found.text_offset[0] == 0
    if said:
        assert found.token_logprobs[len(ids) :] == pytest.approx(said.logprobs.token_logprobs, abs=1e-4)
        assert found.text_offset[len(ids) :] == [len(prompt) + one for one in said.logprobs.text_offset]


def test_the_request_of_an_evaluation(client: openai.OpenAI) -> None:
    """Contexts and continuations as token ids, one token asked for and dropped, as lm-eval scores them."""
    texts = [encode(prompt) for prompt in ("hello there", "def f(x): return", LONG)]
    texts.append([*encode("hello"), *plain_tokens(encode("hello"), new=5)])
    answer = complete(client, texts, max_tokens=1, echo=True, logprobs=1, seed=1234)
    assert answer.usage.prompt_tokens == sum(map(len, texts))
    for ids, choice in zip(texts, sorted(answer.choices, key=lambda one: one.index), strict=True):
        start = len(ids) - 5
        own, _, likeliest = read_rows(ids)
        scores = choice.logprobs.token_logprobs[start:-1]
        assert sum(scores) == pytest.approx(sum(own[start - 1 :]), abs=1e-3)
        tops = choice.logprobs.top_logprobs[start:-1]
        greedy = all(max(top.values()) == score for score, top in zip(scores, tops, strict=True))
        assert greedy == all(likeliest[start - 1 :])
    assert greedy, "the last text is the model's own"


def test_an_echo_alone(client: openai.OpenAI) -> None:
    ids = encode("<bos>user: hi<eos>")
    assert complete(client, "hello", max_tokens=0, echo=True).choices[0].text == "hello"
    choice = complete(client, ids, max_tokens=3, echo=True, n=2).choices[1]
    assert choice.text == "<bos>user: hi<eos>" + complete(client, ids, max_tokens=3).choices[0].text
    assert choice.logprobs is None
    assert complete(client, "hello", max_tokens=0, echo=True).usage.completion_tokens == 0


@pytest.mark.parametrize("new", [0, 3])
def test_an_echo_streams_first(client: openai.OpenAI, new: int) -> None:
    options = {"max_tokens": new, "echo": True, "logprobs": 0}
    chunks = list(complete(client, LONG, stream=True, **options))
    whole = complete(client, LONG, **options).choices[0]
    assert joined(chunks) == {0: whole.text}
    parts = [one for chunk in chunks for choice in chunk.choices for one in choice.logprobs.token_logprobs]
    assert parts[1:] == pytest.approx(whole.logprobs.token_logprobs[1:], abs=1e-4)


def test_nothing_is_read_or_written_for_nothing(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="max_tokens 0 needs echo: true"):
        complete(client, "a", max_tokens=0)
    with pytest.raises(openai.BadRequestError, match="max_tokens"):
        chat(client, max_tokens=0)


def test_an_assistant_may_have_said_nothing(client: openai.OpenAI) -> None:
    """What a client sends back after a call of a tool, or a refusal."""

    def after(said: Any) -> str:
        messages = [*ASK, {"role": "assistant", **said}, {"role": "user", "content": "more"}]
        return str(chat(client, messages=messages).choices[0].message.content)

    assert after({"content": None}) == after({}) == after({"content": ""})
    for role in ("user", "system"):
        with pytest.raises(openai.BadRequestError, match="content: Input should be a valid string"):
            chat(client, messages=[{"role": role, "content": None}])


def test_a_trace_says_how_each_token_came_about(client: openai.OpenAI) -> None:
    extra = {"polydraft": {"trace": 3}}
    answer = complete(client, "hello", extra_body=extra)
    said, rows = rows_of("hello", new=NEW)
    tokens = answer.choices[0].polydraft["tokens"]
    assert [token["id"] for token in tokens] == said
    assert "".join(token["text"] for token in tokens) == answer.choices[0].text
    kinds = [token["kind"] for token in tokens]
    figures = answer.usage.polydraft
    assert kinds[0] == "first"
    assert kinds.count("drafted") == figures["accepted_tokens"]
    assert max(token["step"] for token in tokens) == figures["steps"]
    for token, row in zip(tokens, rows, strict=True):
        assert (token["origin"] > 0) == (token["kind"] == "drafted")
        assert [top["logprob"] for top in token["top"]] == pytest.approx(
            row.topk(3).values.tolist(), abs=1e-4
        )
        assert token["logprob"] == pytest.approx(float(row[token["id"]]), abs=1e-4)
    drafted = next(token for token in tokens if token["kind"] == "drafted")
    others = 258 * math.exp(-50)  # the head is sure
    assert drafted["draft_logprob"] == pytest.approx(-math.log1p(others), abs=1e-3)
    *chunks, last = complete(client, "hello", extra_body=extra, stream=True)
    streamed = [token for chunk in chunks for token in chunk.choices[0].polydraft["tokens"]]
    assert [token["id"] for token in streamed] == said
    assert last.usage.completion_tokens == len(said)


# -- models, health, metrics ------------------------------------------------------------------------


def test_models(client: openai.OpenAI) -> None:
    (model,) = client.models.list().data
    assert model.id == NAME
    assert model.polydraft == {"head": {"joint": "cp", "rank": 1, "horizon": 3}, "max_model_len": LENGTH}
    assert client.models.retrieve(NAME) == model
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_metrics_count_requests(client: openai.OpenAI, server: Running) -> None:
    names = ("prompt_tokens_total", "generation_tokens_total", "e2e_request_latency_seconds_count",
             "time_to_first_token_seconds_count", "request_queue_time_seconds_count",
             "request_generation_tokens_sum", "request_prefill_time_seconds_count",
             "request_decode_time_seconds_count", "inter_token_latency_seconds_count",
             "request_queue_time_seconds_sum",
             "request_prefill_time_seconds_sum", "request_decode_time_seconds_sum",
             "e2e_request_latency_seconds_sum")  # fmt: skip

    def counted() -> list[float]:
        return [server.metric(name) for name in names]

    before, success = counted(), server.metric("request_success_total", finished_reason="length")
    usage = complete(client, "hello", n=2, max_tokens=5).usage
    *grown, queued, reading, saying, whole = (now - then for now, then in zip(counted(), before, strict=True))
    assert usage.completion_tokens == 10
    steps = usage.polydraft["steps"]  # a text grows once at its prompt, then at each step
    assert grown == [len(encode("hello")), 10, 1, 1, 1, 10, 1, 1, steps]
    assert server.metric("request_success_total", finished_reason="length") == success + 2
    assert queued + reading + saying == pytest.approx(whole)
    assert server.metric("num_requests_running") == server.metric("num_requests_waiting") == 0
