"""Text written as training goes on: which, when, again after a kill; and what goes with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from polydraft.cli import app
from polydraft.errors import InputError
from polydraft.training import rounds
from polydraft.training.collect import write_batch
from polydraft.training.data import Document
from polydraft.training.online import Online, check_online, parse_online
from polydraft.training.options import TrainOptions
from polydraft.training.rounds import OnlineDataset, Writer
from polydraft.training.run import train
from tests.tiny import tiny_folder, tiny_model, tiny_tokenizer
from tests.training.runs import DEFAULTS, StopAt, Stopped, same_weights

TOKENIZER = tiny_tokenizer()
PROMPTS = tuple({"prompt": "ab" * (1 + i % 3) + f"{i:02d}"} for i in range(23))
OPTIONS = TrainOptions(**DEFAULTS | {"rank": 1, "max_length": 24, "batch_size": 4, "steps": 14})


def online(**changes: Any) -> Online:
    fields: dict[str, Any] = {"prompts": PROMPTS, "round_size": 8, "max_new_tokens": 10}
    return Online(**fields | changes)


def writer(**changes: Any) -> Writer:
    return Writer(tiny_model(vocab_size=len(TOKENIZER)), TOKENIZER, online(**changes), OPTIONS)


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[list[tuple[int, ...]]]:
    """The prompts of every batch that is written from here on."""
    batches: list[list[tuple[int, ...]]] = []
    real = write_batch

    def noted(model: Any, batch: Any, **options: Any) -> Any:
        batches.append([tuple(ids) for ids, _ in batch])
        return real(model, batch, **options)

    monkeypatch.setattr(rounds, "write_batch", noted)
    return batches


class TestRounds:
    def test_a_pass_sees_every_prompt_once_and_the_next_in_another_order(self, written: Any) -> None:
        texts = writer()
        assert (len(texts.rows), len(texts.reserved)) == (18, 5)  # 0.2 of 23 held out
        for number in range(4):
            texts.round(number)
        for one_pass in (written[:2], written[2:]):
            assert [len(batch) for batch in one_pass] == [8, 8]
            assert len({*one_pass[0], *one_pass[1]}) == 16
        training = {tuple(d.input_ids) for d in texts.rows}
        assert all(set(batch) <= training for batch in written)
        assert written[:2] != written[2:]

    def test_a_round_depends_on_seed_and_number_alone(self) -> None:
        first, second = writer(), writer()
        expected = [first.round(number) for number in range(3)]
        torch.rand(3)
        state = torch.get_rng_state()
        assert second.round(2) == expected[2]
        assert second.round(1) == expected[1]
        assert torch.equal(torch.get_rng_state(), state)
        other = Writer(first.model, TOKENIZER, first.online, TrainOptions(**vars(OPTIONS) | {"seed": 1}))
        assert other.round(1) != expected[1]

    def test_documents_hold_prompt_text_and_temperature(self) -> None:
        texts = writer(temperatures=(0.0, 0.7))
        prompts = {tuple(d.input_ids) for d in texts.rows}
        for number in range(3):
            found = texts.round(number)
            temperatures = [d.temperature for d in found]
            assert temperatures == [(0.0, 0.7)[(number + place) % 2] for place in range(8)]
            assert all(tuple(d.input_ids[: d.learn_from]) in prompts for d in found)
            assert {len(d.input_ids) - d.learn_from for d in found} == {10}

    def test_held_out_texts_have_prompts_and_temperatures_of_their_own(self) -> None:
        texts = writer(temperatures=(1.0, 0.0, 1.0))
        found = texts.held_out()
        assert found == writer(temperatures=(1.0, 0.0, 1.0)).held_out()
        prompts = sorted(tuple(d.input_ids) for d in texts.reserved)
        for temperature in (0.0, 1.0):
            own = [d for d in found if d.temperature == temperature]
            assert sorted(tuple(d.input_ids[: d.learn_from]) for d in own) == prompts
        assert not {tuple(d.input_ids) for d in texts.reserved} & {tuple(d.input_ids) for d in texts.rows}

    def test_few_prompts_make_small_rounds(self) -> None:
        texts = writer(round_size=96)
        assert len(texts.round(0)) == texts.size == len(texts.rows) == 18

    def test_texts_that_end_at_once_are_left_out(self, monkeypatch: pytest.MonkeyPatch) -> None:
        texts = writer()
        whole = texts.round(0)

        def cut_short(model: Any, batch: Any, **rest: Any) -> Any:
            return [
                {"input_ids": [*ids, 70], "prompt_length": len(ids), "temperature": 0.0} for ids, _ in batch
            ]

        monkeypatch.setattr(rounds, "write_batch", cut_short)
        with pytest.raises(InputError, match="round 1: the model ended all texts at once"):
            texts.round(1)
        with pytest.raises(InputError, match="ends every held-out text at once"):
            texts.held_out()
        assert texts.round(0) == whole


def seen(data: OnlineDataset) -> list[Document]:
    return [Document(row["input_ids"], row["learn_from"], row["temperature"]) for row in data]  # type: ignore[attr-defined]


class TestOrder:
    @pytest.mark.parametrize("epochs", [1, 3])
    def test_every_round_is_learnt_from_so_many_times(self, epochs: int, written: Any) -> None:
        texts = writer(epochs=epochs)
        data = OnlineDataset(texts, OPTIONS)
        assert len(data) == 14 * 4
        documents = [data[i] for i in range(len(data))]
        assert len(written) == -(-56 // (8 * epochs))
        again = writer(epochs=epochs)
        for number in range(56 // (8 * epochs)):
            part = documents[number * 8 * epochs : (number + 1) * 8 * epochs]
            expected = [d.input_ids for d in again.round(number)]
            for epoch in range(epochs):
                ids = [row["input_ids"] for row in part[8 * epoch : 8 * epoch + 8]]
                assert sorted(ids) == sorted(expected)

    def test_any_index_first(self) -> None:
        data, other = OnlineDataset(writer(epochs=2), OPTIONS), OnlineDataset(writer(epochs=2), OPTIONS)
        expected = [data[i] for i in range(len(data))]
        assert [other[i] for i in (40, 3, 55)] == [expected[i] for i in (40, 3, 55)]

    def test_processes_write_rounds_of_their_own(self, written: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("WORLD_SIZE", "2")
        alone = writer()
        shares = []
        for process in (0, 1):
            data = OnlineDataset(writer(), OPTIONS)
            assert len(data) == 2 * 14 * 4
            micro_batches = range(process, len(data) // 4, 2)
            before = len(written)
            rows = [data[4 * m + i] for m in micro_batches for i in range(4)]
            shares.append(len(written) - before)
            expected = [d.input_ids for n in range(process, 14, 2) for d in alone.round(n)]
            del written[before + shares[-1] :]
            assert sorted(row["input_ids"] for row in rows) == sorted(expected)
        assert shares == [7, 7]


def run(out: Path, *, resume: bool = False, callbacks: Any = (), **changes: Any) -> None:
    train(
        tiny_model(vocab_size=len(TOKENIZER)),
        TOKENIZER,
        online(**changes),
        out,
        options=TrainOptions(**DEFAULTS),
        resume=resume,
        callbacks=callbacks,
    )


def test_a_resumed_run_ends_in_the_same_weights_and_writes_nothing_again(
    tmp_path: Path, written: Any
) -> None:
    """Checkpoints at 4, 8 and 12; rounds of two steps, each learnt from twice: four steps."""
    run(tmp_path / "whole", epochs=2)
    whole = [batch for batch in written if len(batch) == 8]
    assert len(whole) == 4
    for stop, done in ((2, 0), (10, 2)):  # rounds behind the last checkpoint
        with pytest.raises(Stopped):
            run(tmp_path / f"cut-{stop}", epochs=2, callbacks=[StopAt(stop)])
        written.clear()
        run(tmp_path / f"cut-{stop}", epochs=2, resume=True)
        assert same_weights(tmp_path / "whole", tmp_path / f"cut-{stop}")
        assert [batch for batch in written if len(batch) == 8] == whole[done:]
        assert len(written) == 2 + len(whole) - done  # held-out texts, at two temperatures


def test_a_run_of_other_prompts_or_options_is_not_continued(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        run(tmp_path, callbacks=[StopAt(5)])
    for changes in ({"prompts": PROMPTS[:-1]}, {"temperatures": (0.0,)}, {"epochs": 2}):
        with pytest.raises(InputError, match="a run of other options or data"):
            run(tmp_path, resume=True, **changes)


class TestRefusals:
    READ: Callable[[], Any] = staticmethod(lambda: PROMPTS)
    NOTHING: dict[str, Any] = {"epochs": None, "round_size": None}  # noqa: RUF012

    def test_words_of_the_command_line(self) -> None:
        for arguments, words in (
            ({"data": [Path("a")], "online": True, "prompts": self.READ}, "leave --data out, or --online"),
            ({"data": [], "online": True, "prompts": None}, "--online needs --prompts FILE"),
            ({"data": [], "online": False, "prompts": None}, "no text: give --data PATH"),
            ({"data": [Path("a")], "online": False, "prompts": self.READ}, "--prompts belongs to --online"),
        ):
            with pytest.raises(InputError, match=words):
                parse_online(options=self.NOTHING, **arguments)  # type: ignore[arg-type]
        with pytest.raises(InputError, match="--online-epochs belongs to --online"):
            parse_online(data=[Path("a")], online=False, prompts=None, options=self.NOTHING | {"epochs": 2})
        found = parse_online(data=[], online=True, prompts=self.READ, options=self.NOTHING | {"epochs": 2})
        assert found == Online(prompts=PROMPTS, epochs=2)
        assert parse_online(data=[Path("a")], online=False, prompts=None, options=self.NOTHING) is None

    def test_what_needs_text_beforehand(self) -> None:
        with pytest.raises(InputError, match="leave --cache-hidden out"):
            check_online(TrainOptions(), cached=True)
        with pytest.raises(InputError, match="--packing needs all text beforehand"):
            check_online(TrainOptions(packing=True), cached=False)
        with pytest.raises(InputError, match="--online needs --trunk frozen"):
            check_online(TrainOptions(trunk="full"), cached=False)

    def test_numbers(self) -> None:
        for changes in ({"epochs": 0}, {"round_size": 0}, {"max_new_tokens": 0}, {"temperatures": (-1.0,)}):
            with pytest.raises(InputError, match=next(iter(changes))):
                online(**changes)
        with pytest.raises(
            InputError, match="max_new_tokens 24 leave no room for a prompt in --max-length 24"
        ):
            writer(max_new_tokens=24)


def test_the_command(tmp_path: Path) -> None:
    model = tiny_folder(tmp_path / "model")
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps(row) + "\n" for row in PROMPTS))
    small = "--joint cp --rank 2 --horizon 2 --feature-size 16 --map-rank 4 --draft-vocab-size 32".split()
    small += "--steps 4 --every 2 --max-length 32 --dtype float32 --held-out 0.2".split()
    common = ["train", "--model", str(model), "--out", str(tmp_path / "out"), *small, "--online"]
    runner = CliRunner(env={"COLUMNS": "200"})
    refused = runner.invoke(app, common)
    assert refused.exit_code == 2
    assert refused.stderr.splitlines()[-1] == "error: --online needs --prompts FILE"
    more = ["--prompts", str(prompts), "--online-batch", "8", "--max-new-tokens", "10", "--temperature", "0"]
    done = runner.invoke(app, [*common, *more])
    assert done.exit_code == 0, done.output
    assert "18 prompts to write from, 8 at a time; 5 texts held out" in done.stderr
    assert "step 4, held out: nll " in done.stderr
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["online"] == {
        "epochs": 1, "round_size": 8, "temperatures": [0.0], "max_new_tokens": 10,
    }  # fmt: skip
