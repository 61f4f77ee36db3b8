"""The wheel, installed: an environment that sees the base dependencies and no extra.

By default a light one: the wheel is installed into an empty environment, and the base dependencies are those
of this environment, linked one by one, so that whatever only an extra brings is missing. That proves what the
wheel holds and which imports need an extra, not which versions pip would choose: `make test-install` runs the
same tests in environments that pip filled, POLYDRAFT_INSTALLED, with POLYDRAFT_EXTRAS where extras are in.
Each command starts a process that imports torch, so by day a few stand for the others.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import venv
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import polydraft
from polydraft.extras import install
from tests.packaging.test_build import PROJECT

pytestmark = pytest.mark.slow
EXTRAS = bool(os.environ.get("POLYDRAFT_EXTRAS"))
WITHOUT_EXTRAS = pytest.mark.skipif(EXTRAS, reason="the extras are installed")


def needed(name: str, found: set[str]) -> None:
    """Add to `found` the distributions that `name` needs without extras, itself included."""
    found.add(name)
    for line in metadata.requires(name) or []:
        requirement = Requirement(line)
        other = requirement.name.lower().replace("_", "-")
        if other not in found and (requirement.marker is None or requirement.marker.evaluate({"extra": ""})):
            needed(other, found)


def link(names: set[str], folder: Path) -> None:
    """Link what these distributions installed into `folder`."""
    folder.mkdir()
    for name in names:
        distribution = metadata.distribution(name)
        tops = {
            file.parts[0] for file in distribution.files or [] if file.parts[0] not in ("..", "__pycache__")
        }
        for top in tops:
            link = folder / top
            if not link.exists():
                link.symlink_to(str(distribution.locate_file(top)))


@pytest.fixture(scope="module")
def environment(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of an environment in which the wheel is installed."""
    if given := os.environ.get("POLYDRAFT_INSTALLED"):
        return Path(given) / "bin"
    (wheel,) = request.getfixturevalue("distributions").glob("*.whl")
    root = tmp_path_factory.mktemp("environment")
    venv.create(root / "venv", with_pip=False, symlinks=True)
    python = root / "venv/bin/python"
    command = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(python),
        "install",
        "--no-deps",
        "--no-index",
        "-q",
    ]
    subprocess.run([*command, str(wheel)], check=True)
    found: set[str] = set()
    for line in PROJECT["dependencies"]:
        needed(Requirement(line).name, found)
    link(found, root / "linked")
    (packages,) = (root / "venv/lib").glob("python*/site-packages")
    (packages / "linked.pth").write_text(f"{root / 'linked'}\n")
    return root / "venv/bin"


