"""The component report against loops over anchors, paths and tokens; the command as a user meets it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel
from typer.testing import CliRunner, Result

from lab.grid.parse import read_config
from polydraft.bench import components as room
from polydraft.bench.component_plot import plot_components
from polydraft.cli import app, components
from polydraft.heads import DraftHead
from polydraft.loading import load_model
from polydraft.training.gating import TextSample
from tests.tiny import tiny_folder, tiny_head, tiny_model, tiny_tokenizer
from tests.training.paths import FAMILY, factor, path_chances
from tests.training.plain import make_anchors, whole_joint

RANK = 3
TEXT = "the cat sat on the mat, the dog did not."
FORMS = (*({"joint": joint} for joint in FAMILY), {"features": "hidden"}, {"joint": "hmm", "horizon": 1})


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return tiny_model(vocab_size=len(tiny_tokenizer()))


def make_head(model: PreTrainedModel, **form: Any) -> DraftHead:
    """Over 30 tokens, most of those in `TEXT` among them."""
    head = tiny_head(model, rank=RANK, draft_vocab_size=30, **form)
    ids = dict.fromkeys(tiny_tokenizer()(TEXT)["input_ids"])
    head.draft_ids.copy_(torch.tensor([*list(ids)[1:], *range(200, 231 - len(ids))]))
    return head.attach(model)


def report(head: DraftHead, path: Path, **sample: int) -> dict[str, Any]:
    path.write_text(TEXT)
    tokenizer, names = tiny_tokenizer(), {"head": "h", "model": "m"}
    options = TextSample(**({"anchors_per_window": 0} | sample))
    return room.component_report(head, head._base[0], tokenizer, [path], sample=options, names=names)


class Loops:
    """The same figures, one anchor, path and token at a time."""

    def __init__(self, head: DraftHead) -> None:
        ids = torch.tensor([tiny_tokenizer()(TEXT)["input_ids"]])
        config, self.ids = head.config, ids[0]
        hidden = head._base[0](ids, output_hidden_states=True).hidden_states[-1][0, :-2]
        anchors = make_anchors(head)._replace(hidden=hidden, next_tokens=ids[0, 1:-1])
        whole, self.skip = whole_joint(head, anchors), config.positions - config.horizon
        self.weights = [[[0.0] * RANK for _ in range(config.horizon)] for _ in hidden]
        self.rows: list[dict[tuple[int, int], list[float]]] = [{} for _ in hidden]
        for i, weights in enumerate(self.weights):
            paths = path_chances(whole.latent, i)
            sampled = int(head.draft_index(self.ids[i + 1]))
            if self.skip and sampled >= 0:
                paths = {z: p * float(factor(whole, i, 0, z[0], None)[sampled]) for z, p in paths.items()}
            for path, chance in paths.items():
                for s, a in enumerate(path[self.skip :]):
                    weights[s][a] += chance / sum(paths.values())
            for s in (0, config.horizon - 1):
                place = i + 1 + s  # of the token before
                known = place < len(self.ids) and (s > 0 or self.skip > 0)
                before = head.draft_index(self.ids[place : place + 1]) if known else None
                for a in range(RANK):
                    self.rows[i][s, a] = factor(whole, i, s + self.skip, a, before).tolist()

    def mean(self, s: int, a: int) -> float:
        return sum(weights[s][a] for weights in self.weights) / len(self.weights)

    def lift(self, s: int, a: int, v: int) -> tuple[float, float, float]:
        """Lift, the component's mean probability, the mixture's."""
        both = list(zip(self.weights, self.rows, strict=True))
        spoken = [sum(w[s][b] * rows[s, b][v] for w, rows in both) / len(both) for b in range(RANK)]
        own = spoken[a] / self.mean(s, a)
        return own / sum(spoken), own, sum(spoken)


def entropy(chances: list[float]) -> float:
    return -sum(p * math.log(p) for p in chances if p > 0)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: "-".join(map(str, form.values())))
def test_figures_are_those_of_plain_loops(
    model: PreTrainedModel, tmp_path: Path, form: dict[str, Any]
) -> None:
    head = make_head(model, **form)
    found, loops = report(head, tmp_path / "text.txt"), Loops(head)
    count, horizon = len(loops.weights), head.config.horizon
    assert (found["anchors"], found["windows"], found["head"]) == (count, 1, "h")
    assert found["max_entropy"] == pytest.approx(math.log(RANK))
    for s, row in enumerate(found["positions"]):
        load = [loops.mean(s, a) for a in range(RANK)]
        largest = [max(range(RANK), key=weights[s].__getitem__) for weights in loops.weights]
        assert row["position"] == s + 1
        assert row["load"] == pytest.approx(load, abs=1e-5)
        assert row["load_entropy"] == pytest.approx(entropy(load), abs=1e-5)
        assert row["largest"] == pytest.approx([largest.count(a) / count for a in range(RANK)])
        mean = sum(entropy(weights[s]) for weights in loops.weights) / count
        assert row["gate_entropy"] == pytest.approx(mean, abs=1e-5)
    means = [sum(loops.mean(s, a) for s in range(horizon)) / horizon for a in range(RANK)]
    assert found["load"] == pytest.approx(means, abs=1e-5)
    assert [table["position"] for table in found["tokens"]] == sorted({1, horizon})
    ids = head.draft_ids.tolist()
    for table in found["tokens"]:
        s = table["position"] - 1
        for a, tokens in enumerate(table["components"]):
            every = [(*loops.lift(s, a, v), v) for v in range(len(ids))]
            best = sorted((row for row in every if row[2] >= 1 / len(ids)), reverse=True)[: room.TOP]
            assert [token["lift"] for token in tokens] == pytest.approx([row[0] for row in best], rel=1e-3)
            for token in tokens:
                lift, own, _ = loops.lift(s, a, ids.index(token["id"]))
                assert (token["lift"], token["probability"]) == pytest.approx((lift, own), rel=1e-3)
                assert token["text"] == room.token_text(tiny_tokenizer(), token["id"])


def test_routing_at_draft_time_changes_nothing(model: PreTrainedModel, tmp_path: Path) -> None:
    head = make_head(model)
    before = report(head, tmp_path / "text.txt")
    head.config.components = 1
    assert report(head, tmp_path / "text.txt") == before


def test_a_component_without_weight_is_dead(model: PreTrainedModel, tmp_path: Path) -> None:
    head = make_head(model, joint="hmm")
    assert report(head, tmp_path / "text.txt")["dead"] == []
    head.gate.bias[1] -= 1e4
    found = report(head, tmp_path / "text.txt")
    assert found["positions"][0]["load"][1] == 0
    assert found["dead"] == []  # later positions use it
    for name, bias in head.gate.named_parameters():
        if name.endswith("bias"):
            bias[..., 1] -= 1e4
    found = report(head, tmp_path / "text.txt")
    assert found["dead"] == [2]
    assert found["dead_below"] == pytest.approx(0.1 / RANK)
    assert "dead (below 3.3% of the weight at every position): 2; polydraft prune --keep 2" in (
        components.dead_line(found)
    )
    json.dumps(found, allow_nan=False)


def test_one_component_is_refused(model: PreTrainedModel, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="one component"):
        report(tiny_head(model, rank=1), tmp_path / "text.txt")


def test_parts_of_a_character_go_by_their_names() -> None:
    tokenizer = tiny_tokenizer()
    part = tokenizer("é")["input_ids"][0]
    assert room.token_text(tokenizer, part) == tokenizer.convert_ids_to_tokens([part])[0]
    assert room.token_text(tokenizer, tokenizer(" ")["input_ids"][0]) == " "


def test_the_ablation_changes_one_option_a_cell() -> None:
    config = read_config(Path(__file__).parents[2] / "lab/configs" / "craft.toml")
    plain = vars(config.cell("cp8").options)
    changed = {
        cell.name: {name: value for name, value in vars(cell.options).items() if value != plain[name]}
        for cell in config.cells
    }
    assert changed == {
        "independent": {"joint": "independent", "rank": 1},
        "cp8": {},
        "cp8-balance-0": {"balance": 0.0},
        "cp8-balance-0.1": {"balance": 0.1},
        "cp8-z-loss-0.001": {"z_loss": 0.001},
        "cp8-gate-noise-0.5": {"gate_noise": 0.5},
        "cp8-scratch": {"steps": 440, "every": 440, "learning_rate": 2e-3},
    }
    start = config.start
    assert start is not None
    assert start.options.steps + plain["steps"] == config.cell("cp8-scratch").options.steps
    assert [cell.init_from for cell in config.cells] == ["start"] * 6 + [None]
    assert [v.components for v in config.variants if v.cell == "cp8"] == [None, 4, 2]


# -- the command ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("components")
    base, tokenizer = load_model(str(tiny_folder(root / "model")), dtype=torch.float32)
    tiny_head(base, joint="tree", tokenizer=tokenizer).save_pretrained(root / "head")
    tiny_head(base, joint="markov", rank=1, tokenizer=tokenizer).save_pretrained(root / "one")
    (root / "text.txt").write_text(TEXT)
    return root


def run(folder: Path, *more: str | Path, head: str = "head") -> Result:
    names = ("--head", folder / head, "--model", folder / "model", "--data", folder / "text.txt")
    words = ("components", *names, "--dtype", "float32", *more)
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, [str(word) for word in words])


def test_prints_and_keeps_the_figures(folder: Path, tmp_path: Path) -> None:
    figures, picture = tmp_path / "use.json", tmp_path / "use.png"
    result = run(
        folder, "--data", folder / "text.txt", folder / "text.txt", "--json", figures, "--plot", picture
    )
    assert result.exit_code == 0, result.output
    assert "tree, r = 2, 38 anchors" in result.stdout
    assert "gate entropy" in result.stdout
    assert "component 2" in result.stdout
    assert "position 3: tokens likelier" in result.stdout
    assert "no dead component (below 5.0%" in result.stdout
    content = json.loads(figures.read_text())
    assert (content["joint"], content["dtype"], content["anchors"]) == ("tree", "float32", 38)
    assert len(content["positions"]) == 3
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_many_components_and_odd_tokens_can_be_drawn(tmp_path: Path) -> None:
    rank, word = 32, {"text": "$x_1^ 语\n", "lift": 12.0}
    row = {"load": [1 / rank] * rank, "gate_entropy": 1.0, "load_entropy": 3.4}
    content = {
        "head": "runs/$a_b$",
        "joint": "cp",
        "rank": rank,
        "anchors": 4096,
        "dead": [3, 9],
        "max_entropy": math.log(rank),
        "positions": [row | {"position": s} for s in range(1, 9)],
        "tokens": [{"position": s, "components": [[word] * 8] * rank} for s in (1, 8)],
    }
    plot_components(content, tmp_path / "use.png")
    assert (tmp_path / "use.png").read_bytes().startswith(b"\x89PNG")


def test_one_component_leaves_nothing_to_report(folder: Path, tmp_path: Path) -> None:
    result = run(folder, "--json", tmp_path / "use.json", head="one")
    assert result.exit_code == 0, result.output
    (line,) = result.stderr.splitlines()
    assert line.endswith("(markov) has one component: nothing to report")
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("more", "fragment"),
    [
        (("--data", "./none.txt"), "none.txt: no such file"),
        (("--json", "./none/use.json"), "the folder none does not exist"),
        (("--plot", "./none/use.png"), "the folder none does not exist"),
        (("--windows", "0"), "windows must be at least 1"),
        (("--anchors-per-window", "-1"), "anchors_per_window must be at least 0"),
    ],
)
def test_errors_are_one_line(folder: Path, more: tuple[str, ...], fragment: str) -> None:
    result = run(folder, *more)
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert fragment in line


def test_a_picture_needs_matplotlib(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("polydraft.training.curves.can_plot", lambda: False)
    result = run(folder, "--plot", tmp_path / "use.png")
    assert result.exit_code == 2
    assert "pip install 'matplotlib>=" in result.stderr
