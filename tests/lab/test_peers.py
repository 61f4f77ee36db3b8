"""Peers side by side: the plan, who decodes what, in which order, what is kept, and the figures by hand."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from typer.testing import CliRunner, Result

from lab.cli import app
from lab.peers import contestants as ways
from lab.peers.contestants import Contestant, Continued
from lab.peers.plots import bar_styles, plot_peers
from lab.peers.report import (
    like_table,
    peer_figures,
    peer_notes,
    peer_report,
    peer_table,
    write_peer_report,
)
from lab.peers.rounds import NO_KIND, Setting, plan
from lab.peers.run import ALONE, Peers
from polydraft.bench.prompts import Prompt, prompts_path, read_prompts
from polydraft.bench.runs import Sampling, run_plain
from polydraft.errors import InputError
from polydraft.heads import DraftHead
from polydraft.training.curves import can_plot
from tests.tiny import tiny_folder, tiny_head, tiny_model, tiny_tokenizer

END = 2
PROMPTS = [Prompt(content={"prompt": text}, kind=text[0]) for text in ("abc", "ab", "abab", "xyz", "x")]


@pytest.fixture(scope="module")
def tiny() -> tuple[PreTrainedModel, DraftHead, PreTrainedTokenizerFast]:
    """A random float32 model that never ends, a random head, a tokenizer."""
    tokenizer = tiny_tokenizer()
    model = tiny_model(vocab_size=len(tokenizer))
    return model, tiny_head(model, tokenizer=tokenizer, draft_length=None), tokenizer


def told(
    name: str, calls: list[tuple[Any, ...]], *, alone: bool = False, refuses: float | None = None
) -> Contestant:
    """A contestant that writes down its calls and continues each row with 10 + its length and an end."""

    def continues(inputs: dict[str, Tensor], sampling: Sampling) -> Continued:
        ids, lengths = inputs["input_ids"], inputs["attention_mask"].sum(1)
        if sampling.temperature == refuses:
            raise InputError(f"{name} does not like {sampling.temperature:g}")
        calls.append((name, tuple(lengths.tolist()), sampling))
        new = torch.stack([lengths + 10, torch.full_like(lengths, END), torch.zeros_like(lengths)], dim=1)
        return Continued(torch.cat([ids, new], dim=1), 1.5)

    return Contestant(name=name, about=f"the {name}", continues=continues, alone=alone)


def peers_of(contestants: list[Contestant], out: Path, **options: Any) -> Peers:
    """Over `PROMPTS`, with a model that ends at `END`."""
    tokenizer = tiny_tokenizer()
    model = tiny_model(vocab_size=len(tokenizer), eos_token_id=END)
    sampling = Sampling(max_new_tokens=40, torch_seed=100)
    return Peers(model, tokenizer, contestants, PROMPTS, sampling, out=out, settings={"model": "m"} | options)


def order_of(calls: list[tuple[Any, ...]]) -> str:
    """First letters of the timed calls, in order; the warm-up decodes fewer tokens."""
    return "".join(name[0] for name, _, sampling in calls if sampling.max_new_tokens == 40)


# -- the plan ---------------------------------------------------------------------------------------


def test_plan_takes_all_settings_and_kinds_in_turn() -> None:
    rounds = plan(PROMPTS, temperatures=[0, 1], batches=[1], repeats=3)
    assert [(r.setting.temperature, r.kind, r.prompts, r.turn) for r in rounds] == [
        (0, "a", (0,), 0), (0, "x", (3,), 0), (1, "a", (0,), 0), (1, "x", (3,), 0),
        (0, "a", (1,), 1), (0, "x", (4,), 1), (1, "a", (1,), 1), (1, "x", (4,), 1),
        (0, "a", (2,), 2), (1, "a", (2,), 2),
    ]  # fmt: skip
    assert len({one.name for one in rounds}) == len(rounds)


def test_plan_repeats_full_batches_of_one_kind() -> None:
    rounds = plan(PROMPTS, temperatures=[0], batches=[2], repeats=2)
    assert [(r.kind, r.prompts, r.turn) for r in rounds] == [
        ("a", (0, 1), 0), ("x", (3, 4), 0), ("a", (0, 1), 1), ("x", (3, 4), 1),
    ]  # fmt: skip
    assert [r.kind for r in plan(PROMPTS, temperatures=[0], batches=[3], repeats=1)] == ["a"]
    nameless = [Prompt(content={"prompt": "q"})]
    assert plan(nameless, temperatures=[0], batches=[1], repeats=1)[0].kind == NO_KIND


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batches": [4]}, "batch 4 needs"),
        ({"batches": [0]}, "at least 1"),
        ({"repeats": 0}, "at least 1"),
        ({"temperatures": [-1.0]}, "0 \\(greedy\\) or more"),
    ],
)
def test_plan_refuses(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        plan(PROMPTS, **({"temperatures": [0.0], "batches": [1], "repeats": 1} | options))


# -- rounds -----------------------------------------------------------------------------------------


def test_rounds_rotate_share_seeds_and_follow_a_warm_up(tmp_path: Path) -> None:
    calls: list[tuple[Any, ...]] = []
    contestants = [told(name, calls) for name in ("plain", "other", "third")]
    rounds = [r for r in plan(PROMPTS, temperatures=[0], batches=[1], repeats=1) if r.kind == "a"]
    peers_of(contestants, tmp_path).run(rounds)
    assert [(name, sampling.max_new_tokens) for name, _, sampling in calls[:3]] == [
        ("plain", 16), ("other", 16), ("third", 16),
    ]  # fmt: skip
    assert order_of(calls) == "pot" + "otp" + "tpo"
    timed = calls[3:]
    assert [lengths for _, lengths, _ in timed] == [(3,)] * 3 + [(2,)] * 3 + [(4,)] * 3
    assert [sampling.torch_seed for *_, sampling in timed] == [100] * 3 + [102] * 3 + [104] * 3


def test_rows_are_padded_cut_at_their_end_and_kept(tmp_path: Path) -> None:
    calls: list[tuple[Any, ...]] = []
    peers = peers_of([told("plain", calls), told("single", calls, alone=True)], tmp_path)
    (one,) = plan(PROMPTS, temperatures=[0], batches=[3], repeats=1)
    notes: list[str] = []
    (content,) = peers.run([one], on_note=notes.append)
    assert content["runs"]["plain"]["tokens"] == [[13, END], [12, END], [14, END]]
    assert content["runs"]["plain"]["tokens_per_step"] == 1.5
    assert content["left_out"] == {"single": ALONE}
    assert notes == [f"greedy, batch 3: without single: {ALONE}"]
    assert json.loads(peers.path(one).read_text())["runs"] == content["runs"]


def test_who_refuses_a_setting_is_left_out_of_it_alone(tmp_path: Path) -> None:
    calls: list[tuple[Any, ...]] = []
    peers = peers_of([told("plain", calls), told("fussy", calls, refuses=1.0)], tmp_path)
    found = peers.run(plan(PROMPTS[:1], temperatures=[0, 1], batches=[1], repeats=1))
    assert [one["left_out"] for one in found] == [{}, {"fussy": "fussy does not like 1"}]
    assert [set(one["runs"]) for one in found] == [{"plain", "fussy"}, {"plain"}]


def test_what_is_done_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []
    contestants = [told("plain", calls), told("other", calls)]
    rounds = plan(PROMPTS, temperatures=[0], batches=[1], repeats=1)
    notes: list[str] = []
    assert peers_of(contestants, tmp_path).run(rounds, budget_seconds=-1, on_note=notes.append) == []
    assert notes == ["the budget is spent after 0 of 5 rounds"]
    peers_of(contestants, tmp_path).run(rounds[:2])
    calls.clear()
    seen: list[Any] = []
    found = peers_of(contestants, tmp_path).run(rounds, on_round=seen.append)
    assert order_of(calls) == "op" * 2 + "po"  # turns 1, 1 and 2
    assert seen == rounds
    calls.clear()
    again = peers_of(contestants, tmp_path).run(rounds)
    assert calls == []
    assert json.dumps(again) == json.dumps(found)


def test_other_settings_are_refused(tmp_path: Path) -> None:
    contestants = [told("plain", []), told("other", [])]
    peers_of(contestants, tmp_path)
    with pytest.raises(InputError, match="model m, not n"):
        peers_of(contestants, tmp_path, model="n")
    with pytest.raises(InputError, match="contestants"):
        peers_of([*contestants, told("third", [])], tmp_path)
    with pytest.raises(InputError, match="names of their own, got plain, plain"):
        peers_of([told("plain", []), told("plain", [])], tmp_path / "new")


# -- contestants ------------------------------------------------------------------------------------


def all_ways(model: PreTrainedModel, head: DraftHead) -> list[Contestant]:
    """One contestant of each way; the compiled ones by a backend that compiles nothing."""
    draft = tiny_model(vocab_size=model.config.vocab_size, seed=1)
    options = {"verification": "block", "draft_length": 2}
    return [
        ways.plain(model),
        ways.static(model, length=40, backend="eager"),
        ways.lookup(model, tokens=4),
        ways.assisted(model, draft),
        ways.drafted(model, head, name="block", about="", options=options),
        *ways.polydraft_ways(model, head, source="h", lookup_tokens=4, compiled=False),
    ]


def test_every_way_gives_the_text_of_plain_decoding(
    tiny: tuple[PreTrainedModel, DraftHead, PreTrainedTokenizerFast],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    model, head, tokenizer = tiny
    contestants, sampling = all_ways(model, head), Sampling(max_new_tokens=12)
    peers = Peers(model, tokenizer, contestants, PROMPTS, sampling, out=tmp_path, settings={})
    expected = [run_plain(model, tokenizer, ids, sampling).tokens for ids in peers.ids]
    for contestant in contestants:
        for ids, tokens in zip(peers.ids[:2], expected, strict=False):
            run = peers.decode(contestant, [ids], sampling)
            assert (contestant.name, run.tokens) == (contestant.name, [tokens])
            assert 1.0 <= run.tokens_per_step <= 12.0
        if not contestant.alone:
            assert peers.decode(contestant, peers.ids, sampling).tokens == expected


def test_polydraft_is_compared_like_for_like(
    tiny: tuple[PreTrainedModel, DraftHead, PreTrainedTokenizerFast],
) -> None:
    model, head, _ = tiny
    eager = {"polydraft": "plain", "polydraft + lookup": "plain"}
    found = ways.polydraft_ways(model, head, source="h", lookup_tokens=4, compiled=False)
    assert {one.name: one.like for one in found} == eager
    found = ways.polydraft_ways(model, head, source="h", lookup_tokens=4, compiled=True)
    alone = "polydraft compiled, no drafts"
    compiled = {alone: "plain", "polydraft compiled": alone, "polydraft compiled + lookup": alone}
    assert {one.name: one.like for one in found} == eager | compiled
    assert all(one.own for one in found)


def test_lookup_reports_tokens_per_forward(
    tiny: tuple[PreTrainedModel, DraftHead, PreTrainedTokenizerFast], tmp_path: Path
) -> None:
    """Where the text is a copy of the prompt's, every forward gives its drafts and one token more."""
    model, _, tokenizer = tiny
    sampling = Sampling(max_new_tokens=12)
    peers = Peers(model, tokenizer, [ways.plain(model)], PROMPTS, sampling, out=tmp_path, settings={})
    seen: list[int] = []
    hook = model.register_forward_pre_hook(
        lambda module, args, given: seen.append(given["input_ids"].shape[1]), with_kwargs=True
    )
    run = peers.decode(ways.lookup(model, tokens=4), peers.ids[:1], sampling)
    hook.remove()
    assert run.tokens_per_step == 12 / len(seen)
    assert run.cpu_seconds is not None and run.cpu_seconds > 0


