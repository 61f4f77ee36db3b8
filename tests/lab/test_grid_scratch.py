"""A grid whose cells train their own models, on tiny ones."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from lab.grid.losses import window_losses
from lab.grid.parse import read_config
from lab.grid.run import run_grid
from polydraft.loading import load_head, load_model
from polydraft.training.data import Document
from tests.tiny import tiny_folder
from tests.training.runs import write_corpus

GRID = """
dtype = "float32"
[[bases]]
name = "new"
model = "{root}/new.json"
data = ["{root}/corpus.jsonl"]
test = ["{root}/test.jsonl"]
prompts = "{root}/prompts.jsonl"
[[bases]]
name = "old"
model = "{root}/model"
data = ["{root}/corpus.jsonl"]
prompts = "{root}/prompts.jsonl"
[defaults]
joint = "cp"
horizon = 2
features = "hidden"
map_rank = 0
loss = "joint"
draft_vocab_size = 32
batch_size = 4
steps = 6
every = 6
max_length = 24
held_out = 0.2
[[cells]]
name = "new-r{{rank}}"
base = "new"
axes = {{ rank = [1, 2] }}
trunk = "scratch"
[[cells]]
name = "tuned"
base = "old"
rank = 1
trunk = "full"
[[cells]]
name = "frozen"
base = "old"
rank = 1
[evaluation]
max_new_tokens = 10
samples = 1
speed_prompts = 1
speed_tokens = 6
test_windows = 3
test_length = 40
draws = 20
[[tables]]
name = "rank"
title = "By rank"
where = {{ base = "new" }}
rows = ["rank"]
columns = ["joint_loss", "joint_ratio", "first_loss", "greedy", "wall_greedy", "trunk_parameters", "step_ms"]
"""
SHAPE = {
    "model_type": "llama", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
    "num_attention_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the finished grid in `out`."""
    root = tmp_path_factory.mktemp("scratch")
    tiny_folder(root / "model")
    (root / "new.json").write_text(json.dumps(SHAPE))
    write_corpus(root / "corpus.jsonl")
    texts = [{"text": "abc abd abe abf abg abh abc abd"}] * 2 + [{"text": "hello hello hello"}]
    (root / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts))
    prompts = [{"prompt": "abc", "kind": "x"}, {"prompt": "hello", "kind": "x"}]
    (root / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    (root / "grid.toml").write_text(GRID.format(root=root))
    run(root)
    return root


def run(root: Path, **options: Any) -> dict[str, Any]:
    config = read_config(root / "grid.toml")
    return run_grid(config, root / "out", partial(load_model, dtype=torch.float32), **options)


def test_every_cell_is_judged_with_its_own_model(root: Path) -> None:
    found = json.loads((root / "out/results.json").read_text())
    rows = {row["name"]: row for row in found["cells"]}
    assert list(rows) == ["new-r1", "new-r2", "tuned", "frozen"]
    for name in ("new-r1", "new-r2", "tuned"):
        assert (root / "out/cells" / name / "texts/greedy.jsonl").exists()
        assert rows[name]["trunk_parameters"] > 0 and rows[name]["base_loss"]["after"] > 0
    assert (root / "out/texts-old/greedy.jsonl").exists()
    assert rows["frozen"]["trunk_parameters"] is None and rows["frozen"]["loss"] is None
    one, two = (root / "out/cells" / name / "head/model/model.safetensors" for name in ("new-r1", "new-r2"))
    assert one.read_bytes() != two.read_bytes()
    assert all(
        set(row["speed"]) == {"greedy", "sampled"} and row["step_seconds"] > 0 for row in rows.values()
    )
    assert rows["new-r2"]["loss"]["windows"] == 2  # one text stood there twice
    table = found["tables"]["rank"]
    assert [line[0] for line in table["rows"]] == ["1", "2"]
    assert all(cell != "-" for cell in table["rows"][1])
    assert table["rows"][0][2] == "-"  # nothing to compare rank 1 with


def test_what_is_done_is_not_done_again(root: Path) -> None:
    def dates() -> dict[str, int]:
        return {str(p): p.stat().st_mtime_ns for p in (root / "out/cells").rglob("*") if p.is_file()}

    before = dates()
    run(root)
    assert dates() == before


def test_window_losses_are_those_of_the_joint_and_the_model(root: Path) -> None:
    folder = root / "out/cells/new-r2/head"
    model, tokenizer = load_model(str(folder / "model"), dtype=torch.float32)
    head = load_head(str(folder), model=model, tokenizer=tokenizer)
    ids = tokenizer("abc abd abe")["input_ids"]
    found = window_losses(head, model, Document(ids))
    row = torch.tensor([ids])
    with torch.no_grad():
        out = model(row, output_hidden_states=True)
        log_p = out.logits[0, :-1].log_softmax(-1).gather(-1, row[0, 1:, None]).double()
    assert found["tokens"] == len(ids) - 1
    assert found["language"] == pytest.approx(-float(log_p.sum()), rel=1e-5)
    total, count = torch.zeros(2, dtype=torch.float64), 0
    for t in range(len(ids) - 3):  # x[t+1] given, x[t+2] and x[t+3] drafted
        drafts = head.draft_index(row[:, t + 2 : t + 4])
        if bool((drafts < 0).any()):
            continue
        joint = head(out.hidden_states[-1][:, t], row[:, t + 1])
        first = joint.log_prob(drafts[:, :1])
        total -= torch.stack([first[0], joint.log_prob(drafts)[0] - first[0]]).double()
        count += 1
    assert found["counts"] == count > 0
    assert found["nll"] == pytest.approx(total.tolist(), rel=1e-5)
