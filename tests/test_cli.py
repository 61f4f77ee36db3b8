"""The command line as a user meets it: what is printed where, exit codes, one-line errors."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner, Result

import polydraft
from polydraft.bench import report
from polydraft.bench.benchmark import benchmark
from polydraft.bench.prompts import Prompt
from polydraft.bench.runs import Run, Sampling
from polydraft.cli import app, demo, options
from polydraft.decoding.plan import Plan
from polydraft.heads import DraftHead
from polydraft.loading import load_head, load_model
from polydraft.serving.model import served
from polydraft.training.curves import can_plot
from tests.serving.server import running
from tests.tiny import tiny_folder, tiny_head, tiny_tokenizer

PROMPT = "Once upon"


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """`--model` and `--head` of a tiny random model and head, in float32."""
    root = tmp_path_factory.mktemp("cli")
    model, tokenizer = load_model(str(tiny_folder(root / "model")), dtype=torch.float32)
    tiny_head(model, tokenizer=tokenizer).save_pretrained(root / "head")
    return ["--model", str(root / "model"), "--head", str(root / "head")]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    rows = [
        {"prompt": "abc", "kind": "raw"},
        {"messages": [{"role": "user", "content": "hello"}], "kind": "chat"},
        {"prompt": "xyz"},
    ]
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(*args: str | Path, text: str | None = None) -> Result:
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, [str(arg) for arg in args], input=text)


def ran(*args: str | Path, text: str | None = None) -> Result:
    """`run`, expected to succeed."""
    result = run(*args, text=text)
    assert result.exit_code == 0, result.output
    return result


def expect_error(result: Result, fragment: str, *, code: int = 2) -> None:
    """One line on stderr that begins with "error:", and nothing on stdout."""
    lines = [line for line in result.stderr.splitlines() if "tokens/s" not in line]
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert fragment in lines[0]


def plain_text(names: list[str], prompt: str, *, new: int) -> str:
    """What greedy `model.generate` says, the prompt left out."""
    model = AutoModelForCausalLM.from_pretrained(names[1], dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(names[1])
    inputs = tokenizer(prompt, return_tensors="pt")
    out = model.generate(**inputs, max_new_tokens=new, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert len(out) == new
    return str(tokenizer.decode(out, skip_special_tokens=True))


# -- generate ---------------------------------------------------------------------------------------


def test_generate_streams_the_greedy_text_alone(names: list[str]) -> None:
    result = ran("generate", *names, "--dtype", "float32", "--max-new-tokens", 24, PROMPT)
    assert result.stdout == plain_text(names, PROMPT, new=24) + "\n"


def test_generate_reads_stdin_and_files(names: list[str], tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text(PROMPT + "\n")
    common = ("generate", *names, "--dtype", "float32", "--max-new-tokens", 8, "--json")
    piped = json.loads(ran(*common, "-", text=PROMPT + "\n").stdout)
    read = json.loads(ran(*common, "--prompt-file", tmp_path / "prompt.txt").stdout)
    assert piped["prompt"] == read["prompt"] == PROMPT + "\n"
    assert piped["text"] == read["text"] == plain_text(names, PROMPT + "\n", new=8)


def test_generate_json_is_consistent(names: list[str]) -> None:
    result = ran("generate", *names, "--dtype", "float32", "--max-new-tokens", 16, "--json", PROMPT)
    found = json.loads(result.stdout)
    assert found["text"] == plain_text(names, PROMPT, new=16)
    assert found["prompt_tokens"] == len(PROMPT)  # one token per byte
    assert found["new_tokens"] == 16 == 1 + found["steps"] + found["accepted_tokens"]
    assert found["tokens_per_second"] == pytest.approx(16 / found["seconds"])
    assert found["mean_acceptance_length"] == pytest.approx(1 + found["accepted_tokens"] / found["steps"])
    assert found["draft_acceptance_rate"] == pytest.approx(found["accepted_tokens"] / found["drafted_tokens"])
    assert sum(found["acceptance_histogram"]) == found["steps"]
    assert found["dtype"] == "float32"
    assert found["max_new_tokens"] == 16
    assert 0 < found["drafting_share"] < 1
    assert "identical" not in found


def test_generate_compare_says_whether_texts_are_equal(names: list[str]) -> None:
    common = ("generate", *names, "--dtype", "float32", "--max-new-tokens", 16, "--compare", PROMPT)
    found = json.loads(ran(*common, "--json").stdout)
    assert found["identical"] is True
    assert found["plain_text"] == found["text"] == plain_text(names, PROMPT, new=16)
    assert found["plain_new_tokens"] == 16
    assert found["ratio"] == pytest.approx(found["tokens_per_second"] / found["plain_tokens_per_second"])
    spoken = ran(*common)
    assert spoken.stdout == found["text"] + "\n"
    assert "identical: yes" in spoken.stderr


def test_generate_sampling_repeats_with_its_seed(names: list[str]) -> None:
    common = ("generate", *names, "--dtype", "float32", "--max-new-tokens", 16, "--temperature", 1, "--json")
    first = json.loads(ran(*common, PROMPT).stdout)
    again = json.loads(ran(*common, "--seed", first["seed"], PROMPT).stdout)
    other = json.loads(ran(*common, "--seed", first["seed"] + 1, PROMPT).stdout)
    assert first["text"] == again["text"] != other["text"]


@pytest.mark.parametrize("form", ["chat", "raw"])
def test_a_seed_means_one_text_everywhere(names: list[str], form: str) -> None:
    """On the command line, timed by a benchmark, in Python and over HTTP."""
    options: dict[str, Any] = {"temperature": 0.9, "top_k": 30, "top_p": 0.95, "min_p": 0.01}
    new, seed, penalty = 24, 77, {"repetition_penalty": 1.2}
    flags = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", value)]
    flags += ["--repetition-penalty", 1.2, "--max-new-tokens", new, "--dtype", "float32", f"--{form}"]
    text = json.loads(ran("generate", *names, *flags, "--seed", seed, "--json", PROMPT).stdout)["text"]

    model, tokenizer = load_model(names[1], dtype=torch.float32)
    head = load_head(names[3], model=model, tokenizer=tokenizer)
    asked = [{"role": "user", "content": PROMPT}]
    prompt = Prompt(content={"messages": asked} if form == "chat" else {"prompt": PROMPT})
    sampling = Sampling(max_new_tokens=new, seed=seed, **options, **penalty)
    (timed,) = benchmark(model, head, tokenizer, [prompt], sampling)
    assert tokenizer.decode(timed.drafted.tokens, skip_special_tokens=True) == text

    ids = torch.tensor([prompt.encode(tokenizer)])
    common: dict[str, Any] = {"do_sample": True, "max_new_tokens": new, **options, **penalty}
    out = polydraft.generate(model, head, ids, seed=seed, **common).sequences
    assert out is not None
    hooked = cast(Any, model).generate(ids, custom_generate=polydraft.decoder(head, seed=seed), **common)
    assert hooked.tolist() == out.tolist()
    assert tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True) == text

    with running(served(model, head, tokenizer, name="m", rows=2, plan=Plan())) as server:
        calls = server.client()
        extra = {"top_k": options.pop("top_k"), "min_p": options.pop("min_p"), **penalty}
        given: dict[str, Any] = {
            "model": "m",
            "seed": seed,
            "max_tokens": new,
            "extra_body": extra,
            **options,
        }
        if form == "chat":
            said = (
                calls.chat.completions.create(messages=cast(Any, asked), **given).choices[0].message.content
            )
        else:
            said = calls.completions.create(prompt=PROMPT, **given).choices[0].text
    assert said == text


def test_seeds_that_cannot_couple_are_refused_before_anything_is_loaded() -> None:
    common = ("--model", "nowhere", "--head", "nowhere", "--temperature", 1)
    block = ("--verification", "block", "--drafting", "chain", "--seed", 1)
    expect_error(run("generate", *common, *block, PROMPT), "a seed couples the draws")
    expect_error(run("generate", *common, "--seed", 2**63, PROMPT), "seed must be between -2^63 and")


def test_block_verification_draws_other_texts_each_time(names: list[str]) -> None:
    """No seed fixes them, so none is reported."""
    block = ("--verification", "block", "--drafting", "chain", "--temperature", 1, "--json")
    found = [json.loads(ran("generate", *names, *block, PROMPT).stdout) for _ in range(2)]
    assert found[0]["text"] != found[1]["text"]
    assert found[0]["seed"] is None


def test_generate_sampled_compare_does_not_promise_equality(names: list[str]) -> None:
    result = ran(
        "generate", *names, "--max-new-tokens", 24, "--temperature", 1, "--seed", 1, "--compare", PROMPT
    )
    assert "identical: no (sampled texts need not be)" in result.stderr


def test_generate_stops_at_a_stop_string(names: list[str]) -> None:
    text = plain_text(names, PROMPT, new=24)
    tokenizer = tiny_tokenizer()
    stop = next(char for char in text if char.isascii() and char.isprintable())
    found = json.loads(
        ran(
            "generate", *names, "--dtype", "float32", "--stop", stop, "--stop", "\0\0\0", "--json", PROMPT
        ).stdout
    )
    assert found["text"] == text[: text.index(stop) + 1]
    assert len(tokenizer(found["text"])["input_ids"]) >= 1


def test_generate_chat_uses_the_template(names: list[str]) -> None:
    common = ("generate", *names, "--dtype", "float32", "--max-new-tokens", 8, "--json")
    chat = json.loads(ran(*common, "--chat", "hi").stdout)
    assert chat["text"] == plain_text(names, "<bos>user: hi<eos><bos>assistant: ", new=8)
    assert chat["text"] != json.loads(ran(*common, "hi").stdout)["text"]


def test_generate_stats_go_to_stderr(names: list[str]) -> None:
    common = ("generate", *names, "--dtype", "float32", "--max-new-tokens", 8, PROMPT)
    quiet, spoken = ran(*common), ran(*common, "--stats")
    assert quiet.stdout == spoken.stdout
    assert "tokens/s" not in quiet.stderr
    assert "8 tokens" in spoken.stderr
    assert "steps, float32" in spoken.stderr
    assert "CPU thread" in spoken.stderr
    sampled = ran(*common, "--stats", "--temperature", 1, "--seed", 11)
    assert "seed 11, float32" in sampled.stderr


# -- bench ------------------------------------------------------------------------------------------


def test_bench_writes_figures_and_a_picture(
    names: list[str], prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.json"
    monkeypatch.setattr(sys, "argv", ["/bin/polydraft", "bench", "--prompts", "my prompts.jsonl"])
    result = ran(
        "bench", *names, "--prompts", prompts, "--max-new-tokens", 12, "--dtype", "float32", "--json", out
    )
    content = json.loads(out.read_text())
    assert list(content["kinds"]) == ["raw", "chat"]
    assert [content["all"]["prompts"], content["kinds"]["raw"]["prompts"]] == [3, 1]
    for group in (content["all"], *content["kinds"].values()):
        assert group["identical"] is True
        assert group["identical_count"] == group["prompts"]
        assert group["plain_tokens"] == group["drafted_run_tokens"] == 12 * group["prompts"]
        assert group["eager"] is None
    rows = content["per_prompt"]
    ratios = [row["drafted_tokens_per_second"] / row["plain_tokens_per_second"] for row in rows]
    assert content["all"]["ratio"] == pytest.approx(sorted(ratios)[1])
    assert all(row["plain_cpu_seconds"] > 0 < row["drafted_cpu_seconds"] for row in rows)
    middle = sorted(row["plain_tokens_per_second"] for row in rows)[1]
    assert content["all"]["plain_tokens_per_second"] == pytest.approx(middle)
    assert [row["kind"] for row in rows] == ["raw", "chat", None]
    settings = {"model": names[1], "head": names[3], "dtype": "float32", "temperature": 0.0, "seed": None}
    assert content.items() >= settings.items()
    assert content["versions"]["polydraft"] == polydraft.__version__
    assert content["command"] == "polydraft bench --prompts 'my prompts.jsonl'"
    assert out.with_suffix(".png").exists() == can_plot()
    assert "3 of 3" in result.stdout
    assert "error" not in result.stderr


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled programs are traced and run as they are."""
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))