def test_assisted_needs_the_same_vocabulary(
    tiny: tuple[PreTrainedModel, DraftHead, PreTrainedTokenizerFast],
) -> None:
    with pytest.raises(InputError, match="the same vocabulary"):
        ways.assisted(tiny[0], tiny_model(vocab_size=64))


def test_parse_peer_head() -> None:
    assert ways.parse_peer_head("a=runs/b") == ("a", "runs/b", {})
    parsed = ways.parse_peer_head("a=runs/b,verification=block,draft_length=2")
    assert parsed == ("a", "runs/b", {"verification": "block", "draft_length": 2})
    for text in ("a", "a=", "=b", "a=b,", "a=b,drafting"):
        with pytest.raises(InputError, match="NAME=HEAD"):
            ways.parse_peer_head(text)
    for option in ("tokenizer", "seed"):
        with pytest.raises(InputError, match=f"no option '{option}', only verification, drafting"):
            ways.parse_peer_head(f"a=b,{option}=1")


# -- figures ----------------------------------------------------------------------------------------


def kept(kind: str, temperature: float, **runs: tuple[list[list[int]], float, float]) -> dict[str, Any]:
    """A round as it is kept, from (tokens, seconds, tokens per step) of each contestant."""
    names = ("tokens", "seconds", "tokens_per_step")
    return {
        "setting": {"temperature": temperature, "batch": 2},
        "kind": kind,
        "prompts": [0, 1],
        "runs": {name: dict(zip(names, run, strict=True)) for name, run in runs.items()},
        "left_out": {} if "ours" in runs else {"ours": "it cannot"},
    }


