"""Pruned heads against the enumeration of the paths that are left; what a folder of one holds."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from polydraft.cli import app
from polydraft.errors import InputError
from polydraft.heads import DraftConfig, DraftHead
from polydraft.loading import load_head, load_model
from polydraft.training.data import Document
from polydraft.training.gating import TextSample
from polydraft.training.prune import check_keep, component_load, confined, prune
from tests.tiny import tiny_folder, tiny_head, tiny_model
from tests.training.paths import FAMILY, path_chances, sequence_chance
from tests.training.plain import make_anchors, whole_joint

KEPT = [1, 3]
FORMS: tuple[dict[str, Any], ...] = (
    {"joint": "cp"},
    {"joint": "cp", "features": "hidden", "map_rank": 0},
    {"joint": "hmm", "features": "hidden"},
    {"joint": "hmm", "own_unembedding": True},
    {"joint": "tree", "map_rank": 0},
    {"joint": "tree", "horizon": 4},
    {"joint": "cp-markov"},
    {"joint": "cp-markov", "own_unembedding": True, "map_rank": 0},
)


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def four(**form: Any) -> DraftHead:
    """A head of four components over 5 of a model's 6 tokens."""
    return tiny_head(tiny_model(vocab_size=6), rank=4, draft_vocab_size=5, **({"horizon": 3} | form))


def attached(head: DraftHead, like: DraftHead) -> DraftHead:
    return head.attach(like._base[0])


@torch.no_grad()
def favour(head: DraftHead, kept: list[int], *, by: float = 1e4) -> None:
    """Leave the other components no weight, or next to none."""
    others = [a for a in range(head.config.rank) if a not in kept]
    for name, bias in head.gate.named_parameters():
        if name.endswith("bias"):
            bias[..., others] -= by


@pytest.mark.parametrize("form", FORMS, ids=lambda form: "-".join(map(str, form.values())))
class TestConfined:
    def test_is_the_sum_over_the_paths_that_are_left(self, form: dict[str, Any]) -> None:
        head = four(**form)
        anchors = make_anchors(head, count=2)
        old = whole_joint(head, anchors)
        new = whole_joint(attached(confined(head, KEPT), head), anchors)
        assert new.rank == len(KEPT)
        for row in range(2):
            paths = path_chances(old.latent, row, KEPT)
            for tokens in itertools.islice(itertools.product(range(5), repeat=old.horizon), 0, None, 7):
                line = torch.tensor(tokens)
                found = new.log_prob(line.expand(2, -1))[row].exp()
                assert float(found) == pytest.approx(sequence_chance(old, row, line, paths), rel=1e-4)

    def test_with_all_the_weight_nothing_changes(self, form: dict[str, Any]) -> None:
        head = four(**form)
        anchors = make_anchors(head, count=6)
        before = head(anchors.hidden, anchors.next_tokens)
        favour(head, KEPT)
        old = head(anchors.hidden, anchors.next_tokens)
        new = attached(confined(head, KEPT), head)(anchors.hidden, anchors.next_tokens)
        drafts = anchors.targets[:, -head.config.horizon :]
        for length in range(head.config.horizon):
            row = old.conditional(drafts[:, :length])
            assert torch.allclose(new.conditional(drafts[:, :length]), row, atol=1e-5)
            assert not torch.allclose(before.conditional(drafts[:, :length]), row, atol=1e-2)
        assert torch.equal(new.argmax().tokens, old.argmax().tokens)

    def test_keeping_all_keeps_every_bit(self, form: dict[str, Any]) -> None:
        head = four(**form)
        state = confined(head, range(4)).state_dict()
        assert all(torch.equal(value, state[name]) for name, value in head.state_dict().items())