@pytest.fixture(scope="module")
def names(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """`--model` and `--head` of a tiny model."""
    from polydraft.loading import load_model, parse_dtype
    from tests.tiny import tiny_head

    model, tokenizer = load_model(str(model_folder), dtype=parse_dtype("float32"))
    folder = tmp_path_factory.mktemp("heads") / "head"
    tiny_head(model, tokenizer=tokenizer).save_pretrained(folder)
    return ["--model", str(model_folder), "--head", str(folder)]


def write_text(path: Path) -> None:
    """Ten documents to learn from."""
    rows = [{"text": f"Fox {number} jumps over the lazy dog. " * 4} for number in range(10)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def run(command: list[str | Path], cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run away from the repository, without its paths."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run(
        [str(word) for word in command], env=clean, cwd=cwd, capture_output=True, text=True, check=False
    )


def ran(command: list[str | Path], cwd: Path) -> str:
    done = run(command, cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_is_the_installed_one(environment: Path, tmp_path: Path) -> None:
    script = "import polydraft, sys; print(polydraft.__file__, polydraft.generate.__name__)"
    path, name = ran([environment / "python", "-c", script], tmp_path).split()
    assert Path(path).is_relative_to(environment.parent)
    assert name == "generate"


@WITHOUT_EXTRAS
def test_the_extras_are_missing(environment: Path, tmp_path: Path) -> None:
    script = (
        "from importlib.util import find_spec\n"
        "print([name for name in ('matplotlib', 'peft', 'fastapi', 'uvicorn', 'pytest') if find_spec(name)])"
    )
    assert ran([environment / "python", "-c", script], tmp_path) == "[]\n"


def test_the_command_starts(environment: Path, tmp_path: Path) -> None:
    version = f"polydraft {polydraft.__version__}\n"
    assert ran([environment / "polydraft", "--version"], tmp_path) == version
    assert ran([environment / "python", "-m", "polydraft", "--version"], tmp_path) == version
    listed = ran([environment / "polydraft", "--help"], tmp_path)
    commands = set(re.findall(r"^│ ([a-z]+) ", listed, re.MULTILINE))
    assert {"generate", "train", "serve", "push"} <= commands
    for command in commands:
        assert "Usage: polydraft" in ran([environment / "polydraft", command, "--help"], tmp_path)


def train(environment: Path, names: list[str], cwd: Path) -> None:
    """Two steps, into `out`."""
    write_text(cwd / "text.jsonl")
    options = ["--steps", "2", "--every", "2", "--max-length", "64", "--batch-size", "2", "--horizon", "2"]
    command = [environment / "polydraft", "train", *names[:2], "--data", "text.jsonl", "--out", "out"]
    ran([*command, *options], cwd)
    assert "library_name: polydraft" in (cwd / "out/README.md").read_text()
    assert (cwd / "out/training.png").exists() == EXTRAS


def test_it_trains(environment: Path, names: list[str], tmp_path: Path) -> None:
    train(environment, names, tmp_path)


def test_it_generates(environment: Path, names: list[str], tmp_path: Path) -> None:
    options = ["--dtype", "float32", "--max-new-tokens", "12", "--compare", "--json"]
    compared = ran([environment / "polydraft", "generate", *names, *options, "Hi"], tmp_path)
    assert '"identical": true' in compared


@pytest.mark.nightly
def test_it_measures_what_it_trained(environment: Path, names: list[str], tmp_path: Path) -> None:
    train(environment, names, tmp_path)
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "Fox 3 jumps"}\n')
    bench = ["--prompts", "prompts.jsonl", "--max-new-tokens", "4", "--json", "bench.json"]
    ran([environment / "polydraft", "bench", *names[:2], "--head", "out", *bench], tmp_path)
    ran([environment / "polydraft", "card", "out", "--bench", "bench.json"], tmp_path)
    assert (tmp_path / "bench.png").exists() == EXTRAS


@pytest.mark.nightly
def test_the_shipped_head_is_there(environment: Path, tmp_path: Path) -> None:
    assert '"joint": "markov"' in ran(
        [environment / "polydraft", "inspect", "smollm2-135m-instruct", "--json"], tmp_path
    )


@WITHOUT_EXTRAS
@pytest.mark.parametrize(
    ("command", "extra"),
    [
        (["serve", "MODEL", "HEAD"], "serve"),
        pytest.param(
            ["components", "MODEL", "HEAD", "--data", "text.jsonl", "--plot", "use.png"],
            "plots",
            marks=pytest.mark.nightly,
        ),
        pytest.param(
            ["train", "MODEL", "--trunk", "lora", "--data", "text.jsonl", "--out", "out"],
            "lora",
            marks=pytest.mark.nightly,
        ),
        pytest.param(
            ["generate", "MODEL", "HEAD", "--adapter", "adapter", "Hi"], "lora", marks=pytest.mark.nightly
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_what_needs_an_extra_names_it(
    environment: Path, names: list[str], tmp_path: Path, command: list[str], extra: str
) -> None:
    write_text(tmp_path / "text.jsonl")
    (tmp_path / "adapter").mkdir()
    given = {"MODEL": names[:2], "HEAD": names[2:]}
    words = [word for part in command for word in given.get(part, [part])]
    done = run([environment / "polydraft", *words], tmp_path)
    assert done.returncode in (1, 2)
    assert done.stdout == ""
    error = done.stderr.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert error.endswith(f": {install(extra)}")
    assert "Traceback" not in done.stderr