ROUNDS = [
    kept("a", 0.0, plain=([[1, 2], [3, 4]], 2.0, 1.0), ours=([[1, 2], [3, 5]], 1.0, 2.0)),  # 2 and 4 tokens/s
    kept("a", 0.0, plain=([[1] * 6, [2] * 6], 2.0, 1.0), ours=([[1] * 6, [2] * 6], 4.0, 1.0)),  # 6 and 3
    kept("a", 0.0, ours=([[1] * 4, [3] * 4], 2.0, 1.5), plain=([[1] * 4, [2] * 4], 2.0, 1.0)),  # 4 and 4
    kept("b", 1.0, plain=([[1], [2]], 1.0, 1.0)),
]
SETTINGS: dict[str, Any] = {
    "model": "m",
    "dtype": "float32",
    "contestants": [["plain", "p"], ["ours", "o"]],
    "own": ["ours"],
    "like": {},
}


def test_figures_by_hand() -> None:
    found = peer_figures(ROUNDS[:3], like={})
    assert (found["rounds"], found["rows"], found["left_out"]) == (3, 6, {})
    plain, ours = found["contestants"]["plain"], found["contestants"]["ours"]
    assert (plain["tokens_per_second"], plain["ratio"], plain["same"]) == (4.0, 1.0, 6)
    assert (ours["tokens_per_second"], ours["ratio"], ours["same"]) == (4.0, 1.0, 1 + 2 + 1)  # of 2, .5, 1
    assert ours["cpu_ratio"] is ours["like"] is None
    assert ours["ratio_per_round"] == {"min": 0.5, "q1": 0.75, "median": 1.0, "q3": 1.5, "max": 2.0}
    assert ours["tokens_per_step"] == 1.5
    assert ours["tokens"] == 4 + 12 + 8
    sampled = peer_figures(ROUNDS[3:], like={})
    assert sampled["contestants"]["plain"]["same"] is None
    assert sampled["left_out"] == {"ours": "it cannot"}