@pytest.mark.parametrize("joint", FAMILY)
def test_is_what_routing_to_the_same_components_everywhere_gives(joint: str) -> None:
    head = four(joint=joint, horizon=4)
    favour(head, KEPT, by=20.0)
    anchors = make_anchors(head, count=5)
    pruned = attached(confined(head, KEPT), head)(anchors.hidden, anchors.next_tokens)
    head.config.components = len(KEPT)
    routed, kept = whole_joint(head, anchors).latent.routed(len(KEPT))
    assert (kept == torch.tensor(KEPT)).all()
    assert torch.allclose(pruned.latent.marginals(), routed.marginals(), atol=1e-5)
    found, expected = (joint.log_prob(anchors.targets) for joint in (pruned, head(*anchors[:2])))
    assert torch.allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize(("components", "left"), [(0, 0), (1, 1), (2, 0), (3, 0)])
def test_routing_stays_where_it_still_leaves_some_out(components: int, left: int) -> None:
    assert confined(four(components=components), KEPT).config.components == left


@pytest.mark.parametrize("form", FORMS[:-1], ids=lambda form: "-".join(map(str, form.values())))
def test_load_is_the_mean_over_anchors_and_positions(form: dict[str, Any]) -> None:
    head = four(**form)
    model, ids = head._base[0], torch.tensor([[1, 4, 0, 5, 2, 3, 1, 0]])
    hidden = model(ids, output_hidden_states=True).hidden_states[-1][0, :-2]
    whole = whole_joint(head, make_anchors(head)._replace(hidden=hidden, next_tokens=ids[0, 1:-1]))
    expected = torch.zeros(4, dtype=torch.float64)
    skip = head.config.positions - head.config.horizon
    for row, token in enumerate(ids[0, 1:-1]):
        paths = path_chances(whole.latent, row)
        draft = int(head.draft_index(token))
        if skip and draft >= 0:  # x[t+1] tells something
            paths = {z: p * float(whole.log_factors[row, 0, z[0], draft].exp()) for z, p in paths.items()}
        for path, chance in paths.items():
            for a in path[skip:]:
                expected[a] += chance / sum(paths.values()) / head.config.horizon / len(hidden)
    sample = TextSample(anchors_per_window=0)
    found, anchors = component_load(head, model, [Document(ids[0].tolist())], sample=sample)
    assert anchors == 6
    assert found.tolist() == pytest.approx(expected.tolist(), abs=1e-5)
    assert float(found.sum()) == pytest.approx(1)


class TestSample:
    documents = tuple(Document(list(range(first, first + 30))) for first in range(20))

    def test_draws_windows_by_the_seed(self) -> None:
        drawn = [TextSample(windows=5, max_length=10, seed=seed).draw(self.documents) for seed in (0, 0, 1)]
        assert drawn[0] == drawn[1] != drawn[2]
        assert [len(window.input_ids) for window in drawn[0]] == [10] * 5
        assert len(TextSample(max_length=10).draw(self.documents)) == 60

    def test_draws_anchors_by_the_seed_and_leaves_the_global_one_alone(self) -> None:
        head = four()
        documents = [Document([i % 5 for i in range(first, first + 30)]) for first in range(4)]
        loads = []
        for seed in (0, 0, 1):
            torch.manual_seed(len(loads))
            sample = TextSample(anchors_per_window=3, seed=seed)
            loads.append(component_load(head, head._base[0], documents, sample=sample)[0])
            after = torch.rand(())
            torch.manual_seed(len(loads) - 1)
            assert torch.rand(()) == after
        assert torch.equal(loads[0], loads[1])
        assert not torch.equal(loads[0], loads[2])

    @pytest.mark.parametrize("name", ["windows", "anchors_per_window", "max_length", "batch_size"])
    def test_refuses_numbers_out_of_range(self, name: str) -> None:
        with pytest.raises(InputError, match=f"{name} must be at least"):
            TextSample(**{name: -1})

    def test_refuses_text_with_nothing_to_look_at(self) -> None:
        with pytest.raises(InputError, match="too short"):
            TextSample().draw([Document([1, 2, 3], 2)])


