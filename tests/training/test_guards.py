"""Runs that stop at numbers that are not finite, and the report of components that do nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from polydraft.errors import PolydraftError
from polydraft.loading import load_head
from polydraft.training import guards, losses
from polydraft.training.curves import panels
from polydraft.training.guards import check_gradients, check_loss, dead_components, gate_figures
from tests.tiny import tiny_model, tiny_tokenizer
from tests.training.runs import StopAt, Stopped, run, write_corpus

NAN = float("nan")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "text.jsonl")


class TestLoss:
    def test_names_the_terms(self, tmp_path: Path) -> None:
        terms = {"nll": torch.tensor(3.0), "kl": torch.tensor(NAN), "tv": torch.tensor(float("inf"))}
        with pytest.raises(
            PolydraftError, match=r"^step 7: the loss \(kl, tv\) is not finite: .*rate"
        ) as caught:
            check_loss(torch.tensor(NAN), terms, step=7, checkpoints=tmp_path / "none")
        assert "\n" not in str(caught.value) and "--init-from" not in str(caught.value)
        assert caught.value.exit_code == 1

    def test_terms_that_overflow_together(self, tmp_path: Path) -> None:
        with pytest.raises(PolydraftError, match="sum of its terms"):
            check_loss(torch.tensor(NAN), {"nll": torch.tensor(1.0)}, step=1, checkpoints=tmp_path)

    def test_a_finite_loss_passes(self, tmp_path: Path) -> None:
        check_loss(torch.tensor(1.0), {"nll": torch.tensor(1.0)}, step=1, checkpoints=tmp_path)


class TestGradients:
    def model(self) -> nn.Module:
        model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
        model(torch.ones(1, 3)).sum().backward()
        return model

    def test_names_the_parameter(self, tmp_path: Path) -> None:
        model = self.model()
        check_gradients(model, step=2, checkpoints=tmp_path)
        for name, parameter in model.named_parameters():
            if name.startswith("1."):
                assert parameter.grad is not None
                parameter.grad[0] = float("inf")
        (tmp_path / "checkpoint-4").mkdir()
        with pytest.raises(PolydraftError) as caught:
            check_gradients(model, step=5, checkpoints=tmp_path)
        assert str(caught.value).startswith("step 5: the gradient of 1.weight and 1 more is not finite: ")
        assert str(caught.value).endswith(
            f"--init-from {tmp_path}/checkpoint-4 goes on from the last checkpoint"
        )

    def test_parameters_without_a_gradient_are_passed_over(self, tmp_path: Path) -> None:
        check_gradients(nn.Linear(2, 2), step=1, checkpoints=tmp_path)


class TestRuns:
    @pytest.mark.parametrize("term", ["nll", "balance"])
    def test_a_bad_loss_stops_and_keeps_the_checkpoint(
        self, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, term: str
    ) -> None:
        """The term turns NaN in the forward of step 6; the checkpoint of step 4 starts another run."""
        calls = 0
        whole = losses.head_losses

        def broken(*args: Any, **rest: Any) -> losses.Losses:
            nonlocal calls
            calls += 1
            found = whole(*args, **rest)
            bad = getattr(found, term) * NAN
            return found._replace(total=found.total * NAN, **{term: bad}) if calls == 6 else found

        monkeypatch.setattr("polydraft.training.objective.head_losses", broken)
        out = tmp_path / "head"
        with pytest.raises(PolydraftError, match=rf"^step 6: the loss \({term}\) is not finite") as caught:
            run(data, out, loss="joint")
        monkeypatch.undo()
        checkpoint = out / "checkpoints" / "checkpoint-4"
        assert f"--init-from {checkpoint} " in str(caught.value)
        assert (checkpoint / "model.safetensors").exists() and not (out / "config.json").exists()
        self.goes_on(checkpoint, data, tmp_path / "again")

    def goes_on(self, checkpoint: Path, data: Path, out: Path) -> None:
        tokenizer = tiny_tokenizer()
        model = tiny_model(vocab_size=len(tokenizer))
        run(
            data, out, model=model, steps=2, init_from=load_head(checkpoint, model=model, tokenizer=tokenizer)
        )

    def test_a_bad_gradient_stops_before_the_weights_change(self, data: Path, tmp_path: Path) -> None:
        """The backward of step 3 gives an infinite gradient to one parameter, which clipping would spread."""
        seen: dict[str, Tensor] = {}

        class Break(StopAt):
            def on_step_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
                head = rest["model"].head
                if state.global_step == 2:
                    seen.update({k: v.clone() for k, v in head.state_dict().items()})
                    head.gate.bias.register_hook(lambda grad: grad * float("inf"))
                    seen["head"] = head

        with pytest.raises(PolydraftError, match=r"^step 3: the gradient of head\.gate\.bias is not finite"):
            run(data, tmp_path / "head", callbacks=[Break(99)])
        head: Any = seen.pop("head")
        assert all(torch.equal(value, seen[name]) for name, value in head.state_dict().items())


def row(step: int, load: list[float], likeliest: list[float] | None = None) -> dict[str, float]:
    rows = 1e6 if likeliest else 0.0
    return {"step": step, **gate_figures(torch.tensor(load), torch.tensor(likeliest or load), rows=rows)}


class TestDeadComponents:
    def test_found_once_by_weight_or_by_positions(self) -> None:
        history = [
            row(20, [0.0, 0.5, 0.5], [0.0, 0.5, 0.5]),
            {"step": 40, "eval_nll": 3.0},
            row(40, [0.4, 0.3, 0.3], [0.4, 0.6, 0.0]),
            row(60, [0.4, 0.002, 0.598], [0.4, 0.3, 0.0]),
        ]
        found = dead_components(history, warmup=20)
        assert [(d.component, d.step) for d in found] == [(2, 60), (3, 40)]
        assert found[0].load == pytest.approx(0.002) and found[0].likeliest == pytest.approx(0.3)
        assert (
            found[1]
            .line(3)
            .startswith(
                "step 40: component 3 of 3 is dead: mean weight 30.00%, the likeliest at 0.00% of positions; "
            )
        )

    def test_the_bar_is_one_percent_of_a_fair_share(self) -> None:
        share = 0.01 / 2
        assert not dead_components([row(2, [share * 1.01, 1 - share])], warmup=1)
        assert dead_components([row(2, [share * 0.99, 1 - share])], warmup=1)

    def test_few_positions_do_not_tell(self) -> None:
        few = gate_figures(torch.tensor([0.5, 0.5]), torch.tensor([1.0, 0.0]), rows=199)
        assert few == {"load_1": 0.5, "load_2": 0.5}
        assert not dead_components([{"step": 9, **few}], warmup=0)

    def test_one_component_is_never_dead(self) -> None:
        assert not dead_components([row(5, [1.0], [1.0])], warmup=0)

    @pytest.mark.parametrize("killed", [False, True])
    def test_a_run_says_so_once_and_records_it(
        self, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed: bool
    ) -> None:
        """Component 2 gets no weight from the start on; a resumed run does not say so again."""
        monkeypatch.setattr("polydraft.joint.gate.LinearGate.scores", without_the_second)
        said: list[str] = []
        out = tmp_path / "head"
        options = {"rank": 3, "joint": "cp", "balance": 0.0, "every": 4, "on_note": said.append}
        if killed:
            with pytest.raises(Stopped):
                run(data, out, callbacks=[StopAt(9)], **options)
        run(data, out, resume=killed, **options)
        found = [line for line in said if "is dead" in line]
        assert len(found) == 1 and found[0].startswith("step 4: component 2 of 3 is dead: mean weight 0.00%")
        assert "--balance" in found[0] and "polydraft prune" in found[0]
        (dead,) = json.loads((out / "training.json").read_text())["dead_components"]
        assert (dead["component"], dead["step"]) == (2, 4)
        provenance = json.loads((out / "config.json").read_text())["provenance"]
        assert provenance["dead_components"] == [dead]

    def test_a_run_without_any_says_nothing(self, data: Path, tmp_path: Path) -> None:
        said: list[str] = []
        run(data, tmp_path / "head", on_note=said.append, steps=4)
        assert not any("dead" in line for line in said)
        assert "dead_components" not in json.loads((tmp_path / "head" / "training.json").read_text())


def without_the_second(gate: Any, features: Tensor) -> Tensor:
    scores = nn.functional.linear(features, gate.weight, gate.bias).float()
    return scores - 30.0 * nn.functional.one_hot(torch.tensor(1), scores.shape[-1])


def test_load_and_leaders_are_those_of_all_anchors_of_the_window(data: Path, tmp_path: Path) -> None:
    """The logged means weigh micro-batches by their anchors."""
    seen: list[tuple[int, Tensor, Tensor]] = []
    whole = losses.head_losses

    def watched(head: Any, anchors: Any, *args: Any, **rest: Any) -> losses.Losses:
        scores = head.gate.scores(anchors.features(head)).detach()
        seen.append((len(scores), scores.softmax(-1).sum(0), (scores == scores.amax(-1, True)).sum(0)))
        return whole(head, anchors, *args, **rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("polydraft.training.objective.head_losses", watched)
        patch.setattr(guards, "ROWS", 1)
        run(data, tmp_path / "head", steps=4, accumulate=2)
    history = json.loads((tmp_path / "head" / "training.json").read_text())["history"]
    (logged,) = [row for row in history if "load_1" in row]
    anchors = sum(count for count, _, _ in seen)
    assert len(seen) == 8
    for a in range(2):
        load = sum(float(load[a]) for _, load, _ in seen) / anchors
        leads = sum(float(leads[a]) for _, _, leads in seen) / anchors
        assert logged[f"load_{a + 1}"] == pytest.approx(load, abs=1e-5)
        assert logged[f"likeliest_{a + 1}"] == pytest.approx(leads, abs=1e-5)


def test_panels_show_what_there_is() -> None:
    history = [
        row(4, [0.4, 0.6], [0.1, 0.9]) | {"loss": 1.0, "loss_nll": 2.0},
        {"step": 4, "eval_nll": 2.0, "eval_nll_1": 1.0, "eval_nll_10": 0.5, "eval_nll_2": 0.5},
        {"step": 4, "eval_sampled_acceptance_length": 1.5},
    ]
    shown = dict(panels(history))
    assert shown["held-out nats per position"] == [
        ("eval_nll_1", "1"),
        ("eval_nll_2", "2"),
        ("eval_nll_10", "10"),
    ]
    assert shown["held-out tokens per step"] == [("eval_sampled_acceptance_length", "sampled")]
    assert [key for key, _ in shown["share led by each component"]] == ["likeliest_1", "likeliest_2"]
    assert "base model, held-out nats per token" not in shown
    assert not any("component" in title for title, _ in panels([row(4, [1.0], [1.0])]))
