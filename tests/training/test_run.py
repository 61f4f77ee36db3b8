"""A whole training run: it learns, records where it came from, and survives being killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from polydraft.errors import InputError, PolydraftError
from polydraft.heads import DraftHead
from polydraft.training.data import data_hash, read_documents
from polydraft.training.folder import describe_head, last_complete_checkpoint
from polydraft.versions import versions
from tests.tiny import tiny_head, tiny_model, tiny_tokenizer
from tests.training.runs import DEFAULTS, StopAt, Stopped, run, same_weights, weights, write_corpus

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "corpus.jsonl")


@pytest.fixture(scope="module")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "head"
    run(data, out, command="polydraft train --some options")
    return out


def record(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "training.json").read_text())
    return found


def held_out(out: Path) -> list[dict[str, Any]]:
    """The rows of held-out figures."""
    return [row for row in record(out)["history"] if "eval_nll" in row]


# -- what a run makes ------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["joint", "distill"])
def test_it_learns(data: Path, tmp_path: Path, loss: str) -> None:
    run(data, tmp_path / "head", loss=loss, steps=60, every=30, warmup=5, learning_rate=2e-2)
    run(data, tmp_path / "start", loss=loss, steps=1, every=1, learning_rate=1e-9)
    before, after = (held_out(tmp_path / name)[-1]["eval_nll"] for name in ("start", "head"))
    assert after < (0.5 if loss == "joint" else 0.9) * before


def test_the_folder_is_a_head_with_its_record(undisturbed: Path, data: Path) -> None:
    assert {p.name for p in undisturbed.iterdir()} == {
        "config.json",
        "model.safetensors",
        "run.json",
        "training.json",
    }
    tokenizer = tiny_tokenizer()
    head = DraftHead.from_pretrained(undisturbed)
    head.attach(tiny_model(vocab_size=len(tokenizer)), tokenizer)
    provenance = head.config.provenance
    assert provenance is not None
    assert provenance["command"] == "polydraft train --some options"
    assert provenance["data"] == data_hash(read_documents([data], tokenizer))
    assert provenance["versions"] == versions()
    assert {"nll", "nll_1", "nll_2", "coverage", "greedy_acceptance_length"} <= set(provenance["held_out"])
    assert provenance["peak_memory_mib"] > 50
    assert record(undisturbed)["options"]["rank"] == 2


def test_history_has_every_curve(undisturbed: Path) -> None:
    history = record(undisturbed)["history"]
    assert [row["step"] for row in held_out(undisturbed)] == [4, 8, 12, 14]
    training = [row for row in history if "loss" in row]
    assert [row["step"] for row in training] == [4, 8, 12]
    for row in training:
        assert row["positions_per_second"] > 0
        assert row["load_1"] + row["load_2"] == pytest.approx(1, abs=1e-3)


def test_the_base_model_is_left_alone(data: Path, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    model = tiny_model(vocab_size=len(tokenizer))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    run(data, tmp_path / "head", model=model, steps=2)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(p.requires_grad for p in model.parameters())


def test_a_bfloat16_base_trains_in_float32_and_ships_bfloat16(data: Path, tmp_path: Path) -> None:
    seen: list[torch.dtype] = []

    class Look(TrainerCallback):
        def on_step_end(self, *args: Any, model: Any, **rest: Any) -> None:
            seen.extend(p.dtype for p in model.parameters())

    model = tiny_model(vocab_size=len(tiny_tokenizer())).to(torch.bfloat16)  # type: ignore[arg-type]
    run(data, tmp_path / "head", model=model, steps=2, callbacks=[Look()])
    assert set(seen) == {torch.float32}
    shipped = {v.dtype for v in weights(tmp_path / "head").values() if v.is_floating_point()}
    assert shipped == {torch.bfloat16}


def test_cached_states_train_the_same_head(data: Path, tmp_path: Path, undisturbed: Path) -> None:
    run(data, tmp_path / "head", cache=tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 2
    expected = weights(undisturbed)
    for name, value in weights(tmp_path / "head").items():
        assert torch.allclose(value, expected[name], atol=1e-3), name


# -- kill and resume ------------------------------------------------------------------------------


def test_the_same_run_twice_is_bit_equal(data: Path, tmp_path: Path, undisturbed: Path) -> None:
    run(data, tmp_path / "head")
    assert same_weights(tmp_path / "head", undisturbed)
    run(data, tmp_path / "other", seed=1)
    assert not same_weights(tmp_path / "other", undisturbed)


@pytest.mark.parametrize("step", [3, 5, 10, 13])
def test_a_run_that_broke_off_ends_in_the_same_weights(
    data: Path, tmp_path: Path, undisturbed: Path, step: int
) -> None:
    out = tmp_path / "head"
    with pytest.raises(Stopped):
        run(data, out, callbacks=[StopAt(step)])
    found = last_complete_checkpoint(out / "checkpoints")
    assert (found or "").endswith(f"checkpoint-{step // 4 * 4}") or (step < 4 and found is None)
    run(data, out, resume=True)
    assert same_weights(out, undisturbed)
    assert [row["step"] for row in held_out(out)] == [4, 8, 12, 14]


def test_a_run_that_broke_off_twice(data: Path, tmp_path: Path, undisturbed: Path) -> None:
    out = tmp_path / "head"
    for step, resume in ((5, False), (9, True)):
        with pytest.raises(Stopped):
            run(data, out, resume=resume, callbacks=[StopAt(step)])
    run(data, out, resume=True)
    assert same_weights(out, undisturbed)


@pytest.mark.parametrize("damage", ["cut", "missing"])
def test_a_checkpoint_cut_short_is_skipped(
    data: Path, tmp_path: Path, undisturbed: Path, damage: str
) -> None:
    out = tmp_path / "head"
    with pytest.raises(Stopped):
        run(data, out, callbacks=[StopAt(10)])
    state = out / "checkpoints" / "checkpoint-8" / "trainer_state.json"
    if damage == "cut":
        state.write_text(state.read_text()[:100])
    else:
        state.unlink()
        (state.parent / "model.safetensors").write_bytes(b"half")
    run(data, out, resume=True)
    assert same_weights(out, undisturbed)


def test_a_run_that_broke_off_while_it_wrote_the_head(
    data: Path, tmp_path: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: DraftHead, path: Path, **rest: Any) -> None:
        if Path(path).name == "final":
            raise Stopped
        kept(self, path, **rest)

    kept = DraftHead.save_pretrained
    out = tmp_path / "head"
    monkeypatch.setattr(DraftHead, "save_pretrained", broken)
    with pytest.raises(Stopped):
        run(data, out)
    monkeypatch.undo()
    assert not (out / "config.json").exists()
    run(data, out, resume=True)
    assert same_weights(out, undisturbed)


@pytest.mark.slow
def test_a_killed_process_ends_in_the_same_weights(data: Path, tmp_path: Path, undisturbed: Path) -> None:
    out = tmp_path / "head"
    search = os.pathsep.join([str(ROOT), *sys.path])
    killed = subprocess.run(
        [sys.executable, "-m", "tests.training.runs", str(data), str(out), "10"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": search},
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    assert last_complete_checkpoint(out / "checkpoints") is not None
    assert not (out / "config.json").exists()
    run(data, out, resume=True)
    assert same_weights(out, undisturbed)


def test_accumulated_micro_batches_equal_one_batch(data: Path, tmp_path: Path) -> None:
    common = {"steps": 6, "balance": 0.0, "loss": "joint"}
    run(data, tmp_path / "whole", batch_size=4, accumulate=1, **common)
    run(data, tmp_path / "halves", batch_size=2, accumulate=2, **common)
    run(data, tmp_path / "other", batch_size=2, accumulate=1, **common)
    whole, halves, other = (weights(tmp_path / name) for name in ("whole", "halves", "other"))
    for name, value in whole.items():
        assert torch.allclose(value, halves[name], atol=1e-4), name
    assert any(not torch.allclose(value, other[name], atol=1e-3) for name, value in whole.items())


# -- what is refused ------------------------------------------------------------------------------


class TestRefused:
    def expect(self, fragment: str, data: Path, out: Path, **changes: Any) -> None:
        with pytest.raises(InputError) as error:
            run(data, out, **changes)
        assert fragment in str(error.value)
        assert "\n" not in str(error.value)

    def test_a_folder_of_something_else(self, data: Path, tmp_path: Path) -> None:
        (tmp_path / "notes.txt").write_text("mine")
        self.expect("is not empty and holds no training run", data, tmp_path)
        self.expect("is not empty and holds no training run", data, tmp_path, resume=True)
        assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]

    def test_a_finished_run(self, data: Path, undisturbed: Path) -> None:
        before = weights(undisturbed)
        for resume in (False, True):
            self.expect("holds a finished run", data, undisturbed, resume=resume)
        assert all(torch.equal(value, before[name]) for name, value in weights(undisturbed).items())

    def test_nothing_to_resume(self, data: Path, tmp_path: Path) -> None:
        self.expect("holds no training run to resume", data, tmp_path / "head", resume=True)
        assert not (tmp_path / "head").exists()

    def test_a_run_that_is_under_way(self, data: Path, tmp_path: Path) -> None:
        out = tmp_path / "head"
        with pytest.raises(Stopped):
            run(data, out, callbacks=[StopAt(5)])
        self.expect("continue it with --resume", data, out)
        self.expect(
            "other options or data (learning_rate, seed)", data, out, resume=True, learning_rate=1e-4, seed=3
        )
        more = write_corpus(tmp_path / "more.jsonl", count=31)
        self.expect("other options or data (data)", more, out, resume=True)
        double = tiny_model(vocab_size=len(tiny_tokenizer())).to(torch.bfloat16)  # type: ignore[arg-type]
        self.expect("other options or data (dtype)", data, out, resume=True, model=double)
        other = tiny_model(vocab_size=len(tiny_tokenizer()), seed=1)
        self.expect("has another weights", data, out, resume=True, model=other)

    @pytest.mark.parametrize(
        ("changes", "fragment"),
        [
            ({"rank": 0}, "rank must be"),
            ({"horizon": 0}, "horizon must be"),
            ({"joint": "tt"}, "joint must be one of"),
            ({"features": "none"}, "features must be one of"),
            ({"map_rank": -1}, "map_rank must be"),
            ({"steps": 0}, "steps must be at least 1"),
            ({"batch_size": 0}, "batch_size must be at least 1"),
            ({"accumulate": 0}, "accumulate must be at least 1"),
            ({"every": 0}, "every must be at least 1"),
            ({"max_length": 2}, "max_length must be at least 3"),
            ({"learning_rate": 0.0}, "learning_rate must be above 0"),
            ({"discount": 0.0}, "discount must be"),
            ({"balance": -1.0}, "balance must be"),
            ({"held_out": 1.0}, "between 0 and 1"),
            ({"warmup": -1}, "warmup must be 0 or more"),
            ({"weight_decay": -0.1}, "weight_decay must be 0 or more"),
            ({"scheduler": "reduce_lr_on_plateau"}, "scheduler must be one of linear, cosine"),
            ({"draft_vocab": "new"}, "draft_vocab must be one of kept, data"),
            ({"draft_vocab": "data", "own_unembedding": True}, "draft_vocab 'data' needs"),
            ({"mixed_precision": "fp8"}, "mixed_precision must be one of no, bf16, fp16"),
            ({"mixed_precision": "fp16"}, "needs a GPU"),
            ({"fsdp": True}, "start it with torchrun"),
            ({"report_to": ("nonsense",)}, "--report-to nonsense: not known or not installed"),
            ({"loss": "other"}, "loss must be one of joint, distill"),
        ],
    )
    def test_bad_options_leave_no_folder(
        self, data: Path, tmp_path: Path, changes: dict[str, Any], fragment: str
    ) -> None:
        self.expect(fragment, data, tmp_path / "head", **changes)
        assert not (tmp_path / "head").exists()

    def test_soft_capped_logits_cannot_be_cached(self, data: Path, tmp_path: Path) -> None:
        model = tiny_model("gemma2", vocab_size=len(tiny_tokenizer()))
        self.expect("--cache-hidden", data, tmp_path / "head", model=model, cache=tmp_path / "cache")
        assert not (tmp_path / "head").exists()

    def test_text_without_anything_to_learn(self, tmp_path: Path) -> None:
        rows = [{"input_ids": [i, 2, 3], "prompt_length": 2} for i in range(9)]
        path = tmp_path / "a.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        self.expect("the data is too short", path, tmp_path / "head")


def test_a_loss_that_is_not_finite_stops_with_the_step(data: Path, tmp_path: Path) -> None:
    class Spoil(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, *, model: Any, **rest: Any) -> None:
            if state.global_step == 5:
                model.head.gate.bias.data.fill_(float("nan"))

    with pytest.raises(PolydraftError, match=r"^step 6: the loss \(.*nll.*\) is not finite: ") as error:
        run(data, tmp_path / "head", callbacks=[Spoil()])
    assert "\n" not in str(error.value)


def test_a_run_continues_from_the_head_it_began_with(data: Path, tmp_path: Path) -> None:
    model = tiny_model(vocab_size=len(tiny_tokenizer()))
    fields = {name: DEFAULTS[name] for name in ("horizon", "feature_size", "map_rank", "draft_vocab_size")}
    first, other = (tiny_head(model, rank=2, seed=seed, **fields) for seed in (1, 2))
    out = tmp_path / "head"
    with pytest.raises(Stopped):
        run(data, out, model=model, init_from=first, callbacks=[StopAt(5)])
    begun = json.loads((out / "run.json").read_text())
    assert begun["init_from"] == describe_head(first)
    assert begun["dtype"] == "float32"
    for wrong in (other, None):
        with pytest.raises(InputError, match=r"other options or data \(init_from\)"):
            run(data, out, model=model, init_from=wrong, resume=True)
    first.name_or_path = first.config.name_or_path = "moved"
    run(data, out, model=model, init_from=first, resume=True)


# -- growing --------------------------------------------------------------------------------------


def test_a_run_grows_a_head(data: Path, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    model = tiny_model(vocab_size=len(tokenizer))
    trained = run(data, tmp_path / "one", rank=1, model=model, loss="joint", steps=20, learning_rate=2e-2)
    run(data, tmp_path / "three", rank=3, model=model, init_from=trained, loss="joint", steps=4)
    one, three = (held_out(tmp_path / name) for name in ("one", "three"))
    assert three[-1]["eval_nll"] < min(one[0]["eval_nll"], one[-1]["eval_nll"] + 0.2)
    shutil.rmtree(tmp_path / "three")
    with pytest.raises(InputError, match="above this run's 1"):
        run(data, tmp_path / "less", rank=1, model=model, init_from=tiny_head(model, horizon=2, rank=2,
            feature_size=16, map_rank=4, draft_vocab_size=DEFAULTS["draft_vocab_size"]))  # fmt: skip
    assert not (tmp_path / "less").exists()
