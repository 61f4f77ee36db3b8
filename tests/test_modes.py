"""The choices of verification and drafting at every door, and greedy drafts of the likeliest components."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel
from typer.testing import CliRunner

import polydraft
from polydraft.bench.runs import Sampling, run_drafted
from polydraft.cli import app
from polydraft.decoding.engine import Engine
from polydraft.errors import InputError
from polydraft.heads import DraftHead
from polydraft.modes import VERIFICATIONS
from tests.tiny import tiny_folder, tiny_head, tiny_model, tiny_tokenizer

PROMPT = torch.tensor([[5, 6, 7, 8]])


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return tiny_model()


def plain(model: PreTrainedModel, **options: Any) -> Tensor:
    out: Tensor = cast(Any, model).generate(PROMPT, do_sample=False, **options)
    return out


def by_decoder(model: PreTrainedModel, head: DraftHead, **options: Any) -> Any:
    """The choices given to `decoder`, the rest to `model.generate`."""
    modes = {name: options.pop(name) for name in ("verification", "drafting") if name in options}
    return cast(Any, model).generate(PROMPT, custom_generate=polydraft.decoder(head, **modes), **options)


def by_generate(model: PreTrainedModel, head: DraftHead, **options: Any) -> Any:
    return polydraft.generate(model, head, PROMPT, **options)


def by_engine(model: PreTrainedModel, head: DraftHead, **options: Any) -> Any:
    del options["max_new_tokens"]
    given: dict[str, Any] = {"do_sample": False, "processors": [], "generator": None} | options
    return Engine(head, **given)


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "verification": ({}, {"verification": "all"}, "verification must be one of token, block, got 'all'"),
    "drafting": ({}, {"drafting": "beam"}, "drafting must be one of auto, tree, chain, got"),
}


@pytest.mark.parametrize("door", [by_decoder, by_generate, by_engine])
@pytest.mark.parametrize(("head", "options", "line"), REFUSED.values(), ids=REFUSED)
def test_refusals(
    model: PreTrainedModel,
    door: Callable[..., Any],
    head: dict[str, Any],
    options: dict[str, Any],
    line: str,
) -> None:
    with pytest.raises(InputError) as caught:
        door(model, tiny_head(model, **head), max_new_tokens=4, **options)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_sampling_options_refuse_them_too() -> None:
    for options, line in (
        ({"verification": "all"}, "verification must be one of token, block"),
        ({"drafting": "beam"}, "drafting must be one of auto, tree, chain"),
    ):
        with pytest.raises(InputError, match=line):
            Sampling(**cast(dict[str, Any], options))


@pytest.mark.parametrize("features", ["fused", "hidden"])
@pytest.mark.parametrize("verification", VERIFICATIONS)
def test_sampled_to_any_length(model: PreTrainedModel, verification: str, features: str) -> None:
    head = tiny_head(model, horizon=4, features=features, draft_vocab_size=40)
    accepted = 0
    for count in (1, 2, 3, 4, 5, 6, 40):
        out = polydraft.generate(
            model, head, PROMPT, max_new_tokens=count, do_sample=True, top_k=5, verification=verification
        )
        assert out.sequences is not None and out.statistics is not None
        assert out.sequences.shape[1] == PROMPT.shape[1] + count
        accepted += out.statistics.accepted_tokens
    assert accepted > 0


@pytest.mark.parametrize("verification", VERIFICATIONS)
def test_greedy_text_knows_no_verification(model: PreTrainedModel, verification: str) -> None:
    head = tiny_head(model)
    found = polydraft.generate(model, head, PROMPT, max_new_tokens=20, verification=verification).sequences
    assert found is not None
    assert found.tolist() == plain(model, max_new_tokens=20).tolist()


class TestCommands:
    @pytest.fixture(scope="class")
    @classmethod
    def names(cls, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
        root = tmp_path_factory.mktemp("modes")
        tokenizer = tiny_tokenizer()
        tiny_folder(root / "model")
        model = tiny_model(vocab_size=len(tokenizer))
        tiny_head(model, tokenizer=tokenizer).save_pretrained(root / "head")
        (root / "prompts.jsonl").write_text('{"prompt": "abc"}\n')
        return ["--model", str(root / "model"), "--head", str(root / "head"), "--dtype", "float32"]

    @pytest.mark.parametrize(
        ("options", "line"),
        [
            (["--verification", "all"], "verification must be one of token, block, got 'all'"),
            (["--drafting", "beam"], "drafting must be one of auto, tree, chain, got 'beam'"),
        ],
    )
    def test_refusals_are_one_line(self, names: list[str], options: list[str], line: str) -> None:
        prompts = str(Path(names[1]).parent / "prompts.jsonl")
        for command in (["generate", "abc"], ["bench", "--prompts", prompts]):
            result = CliRunner(env={"COLUMNS": "200"}).invoke(app, [*command, *names, *options])
            assert result.exit_code == 2
            assert result.stdout == ""
            assert line in result.stderr
            assert result.stderr.startswith("error: ")
            assert result.stderr.count("\n") == 1

    @pytest.mark.parametrize(
        ("options", "kind"),
        [
            (["--verification", "block", "--temperature", "1"], "T = 1, block verification"),
            (["--drafting", "chain"], "greedy, chain"),
        ],
    )
    def test_bench_and_generate_take_and_record_them(
        self, names: list[str], options: list[str], kind: str, tmp_path: Path
    ) -> None:
        prompts = str(Path(names[1]).parent / "prompts.jsonl")
        run = ["--max-new-tokens", "12", *names, *options]
        kept = tmp_path / "out.json"
        result = CliRunner(env={"COLUMNS": "200"}).invoke(
            app, ["bench", "--prompts", prompts, "--json", str(kept), *run]
        )
        assert result.exit_code == 0, result.output
        assert kind in " ".join(result.stdout.split())
        assert f'"{options[0].removeprefix("--")}": "{options[1]}"' in kept.read_text()
        result = CliRunner().invoke(app, ["generate", "abc", "--json", *run])
        assert result.exit_code == 0, result.output
        assert f'"{options[0].removeprefix("--")}": "{options[1]}"' in result.stdout


def test_runs_hand_the_choices_on(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []
    whole = polydraft.generate

    def watched(*args: Any, **options: Any) -> Any:
        seen.append(options)
        return whole(*args, **options)

    monkeypatch.setattr(polydraft, "generate", watched)
    for choice in ({"verification": "block", "temperature": 1.0}, {"drafting": "chain"}):
        sampling = Sampling(max_new_tokens=4, **cast(dict[str, Any], choice))
        run_drafted(model, tiny_head(model), tiny_tokenizer(), [5, 6], sampling)
        assert seen[-1].items() >= choice.items()
