"""A head is pushed to a hub and loads from it by id: what arrives, at which revision, what is refused."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
import pytest
import torch
from typer.testing import CliRunner, Result

from polydraft.cli import app
from polydraft.errors import InputError, PolydraftError
from polydraft.heads import DraftHead
from polydraft.hub import push_head
from polydraft.loading import load_head, load_model
from polydraft.sources import adapter_folder, head_folder
from tests.packaging.fake_hub import TOKEN, FakeHub, Repository

ID = "someone/a-head"
PUSHED = {"README.md", "config.json", "model.safetensors"}


def run(*args: str | Path) -> Result:
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, [str(arg) for arg in args])


def gate(name: str, model_folder: Path) -> torch.Tensor:
    """Weights of the gate of the head called `name`."""
    model, tokenizer = load_model(str(model_folder), dtype=torch.float32)
    return load_head(name, model=model, tokenizer=tokenizer).gate.weight.detach()


def test_push_takes_the_head_alone(hub: FakeHub, head: Path) -> None:
    address = push_head(head, ID)
    repository = hub.repositories[ID]
    files = repository.commits[repository.branches["main"]]
    assert address == f"{hub.address}/{ID}/commit/{repository.branches['main']}"
    assert set(files) == PUSHED  # neither checkpoints nor run.json
    assert all(files[name] == (head / name).read_bytes() for name in PUSHED)
    assert f"polydraft generate --model MODEL --head {ID} " in files["README.md"].decode()
    assert not repository.private


def test_a_card_that_is_there_stays(hub: FakeHub, head: Path) -> None:
    (head / "README.md").write_text("My own words.")
    (head / "adapter").mkdir()
    (head / "adapter" / "adapter_config.json").write_text("{}")
    (head / "training.json").write_text("{}")
    push_head(head, ID, private=True)
    repository = hub.repositories[ID]
    files = repository.commits[repository.branches["main"]]
    assert set(files) == {*PUSHED, "training.json", "adapter/adapter_config.json"}
    assert files["README.md"] == b"My own words."
    assert repository.private


def test_a_pushed_head_loads_by_id(hub: FakeHub, head: Path, model_folder: Path) -> None:
    push_head(head, ID)
    assert torch.equal(gate(ID, model_folder), gate(str(head), model_folder))
    model, _ = load_model(str(model_folder), dtype=torch.float32)
    provenance = load_head(ID, model=model).config.provenance
    assert provenance is not None and provenance["command"] == "polydraft train --steps 30"
    assert "polydraft train --steps 30" in run("inspect", ID, "--json").stdout


def test_revisions(hub: FakeHub, head: Path, model_folder: Path) -> None:
    first = push_head(head, ID).split("/")[-1]
    second = DraftHead.from_pretrained(head)
    with torch.no_grad():
        second.gate.weight.add_(1.0)
    second.save_pretrained(head)
    push_head(head, ID, revision="trial/two")
    old, new = gate(ID, model_folder), gate(f"{ID}@trial/two", model_folder)
    assert torch.equal(old + 1.0, new)
    assert torch.equal(gate(f"{ID}@{first}", model_folder), old)
    assert torch.equal(gate(f"{ID}@main", model_folder), old)
    loaded = DraftHead.from_pretrained(ID, revision="trial/two")
    assert torch.equal(loaded.gate.weight, new)


def test_models_load_by_id_and_revision(hub: FakeHub, model_folder: Path) -> None:
    repository = hub.repositories["someone/model"] = Repository(private=False)
    commit = repository.commit("main", {path.name: path.read_bytes() for path in model_folder.iterdir()})
    repository.commit("main", {"config.json": b"{}"})
    model, _ = load_model(f"someone/model@{commit}", dtype=torch.float32)
    assert model.config.name_or_path == "someone/model"
    assert model.config._commit_hash == commit  # what a head records of its base model
    with pytest.raises(InputError, match="cannot load the model 'someone/model'"):
        load_model("someone/model", dtype=torch.float32)


def test_offline_the_cache_is_enough(
    hub: FakeHub, head: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push_head(head, ID, revision="v1")
    online = gate(f"{ID}@v1", model_folder)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    before = len(hub.requests)
    assert torch.equal(gate(f"{ID}@v1", model_folder), online)
    with pytest.raises(InputError, match=f"'{ID}': it is not in the cache"):
        gate(ID, model_folder)
    assert len(hub.requests) == before
    with pytest.raises(PolydraftError, match=r"^HF_HUB_OFFLINE is set: unset it to push$"):
        push_head(head, ID)


@pytest.mark.adapters
def test_the_adapter_of_a_head_by_its_id(hub: FakeHub, head: Path, model_folder: Path) -> None:
    peft = pytest.importorskip("peft")
    model, _ = load_model(str(model_folder), dtype=torch.float32)
    model.add_adapter(peft.LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    ids = torch.tensor([[5, 6, 7]])
    adapted = model(ids).logits
    model.save_pretrained(head / "adapter")
    push_head(head, ID)
    for name in (ID, f"{ID}@main", str(head), str(head / "adapter")):
        again, _ = load_model(str(model_folder), dtype=torch.float32, adapter=name)
        assert torch.allclose(again(ids).logits, adapted, atol=1e-6)
    assert not torch.allclose(load_model(str(model_folder), dtype=torch.float32)[0](ids).logits, adapted)
    assert adapter_folder(ID).parent == head_folder(ID)
    hub.repositories["someone/plain"] = Repository(private=False)
    with pytest.raises(InputError, match="no adapter at"):
        load_model(str(model_folder), dtype=torch.float32, adapter="someone/plain")


def test_what_a_hub_does_not_give_is_one_line(
    hub: FakeHub, head: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push_head(head, ID, private=True)
    model, _ = load_model(str(model_folder), dtype=torch.float32)
    expected = {
        "someone/nothing": "the hub has no such repository, or hides it: check the name; for a private one",
        f"{ID}@v9": "the repository has no such revision",
    }
    for name, reason in expected.items():
        with pytest.raises(InputError, match=f"^cannot load the head '{name}': {reason}") as caught:
            load_head(name, model=model)
        assert "\n" not in str(caught.value)
    monkeypatch.setenv("HF_TOKEN", TOKEN[:-1] + "b")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(head / "another-cache"))
    with pytest.raises(InputError, match=r"or hides it: .* run `hf auth login` or set HF_TOKEN$"):
        load_head(ID, model=model)
    with pytest.raises(InputError, match="cannot load the head"):
        head_folder(ID)


def test_push_without_the_right_token(hub: FakeHub, head: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN[:-1] + "b")
    result = run("push", head, ID)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("error: the hub does not let you write to someone/a-head: run `hf auth")
    assert result.stderr.count("\n") == 1
    assert hub.repositories == {}


def test_push_command(hub: FakeHub, head: Path) -> None:
    planned = run("push", head, ID, "--private", "--dry-run")
    weights = (head / "model.safetensors").stat().st_size
    assert planned.exit_code == 0
    assert planned.stdout.splitlines()[:2] == [
        f"to {ID}, main, private if new:",
        "  README.md  to be written",
    ]
    assert f"  model.safetensors  {weights:,} bytes" in planned.stdout
    assert hub.requests == []
    assert not (head / "README.md").exists()
    done = run("push", head, ID, "--revision", "v1")
    repository = hub.repositories[ID]
    assert done.stdout == f"{hub.address}/{ID}/commit/{repository.branches['v1']}\n"
    assert repository.commits[repository.branches["main"]] == {}
    assert set(repository.commits[repository.branches["v1"]]) == PUSHED


@pytest.mark.parametrize("name", ["no-owner", "a/b/c", "owner/", "/name", "owner/two words", "a/b..c"])
def test_push_to_no_repository(hub: FakeHub, head: Path, name: str) -> None:
    result = run("push", head, name)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: '{name}' is no name of a repository: ")
    assert hub.repositories == {}


def test_push_of_no_head(hub: FakeHub, tmp_path: Path, model_folder: Path) -> None:
    assert "has no config.json" in run("push", tmp_path / "nothing", ID).stderr
    assert "holds no polydraft head" in run("push", model_folder, ID).stderr
    assert hub.requests == []


def test_an_unreachable_hub(head: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(PolydraftError, match=r"^cannot reach the hub: "):
        push_head(head, ID)


def test_a_head_in_memory_is_not_pushed(head: Path, tmp_path: Path) -> None:
    loaded = DraftHead.from_pretrained(head)
    with pytest.raises(PolydraftError, match="polydraft push DIR owner/name"):
        loaded.push_to_hub(ID)
    with pytest.raises(PolydraftError, match="polydraft push DIR owner/name"):
        loaded.save_pretrained(tmp_path / "again", push_to_hub=True)
    assert not (tmp_path / "again").exists()
    loaded.save_pretrained(tmp_path / "again")
    assert torch.equal(DraftHead.from_pretrained(tmp_path / "again").gate.weight, loaded.gate.weight)