def test_the_ratio_is_that_of_rounds_not_of_medians() -> None:
    """Plain and ours, tokens/s: 10 and 9, 9 and 8, 5 and 10; the medians would say 1."""
    speeds = ((10, 9), (9, 8), (5, 10))
    mixed = [kept("a", 0.0, plain=([[1] * a], 1.0, 1.0), ours=([[1] * b], 1.0, 1.0)) for a, b in speeds]
    assert peer_figures(mixed, like={})["contestants"]["ours"]["ratio"] == 0.9


def test_compiled_drafting_is_compared_with_the_same_without_drafts(tmp_path: Path) -> None:
    """4 tokens: plain in 4 seconds, compiled in 2, drafted in 1; by CPU time in 3, 2 and 1."""
    one = kept(
        "a", 0.0, **{n: ([[1, 2, 3, 4]], s, 1.0) for n, s in (("plain", 4.0), ("alone", 2.0), ("ours", 1.0))}
    )
    for name, seconds in (("plain", 3.0), ("alone", 2.0), ("ours", 1.0)):
        one["runs"][name]["cpu_seconds"] = seconds
    like = {"ours": "alone"}
    found = peer_figures([one], like=like)["contestants"]
    assert (found["alone"]["ratio"], found["alone"]["cpu_ratio"], found["alone"]["like"]) == (2.0, 1.5, None)
    assert (found["ours"]["ratio"], found["ours"]["cpu_ratio"]) == (4.0, 3.0)
    assert (found["ours"]["like"]["ratio"], found["ours"]["like"]["cpu_ratio"]) == (2.0, 2.0)
    names = [["plain", "p"], ["alone", "a"], ["ours", "o"]]
    content = peer_report([one], settings=SETTINGS | {"contestants": names, "like": like}, command="")
    expected = [["setting", "kind", "ours"], ["greedy, batch 2", "a", "2.00 (2.00-2.00)"]]
    assert like_table(content) == expected
    write_peer_report(content, tmp_path)
    assert "| greedy, batch 2 | a | 2.00 (2.00-2.00) |" in (tmp_path / "peers.md").read_text()
    one["left_out"] = {"ours": "it cannot"}
    assert like_table(peer_report([one], settings=SETTINGS | {"like": like}, command=""))[1][2] == "-"


