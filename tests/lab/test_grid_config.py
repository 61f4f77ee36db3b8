"""The file of a grid: what it means, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.grid.config import Variant
from lab.grid.parse import read_config
from polydraft.errors import InputError

WHOLE = """
model = "m"
data = ["a", "b"]
cache = "c"
[defaults]
steps = 7
learning_rate = 1
[start]
joint = "independent"
horizon = 8
steps = 9
[[cells]]
name = "ind"
joint = "independent"
[[cells]]
name = "cp8"
rank = 8
[[cells]]
name = "more"
init_from = "cp8"
rank = 16
[[cells]]
name = "cold"
joint = "cp"
rank = 1
horizon = 2
init_from = "nothing"
[evaluation]
samples = 3
[[evaluation.variants]]
name = "top2"
cell = "cp8"
components = 2
"""


def write(path: Path, content: str) -> Path:
    path.write_text(content)
    return path


def test_a_whole_file(tmp_path: Path) -> None:
    config = read_config(write(tmp_path / "grid.toml", WHOLE))
    assert [cell.name for cell in config.trained] == ["start", "ind", "cp8", "more", "cold"]
    assert [cell.init_from for cell in config.trained] == [None, "start", "start", "cp8", None]
    assert [cell.options.steps for cell in config.trained] == [9, 7, 7, 7, 7]
    assert [cell.options.rank for cell in config.trained] == [1, 1, 8, 16, 1]
    (base,) = config.bases
    assert base.data == (Path("a"), Path("b")) and base.cache == Path("c") and base.prompts == "heldout"
    assert config.evaluation.samples == 3
    assert [variant.name for variant in config.variants] == ["ind", "cp8", "more", "cold", "top2"]
    assert config.variants[-1] == Variant(name="top2", cell="cp8", components=2)
    references = [config.reference(cell) for cell in config.cells]
    assert [cell.name if cell else None for cell in references] == ["ind", "ind", "ind", "cold"]


def test_the_shipped_file() -> None:
    config = read_config(Path(__file__).parents[2] / "lab/configs" / "family.toml")
    assert {cell.options.joint for cell in config.cells} == {
        "independent", "cp", "hmm", "tree", "markov", "cp-markov"
    }  # fmt: skip
    assert all(config.reference(cell) for cell in config.cells)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('model = "m"', "", "`model` is missing"),
        ('model = "m"', "model = 3", "`model` must be of type str"),
        ('data = ["a", "b"]', "data = [1]", "`data` must be a list of paths"),
        ('cache = "c"', 'cached = "c"', "unknown key 'cached': known are title"),
        ("steps = 7", "step = 7", r"\[defaults\]: unknown key 'step'"),
        ("steps = 7", 'steps = "7"', r"\[defaults\]: `steps` must be of type int"),
        ("steps = 7", "steps = 0", r"\[defaults\]: steps must be at least 1"),
        ("steps = 9", "colour = 1", r"\[start\]: unknown key 'colour'"),
        ("rank = 8", "ranks = 8", "cell 'cp8': unknown key 'ranks'"),
        ("rank = 8", 'joint = "cpp"', "cell 'cp8': joint must be one of"),
        ('name = "cp8"', "", "needs a `name`"),
        ('name = "cp8"', 'name = "../cp8"', "needs a `name`"),
        ('name = "cp8"', 'name = "ind"', "the name 'ind' is taken"),
        ('name = "cp8"', 'name = "start"', "the name 'start' is taken"),
        ('init_from = "cp8"', 'init_from = "cold"', "'more' starts from 'cold', which is no cell above it"),
        ("samples = 3", "sample = 3", r"\[evaluation\]: unknown key 'sample'"),
        ("samples = 3", "samples = 0", "samples must be at least 1"),
        ('cell = "cp8"', 'cell = "start"', "variant 'top2': `cell` must name one of the cells"),
        ("components = 2", 'verification = "half"', "variant 'top2': verification must be one of token"),
        ("components = 2", "components = 9", "variant 'top2': components must be 0 .* at most the rank 8"),
        ("[evaluation]", "[evaluation", "not TOML"),
    ],
)
def test_refusals_name_the_file_and_the_place(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in WHOLE
    path = write(tmp_path / "grid.toml", WHOLE.replace(old, new))
    with pytest.raises(InputError, match=message) as caught:
        read_config(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


BASES = """
[defaults]
joint = "cp"
[[bases]]
name = "x"
model = "mx"
data = ["dx"]
test = ["tx"]
prompts = "px"
[[bases]]
name = "y"
model = "my"
data = ["dy"]
[[cells]]
name = "{base}-r{rank}"
axes = { base = ["x", "y"], rank = [1, 2] }
trunk = "scratch"
[[tables]]
name = "t"
title = "T"
where = { base = "x", rank = [1, 2] }
rows = ["rank"]
columns = ["greedy"]
"""


def test_axes_are_multiplied_out_over_bases(tmp_path: Path) -> None:
    config = read_config(write(tmp_path / "grid.toml", BASES))
    assert [cell.name for cell in config.cells] == ["x-r1", "x-r2", "y-r1", "y-r2"]
    assert [cell.options.rank for cell in config.cells] == [1, 2, 1, 2]
    assert [base.model for base in config.bases] == ["mx", "my"]
    assert config.cells[0].base.test == (Path("tx"),) and config.cells[0].base.prompts == "px"
    assert all(cell.own_model for cell in config.cells)
    references = [config.reference(cell) for cell in config.cells]
    assert [cell.name if cell else None for cell in references] == ["x-r1", "x-r1", "y-r1", "y-r1"]
    assert config.tables[0].where == {"base": ("x",), "rank": (1, 2)}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('base = ["x", "y"]', 'base = ["z"]', "`base` must be one of x, y, got 'z'"),
        ('name = "{base}-r{rank}"', 'name = "{bse}"', "holds what is no axis: 'bse'"),
        ('name = "{base}-r{rank}"', 'name = "{base}"', "the name 'x' is taken"),
        ("rank = [1, 2] }\ntrunk", "rank = [] }\ntrunk", "`axes` must be a table of lists"),
        ('model = "my"', "", "base 'y': `model` is missing"),
        ("[defaults]", 'model = "m"\n[defaults]', "`model` stands beside"),
        ("[[tables]]", "[start]\n[[tables]]", r"\[start\] is for grids of one base"),
        ('trunk = "scratch"', 'trunk = "lora"\nverifier = "base"', "verifier must be 'trained'"),
        ('title = "T"', "", r"\[\[tables\]\]: `title` is missing"),
    ],
)
def test_refusals_of_bases_and_axes(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in BASES
    with pytest.raises(InputError, match=message):
        read_config(write(tmp_path / "grid.toml", BASES.replace(old, new)))


@pytest.mark.parametrize("name", ["field", "scratch-prose", "scratch-code", "finetune"])
def test_the_files_of_the_results(name: str) -> None:
    config = read_config(Path(__file__).parents[2] / "lab/configs" / f"{name}.toml")
    assert all(config.reference(cell) for cell in config.cells)
    assert config.tables


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_config(tmp_path / "gone.toml")