# -- the folder -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, a head of three components of which the second has hardly any weight, and a text."""
    root = tmp_path_factory.mktemp("prune")
    model, tokenizer = load_model(str(tiny_folder(root / "model")), dtype=torch.float32)
    head = tiny_head(model, rank=3, draft_vocab_size=40, tokenizer=tokenizer, provenance={"command": "made"})
    favour(head, [0, 2], by=50.0)
    head.save_pretrained(root / "head")
    tiny_head(model, rank=1, tokenizer=tokenizer).save_pretrained(root / "one")
    (root / "text.txt").write_text("Some text that nobody has learnt from. " * 4)
    return root


def run(folders: Path, out: Path, *more: str | Path, keep: int = 2, head: str = "head") -> Result:
    names = ("--model", folders / "model", "--head", folders / head, "--data", folders / "text.txt")
    words = ("prune", *names, "--out", out, "--keep", keep, "--dtype", "float32", *more)
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, [str(word) for word in words])


def test_writes_a_head_that_says_where_it_comes_from(folders: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "pruned"
    result = run(folders, out)
    assert result.exit_code == 0, result.output
    assert result.stdout == ""
    assert "kept 1, 3 of 3 components, 100.0% of the weight" in result.stderr
    assert sorted(path.name for path in out.iterdir()) == ["config.json", "model.safetensors"]
    assert [path.name for path in out.parent.iterdir()] == ["pruned"]
    model, tokenizer = load_model(str(folders / "model"), dtype=torch.float32)
    old, new = (load_head(str(p), model=model, tokenizer=tokenizer) for p in (folders / "head", out))
    assert new.config.rank == 2
    assert torch.equal(new.draft_ids, old.draft_ids)
    anchors = make_anchors(old)
    rows = [head(anchors.hidden, anchors.next_tokens).log_prob(anchors.targets) for head in (old, new)]
    assert torch.allclose(*rows, atol=1e-5)
    provenance = json.loads((out / "config.json").read_text())["provenance"]
    assert provenance["before"] == {"command": "made"}
    record = provenance["pruned"]
    assert (record["rank"], record["kept"]) == (3, [1, 3])
    assert sum(record["load"]) == pytest.approx(1, abs=1e-5)
    assert record["load"][1] < 1e-6


def test_a_write_that_fails_leaves_nothing(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = load_model(str(folders / "model"), dtype=torch.float32)
    head = load_head(str(folders / "head"), model=model, tokenizer=tokenizer)

    def broken(self: DraftHead, folder: Path) -> None:
        (folder / "model.safetensors").write_text("half")
        raise OSError("disk full")

    monkeypatch.setattr(DraftHead, "save_pretrained", broken)
    with pytest.raises(OSError, match="disk full"):
        prune(
            head, model, tokenizer, [folders / "text.txt"], tmp_path / "out", keep=2, sample=TextSample()
        )  # fmt: skip
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "more", "fragment"),
    [
        ({"keep": 0}, (), "keep must lie between 1 and the head's rank 3, got 0"),
        ({"keep": 4}, (), "keep must lie between 1 and the head's rank 3, got 4"),
        ({"keep": 1, "head": "one"}, (), "the head (cp) has one component: there is nothing to prune"),
        ({"head": "none"}, (), "no head folder at"),
        ({}, ("--windows", "0"), "windows must be at least 1"),
        ({}, ("--data", "./none.txt"), "none.txt: no such file"),
    ],
)
def test_errors_are_one_line(
    folders: Path, tmp_path: Path, changes: dict[str, Any], more: tuple[str, ...], fragment: str
) -> None:
    result = run(folders, tmp_path / "out", *more, **changes)
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert fragment in line
    assert not (tmp_path / "out").exists()


def test_does_not_write_over_anything(folders: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for taken in (tmp_path, tmp_path / "file"):
        result = run(folders, taken)
        assert result.exit_code == 2
        assert "is not empty: choose another --out" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("joint", ["independent", "markov"])
def test_members_of_one_component_have_nothing_to_prune(joint: str) -> None:
    with pytest.raises(InputError, match=f"{joint}.* has one component"):
        check_keep(DraftConfig(joint=joint, rank=1), 1)