def test_report_table_and_files(tmp_path: Path) -> None:
    content = peer_report(ROUNDS, settings=SETTINGS, command="polydraft bench")
    assert [(cell["temperature"], cell["kind"]) for cell in content["cells"]] == [(0.0, "a"), (1.0, "b")]
    assert content["cells"][0].items() >= peer_figures(ROUNDS[:3], like={}).items()
    assert like_table(content) == []
    assert peer_table(peer_report(ROUNDS[:1], settings=SETTINGS, command=""))[1][2:] == [
        "2.0", "**2.00** (2.00)",
    ]  # fmt: skip
    assert peer_table(content)[2] == ["T = 1, batch 2", "b", "2.0", "-"]
    assert peer_notes(content) == ["plain: p", "ours: o", "without ours at T = 1, batch 2: it cannot"]
    write_peer_report(content, tmp_path)
    assert json.loads((tmp_path / "peers.json").read_text()) == content
    lines = (tmp_path / "peers.md").read_text().splitlines()
    assert lines[0] == "| setting | kind | plain tokens/s | ours |"
    assert lines[3] == "| T = 1, batch 2 | b | 2.0 | - |"


@pytest.mark.skipif(not can_plot(), reason="the extra `plots` is not installed")
def test_plot_is_a_png(tmp_path: Path) -> None:
    plot_peers(peer_report(ROUNDS, settings=SETTINGS, command=""), tmp_path / "out.png")
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_own_bars_are_coloured_and_all_others_grey() -> None:
    from matplotlib.colors import to_rgb

    names = ["static", "ours", "lookup", "ours compiled", "medusa"]
    styles = bar_styles(names, own=["ours", "ours compiled"])
    shades = {name: to_rgb(style["color"]) for name, style in styles.items()}
    grey = [name for name in names if len(set(shades[name])) == 1]
    assert grey == ["static", "lookup", "medusa"]
    assert len(set(shades.values())) == len(names)


def test_settings_have_names() -> None:
    assert str(Setting(temperature=0.0, batch=1)) == "greedy, batch 1"
    assert str(Setting(temperature=0.7, batch=8)) == "T = 0.7, batch 8"


# -- the command and the prompts --------------------------------------------------------------------


def peers(*args: str | Path) -> Result:
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, ["peers", *map(str, args)])


