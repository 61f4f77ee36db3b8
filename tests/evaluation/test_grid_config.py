"""The file of a grid: what it means, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from polydraft.errors import InputError
from polydraft.evaluation.grid.config import Variant
from polydraft.evaluation.grid.parse import read_config

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
    assert config.data == (Path("a"), Path("b")) and config.cache == Path("c")
    assert config.evaluation.samples == 3
    assert [variant.name for variant in config.variants] == ["ind", "cp8", "more", "cold", "top2"]
    assert config.variants[-1] == Variant(name="top2", cell="cp8", components=2)
    references = [config.reference(cell) for cell in config.cells]
    assert [cell.name if cell else None for cell in references] == ["ind", "ind", "ind", "cold"]


def test_the_shipped_file() -> None:
    config = read_config(Path(__file__).parents[2] / "configs" / "family.toml")
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
        ('cache = "c"', 'cached = "c"', "unknown key 'cached': known are model"),
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


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_config(tmp_path / "gone.toml")
