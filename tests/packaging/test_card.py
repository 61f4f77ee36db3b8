"""The card of a head: what is recorded stands there, what is not does not."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from typer.testing import CliRunner, Result

from polydraft.cli import app
from polydraft.embedded import EMBEDDED
from polydraft.errors import InputError
from polydraft.hub import write_card
from polydraft.resources import shipped

ROOT = Path(__file__).parents[2]
REPORT: dict[str, Any] = {
    "all": {
        "prompts": 3,
        "mean_acceptance_length": 2.256,
        "ratio_per_prompt": {"min": 1.0, "q1": 1.111, "median": 1.5, "q3": 1.999, "max": 2.5},
        "identical_count": 2,
    },
    "kinds": {},
    "command": "polydraft bench --model m --head h --prompts p",
    "dtype": "float32",
    "threads": 2,
    "max_new_tokens": 77,
    "temperature": 0.0,
    "versions": {"torch": "2.13.0"},
}


def run(*args: str | Path) -> Result:
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, [str(arg) for arg in args])


def rows(text: str) -> dict[str, str]:
    """Tables of two columns as one."""
    cells = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {row[0]: row[1] for row in cells if len(row) == 2}


def change(head: Path, **fields: Any) -> None:
    """Rewrite fields of the head's configuration."""
    path = head / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_metadata(head: Path) -> None:
    write_card(head, name="a/b", base_model="c/d", license_id="mit")
    data = ModelCard.load(head / "README.md").data
    assert data.library_name == "polydraft"
    assert (data.base_model, data.license, data.pipeline_tag) == ("c/d", "mit", "text-generation")
    assert {"speculative-decoding", "cp"} <= set(data.tags)


def test_what_the_head_is(head: Path) -> None:
    found = rows(write_card(head).read_text())
    weights = load_file(head / "model.safetensors")
    size = sum(math.prod(value.shape) for name, value in weights.items() if name != "draft_ids")
    assert found["joint"] == "cp"
    assert found["rank (components)"] == "2"
    assert found["horizon (drafts a step)"] == "3"
    assert found["parameters"] == f"{size:,}"
    assert found["draft vocabulary"] == "100 of 259 tokens"
    fingerprints = json.loads((head / "config.json").read_text())["base_model"]
    assert all(fingerprints[part] in found["its fingerprint"] for part in ("config", "weights", "tokenizer"))
    assert found["tokens to learn from"] == "12,345"
    assert found["data (hash)"] == "`0123abc`"
    assert found["acceptance length, greedy"] == "1.75"
    assert (found["-log P of draft 1, nats"], found["-log P of draft 3, nats"]) == ("2.5", "4.25")


def test_what_is_not_known_is_left_out(head: Path) -> None:
    text = write_card(head).read_text()
    data = ModelCard.load(head / "README.md").data
    assert data.base_model is data.license is None
    assert str(head.parent) not in text  # the base model lay in a folder, which says nothing to others
    found = rows(text)
    assert not {"base model", "steps", "loss", "time", "peak memory"} & set(found)
    assert "-log P of draft 2, nats" not in found
    assert "## Figures" not in text
    assert "--model MODEL --head HEAD " in text
    change(head, provenance=None, base_model=None)
    bare = write_card(head).read_text()
    assert "## Training" not in bare
    assert "its fingerprint" not in rows(bare)


def test_the_recorded_hub_id_of_the_base_model(head: Path) -> None:
    record = json.loads((head / "config.json").read_text())["base_model"]
    change(head, base_model=record | {"id": "owner/base", "revision": "1234"})
    text = write_card(head, name="owner/head").read_text()
    assert ModelCard.load(head / "README.md").data.base_model == "owner/base"
    assert rows(text)["base model"] == "`owner/base`, revision `1234`"
    assert "polydraft generate --model owner/base --head owner/head " in text


def test_the_record_of_the_training(head: Path) -> None:
    options = {
        "steps": 2000, "batch_size": 4, "accumulate": 2, "max_length": 512, "loss": "distill",
        "nll": None, "kl": 0.5, "tv": 1.0, "trunk": "lora",
    }  # fmt: skip
    record = {
        "options": options,
        "processes": 3,
        "init_from": None,
        "history": [{"loss": 1.0}, {"train_runtime": 600.0}],
    }
    (head / "training.json").write_text(json.dumps(record))
    found = rows(write_card(head).read_text())
    assert found["steps"] == "2,000 of 24 texts each"
    assert found["loss"] == "distill, kl weighted 0.5, tv weighted 1"
    assert found["base model"] == "adapted (LoRA)"
    assert found["time"] == "10 minutes"
    assert "started from" not in found


def test_an_adapter_is_named_in_the_command(head: Path) -> None:
    (head / "adapter").mkdir()
    text = write_card(head, name="a/b").read_text()
    assert "--head a/b --adapter a/b " in text
    assert 'dtype=torch.bfloat16, adapter="a/b")' in text