@pytest.fixture
def common(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str | Path]:
    """Options of a comparison over a tiny model; nothing is compiled."""
    compiled = ways.static
    monkeypatch.setattr(
        ways, "static", lambda model, *, length: compiled(model, length=length, backend="eager")
    )
    folder = tiny_folder(tmp_path / "model")
    model = tiny_model(vocab_size=len(tiny_tokenizer()))
    tiny_head(model, tokenizer=tiny_tokenizer()).save_pretrained(tmp_path / "head")
    lines = [json.dumps(prompt.content | {"kind": prompt.kind}) for prompt in PROMPTS[1:]]
    (tmp_path / "p.jsonl").write_text("\n".join(lines))
    names = ("--model", folder, "--head", tmp_path / "head", "--prompts", tmp_path / "p.jsonl")
    return [*names, "--dtype", "float32", "--max-new-tokens", "6"]


def test_the_command_compares_and_goes_on(common: list[str | Path], tmp_path: Path) -> None:
    peer = f"second={tmp_path / 'head'},draft_length=1"
    asked = [*common, "--out", tmp_path / "out", "--batch", "1", "--batch", "2", "--repeats", "1"]
    asked += ["--peer-head", peer, "--draft-model", tmp_path / "model"]
    none = peers(*asked, "--budget-minutes", "-1")
    assert none.exit_code == 0, none.output
    assert "no round fitted" in none.stderr
    result = peers(*asked)
    assert result.exit_code == 0, result.output
    content = json.loads((tmp_path / "out/peers.json").read_text())
    names = ["plain", "static + compile", "lookup", "assisted", "second", "polydraft", "polydraft + lookup"]
    assert [name for name, _ in content["contestants"]] == names
    assert content["own"] == names[-2:]
    assert len(content["cells"]) == 2 * 2 * 2
    for cell in content["cells"]:
        batched = cell["batch"] > 1
        assert set(cell["left_out"]) == ({"lookup", "assisted"} if batched else set())
        if cell["temperature"] == 0:
            assert {figures["same"] for figures in cell["contestants"].values()} == {cell["rows"]}
    assert "greedy, batch 2" in result.stdout
    assert (tmp_path / "out/peers.png").exists() == can_plot()
    before = (tmp_path / "out/peers.json").read_text()
    assert peers(*asked).exit_code == 0
    assert json.loads((tmp_path / "out/peers.json").read_text())["cells"] == json.loads(before)["cells"]


def test_the_command_compares_compiled_ways(
    common: list[str | Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    out = tmp_path / "out"
    result = peers(*common, "--compile", "--out", out, "--batch", "1", "--temperature", "0")
    assert result.exit_code == 0, result.output
    content = json.loads((out / "peers.json").read_text())
    own = ["", " + lookup", " compiled, no drafts", " compiled", " compiled + lookup"]
    assert content["own"] == [f"polydraft{way}" for way in own]
    for cell in content["cells"]:
        found = cell["contestants"]
        assert {figures["same"] for figures in found.values()} == {cell["rows"]}
        assert [name for name, figures in found.items() if figures["like"]] == sorted(content["like"])
    assert "compiled drafting over the same compiled layers" in result.stdout


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--out", "o", "--peer-head", "x"], "NAME=HEAD"),
        (["--out", "o", "--peer-head", "x=./nowhere/y"], "no head folder"),
        (["--out", "o", "--batch", "9"], "batch 9 needs"),
        (["--out", "o", "--batch", "1", "--lookup-tokens", "0"], "Invalid value for '--lookup-tokens'"),
    ],
)
def test_the_command_refuses_before_it_loads(
    common: list[str | Path], monkeypatch: pytest.MonkeyPatch, args: list[str], message: str
) -> None:
    monkeypatch.setattr(
        "polydraft.cli.options.open_session", lambda **given: pytest.fail("a model was loaded")
    )
    result = peers(*common, *args)
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert result.stdout == ""


def test_edit_prompts_ask_for_copies() -> None:
    prompts = read_prompts(prompts_path("edit"))
    assert len(prompts) == len({prompt.where for prompt in prompts}) == 12
    for prompt in prompts:
        (message,) = prompt.content["messages"]
        assert prompt.kind == "edit"
        assert "Give back the whole file" in message["content"]
        assert message["content"].count("```") == 2
