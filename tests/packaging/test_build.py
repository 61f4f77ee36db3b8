"""What is packed: both distributions hold what they should, nothing else, and are the same package."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tarfile
import tomllib
from importlib import metadata
from itertools import chain
from pathlib import Path
from zipfile import ZipFile

import pytest

from tests.packaging.conftest import ROOT

SOURCE = ROOT / "src/polydraft"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LIMIT = 40 << 20
"""Bytes; the head that ships is 22 MiB of them."""


def wheel(folder: Path) -> dict[str, bytes]:
    """Files of the one wheel in a folder."""
    (path,) = folder.glob("*.whl")
    with ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def below(folder: Path) -> dict[str, bytes]:
    """Files below a folder, caches left out."""
    files = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_its_data(distributions: Path) -> None:
    packed = {
        name.removeprefix("polydraft/"): data
        for name, data in wheel(distributions).items()
        if name.startswith("polydraft/")
    }
    heads = {f"data/heads/{name}": data for name, data in below(ROOT / "heads").items()}
    prompts = {f"data/prompts/{name}": data for name, data in below(ROOT / "prompts").items()}
    assert packed == below(SOURCE) | heads | prompts
    assert {"py.typed", "serving/page/index.html"} <= set(packed)
    assert "data/heads/smollm2-135m-instruct/model.safetensors" in packed


@pytest.mark.slow
def test_the_wheel_says_what_it_is(distributions: Path) -> None:
    (name,) = {name.split("/")[0] for name in wheel(distributions)} - {"polydraft"}
    files = {path.removeprefix(f"{name}/"): data for path, data in wheel(distributions).items()}
    assert files["licenses/LICENSE"] == (ROOT / "LICENSE").read_bytes()
    assert files["entry_points.txt"].decode().split("\n")[1] == "polydraft = polydraft.cli:main"
    text = files["METADATA"].decode()
    assert f"\nVersion: {PROJECT['version']}\n" in text
    assert "\nLicense-Expression: Apache-2.0\n" in text
    assert text.endswith((ROOT / "README.md").read_text())


@pytest.mark.slow
def test_the_source_distribution(distributions: Path, tmp_path: Path) -> None:
    (path,) = distributions.glob("*.tar.gz")
    assert path.stat().st_size < LIMIT
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    allowed = {
        "src", "heads", "prompts", "lab", "docs", "examples", "scripts", "tests", "CHANGELOG.md",
        "LICENSE", "Makefile", "README.md", "constraints.txt", "mkdocs.yml", "pyproject.toml", ".gitignore",
        "PKG-INFO",
    }  # fmt: skip
    assert {name.split("/")[0] for name in names} <= allowed
    assert not [
        name for name in names if re.search(r"__pycache__|\.pyc$|(^|/)\.venv|(^|/)runs/|_cache/", name)
    ]
    assert {"tests/tiny.py", "LICENSE", "constraints.txt", "src/polydraft/py.typed"} <= names


@pytest.mark.slow
def test_the_tree_and_the_source_distribution_build_the_same_wheel(
    distributions: Path, tmp_path: Path
) -> None:
    command = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(tmp_path),
        str(ROOT),
    ]
    subprocess.run(command, check=True, capture_output=True)
    assert wheel(tmp_path) == wheel(distributions)


@pytest.mark.slow
def test_an_index_would_take_them(distributions: Path) -> None:
    files = [str(path) for path in distributions.iterdir() if path.suffix in (".whl", ".gz")]
    command = [sys.executable, "-m", "twine", "--no-color", "check", "--strict", *files]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("PASSED") == 2


def imported() -> set[str]:
    """Top-level names that the package imports from elsewhere."""
    found = set()
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {name.name.split(".")[0] for name in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.split(".")[0])
    return found - set(sys.stdlib_module_names) - {"polydraft"}


PARTS = {"starlette": "fastapi", "pydantic": "fastapi", "pydantic_core": "fastapi"}
"""What others are made of, and is part of their interface."""


def test_what_is_imported_is_declared() -> None:
    declared = list(chain(PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()))
    names = {re.split(r"[^\w.-]", line)[0].lower().replace("_", "-") for line in declared}
    home = metadata.packages_distributions()
    missing = {
        name
        for name in imported()
        if not {dist.lower().replace("_", "-") for dist in home.get(PARTS.get(name, name), [])} & names
    }
    assert missing == set()


def test_versions_agree() -> None:
    import polydraft

    assert polydraft.__version__ == PROJECT["version"] == metadata.version("polydraft")