def test_figures(head: Path, tmp_path: Path) -> None:
    sampled = copy.deepcopy(REPORT) | {"temperature": 0.7}
    sampled["all"]["identical_count"] = None
    sampled["kinds"] = {"code": REPORT["all"] | {"prompts": 1, "identical_count": None}}
    for name, report in {"greedy": REPORT, "sampled": sampled}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(report))
    text = write_card(head, bench=[tmp_path / "greedy.json", tmp_path / "sampled.json"]).read_text()
    greedy, drawn = text.split("### Greedy")[1].split("### Sampled at T = 0.7")
    assert "| all | 3 | 2.26 | 1.50 (1.11-2.00) | 2 of 3 |" in greedy
    assert REPORT["command"] in greedy
    assert "Up to 77 tokens a prompt, float32, 2 threads; torch 2.13.0." in greedy
    assert "| code | 1 | " in drawn
    assert drawn.count("| - |") == 2


def test_figures_of_compiled_decoding(head: Path, tmp_path: Path) -> None:
    def spread(middle: float) -> dict[str, Any]:
        return {"ratio_per_prompt": {"q1": middle - 0.1, "median": middle, "q3": middle + 0.1}}

    eager = {"plain": spread(1.6), "drafted": spread(2.1)}
    report = REPORT | {"compiled": True, "all": REPORT["all"] | {"eager": eager}}
    path = tmp_path / "bench.json"
    path.write_text(json.dumps(report))
    text = write_card(head, bench=[path]).read_text()
    assert "### Greedy, compiled\n" in text
    assert "| same text | compiled over not | compiled and drafted over not |" in text
    assert "| 1.50 (1.11-2.00) | 2 of 3 | 1.60 (1.50-1.70) | 2.10 (2.00-2.20) |" in text
    path.write_text(json.dumps(REPORT | {"compiled": True}))
    with pytest.raises(InputError, match="plain decoding that is not compiled: run its command again"):
        write_card(head, bench=[path])


@pytest.mark.parametrize("content", ["[]", "{}", '{"all": {}}', "no json", None])
def test_what_is_no_benchmark(head: Path, tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "bench.json").write_text(content)
    with pytest.raises(InputError, match=r"bench\.json: (not a file of|not JSON|no such file)"):
        write_card(head, bench=[tmp_path / "bench.json"])
    assert not (head / "README.md").exists()


def test_only_its_own_card_is_replaced(head: Path) -> None:
    first = write_card(head).read_text()
    assert write_card(head, name="a/b").read_text() != first
    (head / "README.md").write_text("My own words.")
    result = run("card", head)
    assert result.exit_code == 2
    assert "README.md was not written by polydraft" in result.stderr
    assert (head / "README.md").read_text() == "My own words."


def test_command(head: Path, tmp_path: Path) -> None:
    (tmp_path / "bench.json").write_text(json.dumps(REPORT))
    options = ("--name", "a/b", "--license", "mit", "--base-model", "c/d", "--bench", tmp_path / "bench.json")
    result = run("card", head, *options)
    assert result.stdout == f"{head / 'README.md'}\n"
    by_command = (head / "README.md").read_text()
    write_card(head, name="a/b", license_id="mit", base_model="c/d", bench=[tmp_path / "bench.json"])
    assert (head / "README.md").read_text() == by_command
    assert run("card", tmp_path).exit_code == 2


def test_the_commands_of_a_card_work(head: Path, model_folder: Path) -> None:
    text = write_card(head, name=str(head)).read_text().replace("MODEL", str(model_folder))
    code = text.split("```python\n")[1].split("```")[0].replace("max_new_tokens=64", "max_new_tokens=8")
    scope: dict[str, Any] = {}
    exec(code, scope)
    assert scope["out"].sequences.shape == (1, len("Once upon") + 8)
    assert scope["model"].dtype == torch.bfloat16
    (command,) = [line for line in text.splitlines() if line.startswith("polydraft generate")]
    words = command.replace('"Once upon"', "Hello").split()[1:]
    assert run(*words, "--max-new-tokens", "4").exit_code == 0


def test_the_shipped_card_is_that_of_its_head(tmp_path: Path) -> None:
    folder = shipped("heads", EMBEDDED)
    for name in ("config.json", "model.safetensors", "training.json"):
        (tmp_path / name).symlink_to(folder / name)
    results = [ROOT / f"docs/results/{mode}-bfloat16.json" for mode in ("greedy", "sampled")]
    made = write_card(
        tmp_path,
        name=EMBEDDED,
        license_id="apache-2.0",
        base_model="HuggingFaceTB/SmolLM2-135M-Instruct",
        bench=results,
    )
    assert made.read_text() == (folder / "README.md").read_text()