@pytest.mark.usefixtures("traced")
def test_bench_compiled_compares_like_for_like(names: list[str], prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    common = ("bench", *names, "--prompts", prompts, "--max-new-tokens", 6, "--dtype", "float32", "--compile")
    result = ran(*common, "--json", out)
    content = json.loads(out.read_text())
    for group in (content["all"], *content["kinds"].values()):
        eager = group["eager"]
        assert group["identical_count"] == eager["identical_count"] == group["prompts"]
        assert group["plain_tokens"] == eager["tokens"] == 6 * group["prompts"]
    rows = content["per_prompt"]
    alone = [row["plain_tokens_per_second"] / row["eager_tokens_per_second"] for row in rows]
    assert content["all"]["eager"]["plain"]["ratio"] == pytest.approx(sorted(alone)[1])
    assert "plain and drafted decoding are both compiled" in result.stdout
    assert "times as fast as plain decoding that is not compiled" in result.stdout


@pytest.mark.usefixtures("traced")
def test_generate_compares_compiled_with_compiled(names: list[str]) -> None:
    common = ("generate", *names, "--dtype", "float32", "--max-new-tokens", 6, "--compile", "--compare", "ab")
    found = json.loads(ran(*common, "--json").stdout)
    assert found["identical"] is True
    speeds = [found[f"{way}tokens_per_second"] for way in ("", "plain_", "eager_")]
    assert found["ratio"] == pytest.approx(speeds[0] / speeds[1])
    assert found["ratio_to_eager"] == pytest.approx(speeds[0] / speeds[2])
    said = ran(*common).stderr
    assert "plain, compiled too, " in said
    assert "plain, not compiled, " in said


def test_bench_at_temperature_one_claims_no_identity(names: list[str], prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    ran("bench", *names, "--prompts", prompts, "--max-new-tokens", 4, "--temperature", 1, "--json", out)
    content = json.loads(out.read_text())
    assert content["all"]["identical"] is None
    assert content["temperature"] == 1.0


def test_bench_checks_everything_before_it_loads(
    names: list[str], prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(options, "open_session", lambda **given: pytest.fail("a model was loaded"))
    common = ("bench", *names, "--prompts")
    expect_error(run(*common, prompts, "--json", tmp_path / "gone/out.json"), "does not exist")
    expect_error(run(*common, tmp_path / "gone.jsonl"), "gone.jsonl: no such file")
    expect_error(run(*common, prompts, "--max-new-tokens", 0), "max_new_tokens must be at least 1")
    (tmp_path / "bad.jsonl").write_text("{}\n")
    expect_error(run(*common, tmp_path / "bad.jsonl"), "bad.jsonl, line 1")


def test_full_disk_is_one_line_and_keeps_the_old_file(
    names: list[str], prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.json"
    out.write_text("old")

    def full(path: Path, content: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(report, "write_atomic", full)
    result = run("bench", *names, "--prompts", prompts, "--max-new-tokens", 2, "--json", out)
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == f"error: {out}: No space left on device"
    assert "Traceback" not in result.output
    assert "ratio" in result.stdout  # the figures are not lost
    assert out.read_text() == "old"


# -- inspect ----------------------------------------------------------------------------------------


def test_inspect_counts_what_the_head_has(names: list[str]) -> None:
    head = DraftHead.from_pretrained(names[3])
    found = json.loads(ran("inspect", names[3], "--json").stdout)
    assert found["parameters"] == sum(parameter.numel() for parameter in head.parameters())
    assert found["file_bytes"] == (Path(names[3]) / "model.safetensors").stat().st_size
    assert found["base_model"] == head.config.base_model
    shape = {"rank": 2, "horizon": 3, "features": "fused", "joint": "cp", "stored_as": "F32"}
    assert found.items() >= shape.items()
    table = ran("inspect", names[3]).stdout
    assert found["base_model"]["weights"] in table
    assert f"{found['parameters']:,}" in table


def test_inspect_refuses_other_folders(names: list[str], tmp_path: Path) -> None:
    expect_error(run("inspect", tmp_path), "no head folder")
    expect_error(run("inspect", tmp_path / "gone"), "no head folder")
    expect_error(run("inspect", names[1]), "holds no polydraft head")


# -- demo -------------------------------------------------------------------------------------------


def test_demo_shows_each_kind_both_ways(names: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = load_model(names[1], dtype=torch.float32)
    head = load_head(names[3], model=model, tokenizer=tokenizer)
    session = options.Session(model, tokenizer, head, torch.float32, "1 CPU thread")
    monkeypatch.setattr(options, "open_session", lambda **given: session)
    shown = ran("demo", "--max-new-tokens", 6).stdout
    assert [shown.index(f"{kind} (") for kind in demo.KINDS] == sorted(
        shown.index(f"{kind} (") for kind in demo.KINDS
    )
    assert shown.count("plain: ") == shown.count("drafted: ") == shown.count("times as fast") == 3
    assert "1 CPU thread" in shown
    assert "3 of 3" in shown


def test_demo_colours_accepted_drafts_only() -> None:
    tokenizer = tiny_tokenizer()
    tokens = tokenizer("abcd")["input_ids"]
    text = demo.coloured(Run(tokens=tokens, seconds=1.0, origins=[0, 1, 2, 0]), tokenizer)
    assert text.plain == "abcd"
    console = Console(force_terminal=True, color_system="standard", width=40)
    with console.capture() as captured:
        console.print(text, end="")
    assert captured.get() == "a\x1b[32mb\x1b[0m\x1b[36mc\x1b[0md"
    assert demo.coloured(Run(tokens=tokens, seconds=1.0), tokenizer).spans == []


# -- errors and the rest ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "fragment"),
    [
        (("generate", "MODEL", "HEAD"), "give the prompt either"),
        (("generate", "MODEL", "HEAD", "x", "--prompt-file", "y"), "give the prompt either"),
        (("generate", "MODEL", "HEAD", "--prompt-file", "/gone/x"), "/gone/x: no such file"),
        (("generate", "MODEL", "HEAD", ""), "the prompt is empty"),
        (("generate", "MODEL", "HEAD", "x", "--dtype", "int4"), "unknown dtype 'int4'"),
        (("generate", "MODEL", "HEAD", "x", "--threads", "0"), "threads must be at least 1"),
        (("generate", "MODEL", "HEAD", "x", "--top-p", "2"), "top_p must be"),
        (("generate", "--model", "./gone", "HEAD", "x"), "no model folder at './gone'"),
        (("generate", "MODEL", "--head", "./gone", "x"), "no head folder at './gone'"),
    ],
)
def test_input_errors_are_one_line(names: list[str], args: tuple[str, ...], fragment: str) -> None:
    known = {"MODEL": names[:2], "HEAD": names[2:]}
    expect_error(run(*(word for arg in args for word in known.get(arg, [arg]))), fragment)


def test_head_for_another_model_is_one_line(names: list[str], tmp_path: Path) -> None:
    other = tiny_folder(tmp_path / "other", seed=5)
    expect_error(run("generate", "--model", other, *names[2:], "x"), "trained for")


def test_usage_errors_exit_with_2() -> None:
    for args in (
        ["generate"],
        ["bench", "--model", "x"],
        ["generate", "--no-such-option"],
        ["no-such-command"],
    ):
        result = run(*args)
        assert result.exit_code == 2
        assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("raised", "code", "line"),
    [
        (KeyboardInterrupt(), 130, "error: interrupted"),
        (polydraft.PolydraftError("two\nlines"), 1, "error: two lines"),
        (polydraft.InputError("bad"), 2, "error: bad"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), 1, "error: /x: Permission denied"),
    ],
)
def test_exit_codes(
    names: list[str], monkeypatch: pytest.MonkeyPatch, raised: BaseException, code: int, line: str
) -> None:
    def fail(self: Prompt, tokenizer: Any) -> list[int]:
        raise raised

    monkeypatch.setattr(Prompt, "encode", fail)
    result = run("generate", *names, "x")
    assert (result.exit_code, result.stdout) == (code, "")
    assert result.stderr == line + "\n"


def test_version_and_complete_help() -> None:
    assert ran("--version").stdout == f"polydraft {polydraft.__version__}\n"
    commands = ran("--help").stdout
    for name in ("generate", "bench", "inspect", "demo"):
        assert name in commands
        assert "--help" in ran(name, "--help").stdout


def test_help_loads_no_torch() -> None:
    code = "import sys, polydraft.cli; sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.real_model
@pytest.mark.slow
def test_demo_of_the_shipped_head() -> None:
    shown = ran("demo", "--max-new-tokens", 12).stdout
    assert shown.count("times as fast") == 3
    assert "smollm2-135m-instruct, bfloat16, greedy" in shown
