"""Prompts, runs, figures and pictures, against values worked out by hand."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from polydraft.bench import benchmark as benchmark_module
from polydraft.bench import runs as runs_module
from polydraft.bench.benchmark import Comparison, benchmark
from polydraft.bench.plots import DRAFTED, EAGER, PLAIN, plot_report, speeds
from polydraft.bench.prompts import Prompt, prompts_path, read_prompts
from polydraft.bench.report import check_writable, figures, report, write_report
from polydraft.bench.runs import Run, Sampling, pieces, run_drafted, run_plain, run_undrafted
from polydraft.decoding.statistics import DecodingStatistics
from polydraft.errors import InputError
from polydraft.heads import DraftHead
from polydraft.training.curves import can_plot
from tests.tiny import tiny_head, tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def tiny() -> tuple[PreTrainedModel, DraftHead, PreTrainedTokenizerFast]:
    """A random float32 model that never ends, a random head, a tokenizer."""
    tokenizer = tiny_tokenizer()
    model = tiny_model(vocab_size=len(tokenizer))
    return model, tiny_head(model, tokenizer=tokenizer), tokenizer


def comparison(
    *,
    plain: tuple[list[int], float],
    drafted: tuple[list[int], float],
    accepted: list[int],
    kind: str | None = None,
    drafting: float = 0.0,
    eager: tuple[list[int], float] | None = None,
    cpu_seconds: tuple[float, float] | None = None,
) -> Comparison:
    """A comparison from (tokens, seconds) of its runs and the drafts accepted in each step, of two each.

    `cpu_seconds`: of the plain and the drafted run.
    """
    cpu = cpu_seconds or (None, None)
    statistics = DecodingStatistics(seconds=drafted[1], drafting_seconds=drafting)
    for count in accepted:
        statistics.count(drafted=2, accepted=count)
    return Comparison(
        prompt=Prompt(content={"prompt": "x"}, kind=kind),
        plain=Run(tokens=plain[0], seconds=plain[1], cpu_seconds=cpu[0]),
        drafted=Run(
            tokens=drafted[0], seconds=drafted[1], cpu_seconds=cpu[1], origins=[0], statistics=statistics
        ),
        eager=None if eager is None else Run(tokens=eager[0], seconds=eager[1]),
    )


RESULTS = [
    # tokens/s: plain 2, drafted 4
    comparison(plain=([1, 2, 3, 4], 2.0), drafted=([1, 2, 3, 4], 1.0), accepted=[2], kind="a", drafting=0.1),
    # plain 1, drafted 1
    comparison(plain=([1, 2], 2.0), drafted=([1, 5], 2.0), accepted=[0], kind="a", drafting=0.1),
    # plain 4, drafted 12
    comparison(plain=([7] * 8, 2.0), drafted=([7] * 12, 1.0), accepted=[2, 1, 2], kind="b", drafting=0.4),
]


def test_figures_by_hand() -> None:
    found = figures(RESULTS, greedy=True)
    assert found["prompts"] == 3
    assert found["plain_tokens_per_second"] == 2.0  # the median of 2, 1, 4
    assert found["drafted_tokens_per_second"] == 4.0  # of 4, 1, 12
    assert found["ratio"] == 2.0  # of 2, 1, 3
    assert found["cpu_ratio"] is found["cpu_ratio_per_prompt"] is found["eager"] is None
    assert found["ratio_per_prompt"] == {"min": 1.0, "q1": 1.5, "median": 2.0, "q3": 2.5, "max": 3.0}
    assert found["plain_tokens"] == 14
    assert found["drafted_run_tokens"] == 18
    assert found["steps"] == 5
    assert found["drafted_tokens"] == 10
    assert found["accepted_tokens"] == 7
    assert found["mean_acceptance_length"] == pytest.approx(1 + 7 / 5)
    assert found["draft_acceptance_rate"] == pytest.approx(0.7)
    assert found["acceptance_histogram"] == [1, 1, 3]
    assert found["acceptance_per_position"] == pytest.approx([4 / 5, 3 / 5])
    assert found["drafting_share"] == pytest.approx(0.6 / 4.0)
    assert found["identical"] is False
    assert found["identical_count"] == 1


def test_the_ratio_is_that_of_prompts_not_of_medians() -> None:
    """Kinds of different speeds: 10 and 9 tokens/s, 1 and 2, 1 and 2; the medians would say 2 to 1."""
    mixed = [
        comparison(plain=([0] * 10, 1.0), drafted=([0] * 9, 1.0), accepted=[0]),
        comparison(plain=([0] * 9, 1.0), drafted=([0] * 8, 1.0), accepted=[0]),
        comparison(plain=([0] * 5, 1.0), drafted=([0] * 10, 1.0), accepted=[1]),
    ]
    found = figures(mixed, greedy=True)
    assert (found["plain_tokens_per_second"], found["drafted_tokens_per_second"]) == (9.0, 9.0)
    assert found["ratio"] == 0.9


def test_ratios_by_cpu_time() -> None:
    """4 tokens both ways: 2 and 1 seconds of wall clock, 1.5 and 1 of CPU time."""
    known = comparison(plain=([1] * 4, 2.0), drafted=([1] * 4, 1.0), accepted=[2], cpu_seconds=(1.5, 1.0))
    found = figures([known], greedy=True)
    assert (found["ratio"], found["cpu_ratio"]) == (2.0, 1.5)
    assert found["cpu_ratio_per_prompt"]["q3"] == 1.5
    assert figures([known, RESULTS[0]], greedy=True)["cpu_ratio"] is None


def test_compiled_runs_are_compared_with_each_other_and_with_eager_ones() -> None:
    """Tokens/s: 1 and 2 not compiled; 2 and 3 compiled; 4 and 3 compiled and drafted."""
    results = [
        comparison(plain=([1, 2], 1.0), drafted=([1, 2, 3, 4], 1.0), accepted=[2], eager=([1, 2, 3, 4], 4.0)),
        comparison(plain=([1, 2, 3], 1.0), drafted=([1, 2, 3], 1.0), accepted=[1], eager=([1, 5], 1.0)),
    ]
    found = figures(results, greedy=True)
    assert found["ratio"] == 1.5  # of 2 and 1
    assert (found["plain_tokens_per_second"], found["identical_count"]) == (2.5, 1)
    eager = found["eager"]
    assert (eager["tokens_per_second"], eager["tokens"], eager["identical_count"]) == (1.5, 6, 1)
    assert eager["plain"]["ratio"] == 1.75  # of 2 and 1.5
    assert eager["drafted"]["ratio"] == 2.75  # of 4 and 1.5
    assert eager["drafted"]["cpu_ratio"] is None
    assert figures(results, greedy=False)["eager"]["identical_count"] is None


def test_identity_is_claimed_for_greedy_only() -> None:
    assert figures(RESULTS[:1], greedy=True)["identical"] is True
    sampled = figures(RESULTS[:1], greedy=False)
    assert sampled["identical"] is None
    assert sampled["identical_count"] is None


def test_first_difference() -> None:
    assert [result.first_difference for result in RESULTS] == [None, 1, 8]


def test_report_groups_by_kind_and_says_how_it_was_made(tmp_path: Path) -> None:
    sampling = Sampling(max_new_tokens=12, seed=5)
    content = report(
        RESULTS, sampling=sampling, model="m", head="h", dtype=torch.bfloat16, command="polydraft bench"
    )
    assert list(content["kinds"]) == ["a", "b"]
    assert content["kinds"]["a"] == figures(RESULTS[:2], greedy=True)
    assert content["kinds"]["a"]["ratio"] == 1.5  # of 2 and 1
    assert content["all"] == figures(RESULTS, greedy=True)
    expected = {"model": "m", "head": "h", "dtype": "bfloat16", "max_new_tokens": 12, "temperature": 0.0}
    assert content.items() >= (expected | {"seed": 5, "command": "polydraft bench"}).items()
    assert content["threads"] == torch.get_num_threads()
    assert content["versions"]["torch"] == torch.__version__.split("+")[0]
    assert [row["first_difference"] for row in content["per_prompt"]] == [None, 1, 8]
    first = {"plain_tokens": 4, "plain_tokens_per_second": 2.0, "drafted_run_tokens": 4, "ratio": 2.0}
    assert content["per_prompt"][0].items() >= (first | {"drafted_cpu_seconds": None}).items()
    write_report(content, tmp_path / "out.json")
    assert json.loads((tmp_path / "out.json").read_text()) == content


def test_prompts_without_a_kind_count_in_all_only() -> None:
    results = [*RESULTS, comparison(plain=([1], 1.0), drafted=([1], 1.0), accepted=[0])]
    content = report(results, sampling=Sampling(), model="m", head="h", dtype=torch.float32, command="")
    assert content["all"]["prompts"] == 4
    assert sum(group["prompts"] for group in content["kinds"].values()) == 3


@pytest.mark.skipif(not can_plot(), reason="the extra `plots` is not installed")
@pytest.mark.parametrize("eager", [None, ([1], 1.0)])
def test_plot_is_a_png(tmp_path: Path, eager: tuple[list[int], float] | None) -> None:
    results = [*RESULTS[:2], comparison(plain=([1], 1.0), drafted=([1], 1.0), accepted=[0])]
    if eager is not None:
        results = [replace(result, eager=Run(tokens=eager[0], seconds=eager[1])) for result in results]
    content = report(results, sampling=Sampling(), model="m", head="h", dtype=torch.float32, command="")
    plot_report(content, tmp_path / "out.png")
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_bars_without_drafts_are_grey() -> None:
    content = report(RESULTS, sampling=Sampling(), model="m", head="h", dtype=torch.float32, command="")
    assert speeds({"all": content["all"]}) == {"plain": ([2.0], PLAIN), "drafted": ([4.0], DRAFTED)}
    compiled = {"all": content["all"] | {"eager": {"tokens_per_second": 1.0}}}
    ways = {"plain": ([1.0], EAGER), "plain, compiled": ([2.0], PLAIN), "drafted, compiled": ([4.0], DRAFTED)}
    assert speeds(compiled) == ways
    assert list(speeds(compiled)) == list(ways)


def test_check_writable(tmp_path: Path) -> None:
    check_writable(tmp_path / "new.json")
    with pytest.raises(InputError, match="does not exist"):
        check_writable(tmp_path / "gone/out.json")
    os.mkfifo(tmp_path / "pipe")
    for write in (check_writable, lambda path: write_report({}, path)):
        with pytest.raises(InputError, match="pipe is a device or a pipe, no file"):
            write(tmp_path / "pipe")  # an atomic write would put a file in its place
    assert (tmp_path / "pipe").is_fifo()
    with pytest.raises(InputError, match="is a folder"):
        check_writable(tmp_path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON"),
        ("[1]", "either `prompt` or `messages`"),
        ('{"text": "x"}', "either `prompt` or `messages`"),
        ('{"prompt": "x", "messages": []}', "either `prompt` or `messages`"),
        ('{"prompt": ""}', "must be a text"),
        ('{"prompt": 3}', "must be a text"),
        ('{"messages": []}', "must be a list"),
        ('{"messages": [{"role": "user"}]}', "message 1: `content` must be a text"),
        (
            '{"messages": [{"role": "user", "content": "x"}], "tools": "f"}',
            "`tools` must be a list of objects",
        ),
        ('{"prompt": "x", "kind": "\\ud800"}', "half a surrogate pair"),
        ('{"prompt": "x", "kind": 1}', "`kind` must be a text"),
    ],
)
def test_malformed_prompts_name_file_and_line(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "fine"}\n\n' + line + "\n")
    with pytest.raises(InputError, match=f"line 3: .*{message}") as caught:
        read_prompts(path)
    assert str(path) in str(caught.value)


def test_a_prompt_keeps_its_tools_and_is_named_by_its_line_in_errors(tmp_path: Path) -> None:
    tool = {"type": "function", "function": {"name": "f"}}
    row = {"messages": [{"role": "user", "content": "hi"}], "tools": [tool], "id": "mine"}
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(row).encode())
    (prompt,) = read_prompts(path)
    assert prompt.content == {"messages": row["messages"], "tools": [tool]}
    assert prompt.where == "mine"
    tokenizer = tiny_tokenizer()
    with pytest.raises(InputError, match="line 1: `tools`, but this model's chat template leaves them out"):
        prompt.encode(tokenizer)
    tokenizer.chat_template = "{% for tool in tools %}{{ tool.function.name }}{% endfor %}!"
    assert tokenizer.decode(prompt.encode(tokenizer)) == "f!"


def test_a_prompt_beyond_the_embedding_is_named(tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text(
        '{"prompt": "fine", "id": "one"}\n{"prompt": "a<image>", "id": "two"}\n'
    )
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<image>"])
    fine, beyond = read_prompts(tmp_path / "prompts.jsonl")
    model = tiny_model(vocab_size=len(tokenizer) - 1)
    assert fine.encode(tokenizer, model=model) == fine.encode(tokenizer)
    with pytest.raises(InputError, match="line 2: the tokenizer has token 259, '<image>'"):
        beyond.encode(tokenizer, model=model)


def test_missing_and_empty_prompt_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_prompts(tmp_path / "gone.jsonl")
    with pytest.raises(InputError, match="a folder, where a file is wanted"):
        read_prompts(tmp_path)
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(InputError, match="no prompts"):
        read_prompts(tmp_path / "empty.jsonl")
    (tmp_path / "latin.jsonl").write_bytes(b'{"prompt": "\xe9"}')
    with pytest.raises(InputError, match="not UTF-8"):
        read_prompts(tmp_path / "latin.jsonl")


def test_encode_raw_and_chat(tiny: tuple[Any, Any, PreTrainedTokenizerFast]) -> None:
    tokenizer = tiny[2]
    raw, chat = (
        Prompt(content={"prompt": "ab"}),
        Prompt(content={"messages": [{"role": "user", "content": "ab"}]}),
    )
    assert tokenizer.decode(raw.encode(tokenizer)) == "ab"
    assert tokenizer.decode(chat.encode(tokenizer)) == "<bos>user: ab<eos><bos>assistant: "
    plain = tiny_tokenizer()
    plain.chat_template = None
    with pytest.raises(InputError, match="no chat template"):
        chat.encode(plain)


def test_shipped_prompts_are_balanced_and_disjoint() -> None:
    sets = [read_prompts(prompts_path(name)) for name in ("heldout", "validation")]
    for prompts in sets:
        kinds = [prompt.kind for prompt in prompts]
        assert {kind: kinds.count(kind) for kind in kinds} == {"code": 8, "chat": 8, "prose": 8}
        assert all(len(p.content["prompt"].split()) == 40 for p in prompts if p.kind == "prose")
    held_out, validation = ({json.dumps(prompt.content) for prompt in prompts} for prompts in sets)
    assert len(held_out) == len(validation) == 24
    assert not held_out & validation


def runs_of_words(prompt: Prompt, *, words: int) -> set[str]:
    texts = [prompt.content.get("prompt", ""), *(m["content"] for m in prompt.content.get("messages", []))]
    found = re.findall(r"\w+", " ".join(texts).lower())
    return {" ".join(found[i : i + words]) for i in range(len(found) - words + 1)}


def test_shipped_prompts_of_many_kinds_share_no_passage_with_any_others() -> None:
    names = ("breadth-heldout", "breadth-validation")
    sets = {name: read_prompts(prompts_path(name)) for name in (*names, "heldout", "validation", "edit")}
    for name in names:
        kinds = [prompt.kind for prompt in sets[name]]
        assert len(set(kinds)) == 14
        assert all(kinds.count(kind) == 5 for kind in kinds)
        assert {prompt.where for prompt in sets[name]} == {
            f"{name}/{k}/{i}" for k in kinds for i in range(1, 6)
        }
    runs = {name: set().union(*(runs_of_words(p, words=8) for p in found)) for name, found in sets.items()}
    for name in names:
        assert len(runs[name]) > 500
        assert all(runs[name].isdisjoint(runs[other]) for other in sets if other != name)


def test_pieces_join_to_the_text(tiny: tuple[Any, Any, PreTrainedTokenizerFast]) -> None:
    tokenizer = tiny[2]
    tokens = tokenizer("né 漢<eos>!")["input_ids"]
    found = pieces(tokenizer, tokens)
    assert found == ["n", "", "é", " ", "", "", "漢", "", "!"]
    half = tokens[:2]  # ends inside a character
    assert "".join(pieces(tokenizer, half)) == tokenizer.decode(half)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"top_k": -1}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"min_p": 2.0}, "min_p"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"stop": ("",)}, "stop"),
    ],
)
def test_sampling_refuses_values_out_of_range(options: dict[str, Any], name: str) -> None:
    with pytest.raises(InputError, match=f"^{name} must be"):
        Sampling(**options)


def test_plain_run_is_model_generate(
    tiny: tuple[PreTrainedModel, DraftHead, PreTrainedTokenizerFast],
) -> None:
    model, _, tokenizer = tiny
    ids = [10, 20, 30]
    sampling = Sampling(max_new_tokens=9, temperature=0.8, top_k=20, top_p=0.9, torch_seed=4)
    torch.manual_seed(4)
    expected = model.generate(
        torch.tensor([ids]),
        attention_mask=torch.ones(1, 3, dtype=torch.long),
        max_new_tokens=9,
        do_sample=True,
        temperature=0.8,
        top_k=20,
        top_p=0.9,
    )
    assert run_plain(model, tokenizer, ids, sampling).tokens == expected[0, 3:].tolist()


def test_drafted_run_equals_plain_and_keeps_its_origins(
    tiny: tuple[PreTrainedModel, DraftHead, PreTrainedTokenizerFast],
) -> None:
    model, head, tokenizer = tiny
    sampling = Sampling(max_new_tokens=20)
    plain = run_plain(model, tokenizer, [10, 20, 30], sampling)
    drafted = run_drafted(model, head, tokenizer, [10, 20, 30], sampling)
    assert drafted.tokens == plain.tokens
    assert drafted.origins is not None
    assert len(drafted.origins) == 20
    assert drafted.statistics is not None
    assert sum(origin > 0 for origin in drafted.origins) == drafted.statistics.accepted_tokens
    assert drafted.tokens_per_second == 20 / drafted.seconds


def test_benchmark_interleaves_and_shares_seeds(
    tiny: tuple[PreTrainedModel, DraftHead, PreTrainedTokenizerFast], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, int, int]] = []

    def plain(model: object, tokenizer: object, ids: list[int], sampling: Sampling) -> Run:
        calls.append(("plain", sampling.torch_seed, sampling.max_new_tokens))
        return Run(tokens=[1], seconds=1.0)

    def drafted(*given: Any, **_: object) -> Run:
        sampling: Sampling = given[-1]
        calls.append(("drafted", sampling.torch_seed, sampling.max_new_tokens))
        return Run(tokens=[1], seconds=1.0, origins=[0], statistics=DecodingStatistics())

    monkeypatch.setattr(runs_module, "run_plain", plain)
    monkeypatch.setattr(benchmark_module, "run_drafted", drafted)
    seen: list[Comparison] = []
    prompts = [Prompt(content={"prompt": text}) for text in "abc"]
    results = benchmark(*tiny, prompts, Sampling(max_new_tokens=40, torch_seed=100), on_result=seen.append)
    assert calls[:2] == [("plain", 100, 16), ("drafted", 100, 16)]
    assert calls[2:4] == [("plain", 100, 40), ("drafted", 100, 40)]
    assert calls[4:6] == [("drafted", 101, 40), ("plain", 101, 40)]
    assert calls[6:] == [("plain", 102, 40), ("drafted", 102, 40)]
    assert results == seen
    assert [result.prompt for result in results] == prompts


def test_compiled_decoding_is_run_without_drafts_too_and_eagerly(
    tiny: tuple[PreTrainedModel, DraftHead, PreTrainedTokenizerFast], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def plain(*_: object) -> Run:
        calls.append("eager")
        return Run(tokens=[1], seconds=1.0)

    def drafted(*given: Any, **_: object) -> Run:
        sampling: Sampling = given[-1]
        assert sampling.compiled
        calls.append(f"{sampling.draft_length}/{sampling.prompt_lookup_num_tokens}")
        return Run(tokens=[1], seconds=1.0, origins=[0], statistics=DecodingStatistics())

    for module in (benchmark_module, runs_module):
        monkeypatch.setattr(module, "run_plain", plain)
        monkeypatch.setattr(module, "run_drafted", drafted)
    prompts = [Prompt(content={"prompt": text}) for text in "abc"]
    sampling = Sampling(compiled=True, draft_length=3, prompt_lookup_num_tokens=5)
    results = benchmark(*tiny, prompts, sampling)
    assert calls[3:] == ["0/None", "3/5", "eager", "3/5", "eager", "0/None", "eager", "0/None", "3/5"]
    assert all(result.plain.statistics is None for result in results)
    assert all(result.eager is not None for result in results)


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_compiled_without_drafts_says_what_plain_decoding_says(
    tiny: tuple[PreTrainedModel, DraftHead, PreTrainedTokenizerFast],
    monkeypatch: pytest.MonkeyPatch,
    temperature: float,
) -> None:
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    model, head, tokenizer = tiny
    sampling = Sampling(max_new_tokens=10, temperature=temperature, compiled=True)
    run = run_undrafted(model, head, tokenizer, [10, 20, 30], sampling)
    assert run.origins is run.statistics is None
    assert run.tokens == run_plain(model, tokenizer, [10, 20, 30], sampling).tokens


def test_cpu_time_is_known_where_one_thread_works(
    tiny: tuple[PreTrainedModel, DraftHead, PreTrainedTokenizerFast], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _, tokenizer = tiny
    run = run_plain(model, tokenizer, [10, 20, 30], Sampling(max_new_tokens=4))
    assert run.cpu_seconds is not None and run.cpu_seconds > 0
    monkeypatch.setattr(runs_module, "works_alone", lambda device: False)
    assert run_plain(model, tokenizer, [10, 20, 30], Sampling(max_new_tokens=4)).cpu_seconds is None


def test_benchmark_checks_all_prompts_before_it_runs(
    tiny: tuple[PreTrainedModel, DraftHead, PreTrainedTokenizerFast], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark_module, "compare", lambda *args, **options: pytest.fail("it ran"))
    model, head, _ = tiny
    plain = tiny_tokenizer()
    plain.chat_template = None
    prompts = [
        Prompt(content={"prompt": "a"}),
        Prompt(content={"messages": [{"role": "user", "content": "b"}]}),
    ]
    with pytest.raises(InputError, match="no chat template"):
        benchmark(model, head, plain, prompts, Sampling())
