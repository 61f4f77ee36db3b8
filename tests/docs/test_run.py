"""The blocks of every page, run in order: small, with a tiny model, or, at night, as they stand.

A few pages run small at night alone, and so do blocks that compile.
"""

from __future__ import annotations

import doctest
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import lab.cli
import polydraft
import polydraft.cli
from polydraft.joint import MEMBERS
from polydraft.loading import load_head, load_model
from tests.docs.pages import ROOT, Block, blocks, pages, polydraft_words
from tests.docs.parsing import ELLIPSIS
from tests.docs.place import EMBEDDED, lay_out, make_supplies, small

NOT_RUN = {
    "docs/results.md": "hours: these commands make the published figures",
    "docs/log.md": "a record: what was run then",
}
"""Pages whose commands are parsed alone."""
SLOW = (
    "README.md",
    "docs/decoding.md",
    "docs/howto/own-data.md",
    "docs/training.md",
    "docs/tutorial.md",
)
"""Pages of many commands."""
RARELY = ("docs/howto/own-model.md", "docs/projection.md")
"""Pages whose commands are much like those of others: by day they are parsed alone."""
COMPILES = "compiled=True"
"""In blocks that wait for a compiler."""
ENDLESS = ("serve", "push")
"""Commands that run until they are stopped, or need a hub."""
AT_NIGHT = ("docs/tutorial.md",)
"""Pages that are also run as they stand, with the embedded model."""


def runnable(page: str) -> list[Block]:
    """Blocks of commands and of Python that carry no mark."""
    if page in NOT_RUN:
        return []
    return [
        block for block in blocks(page) if not block.mark and (block.is_shell or block.language == "python")
    ]


def daily(page: str) -> list[Block]:
    """Those of them that run by day."""
    return [] if page in RARELY else [block for block in runnable(page) if COMPILES not in block.text]


def by_day() -> list[Any]:
    slow = [pytest.mark.slow]
    return [pytest.param(page, marks=slow if page in SLOW else []) for page in pages() if daily(page)]


@pytest.fixture(scope="module")
def supplies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_supplies(tmp_path_factory.mktemp("supplies"))


@pytest.fixture
def registry() -> Iterator[None]:
    """What a page registers is known to no other test."""
    before = dict(MEMBERS)
    yield
    MEMBERS.clear()
    MEMBERS.update(before)


@pytest.fixture
def folder(tmp_path: Path, supplies: Path, registry: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    lay_out(tmp_path, supplies)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("POLYDRAFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


def names(supplies: Path) -> dict[str, Any]:
    """What the Python of a page may take for granted."""
    model, tokenizer = load_model(str(supplies / "model"), dtype=torch.float32)
    head = load_head(str(supplies / "head"), model=model, tokenizer=tokenizer)
    inputs = tokenizer(["def f(n):", "def g(m):"], return_tensors="pt")
    given = {"polydraft": polydraft, "model": model, "tokenizer": tokenizer, "head": head, "inputs": inputs}
    return given | {"input_ids": inputs.input_ids, "mask": inputs.attention_mask}


def run_shell(block: Block, supplies: Path) -> None:
    """Commands of polydraft in this process and small; scripts that the page itself has made."""
    for words in block.commands:
        after = polydraft_words(words)
        if after is None:
            assert words[0] == "python" and Path(words[1]).exists(), (
                f"{block.page}:{block.line}: mark this block"
            )
            subprocess.run(words, check=True)
        elif ELLIPSIS not in after:
            assert after[0] not in ENDLESS, f"{block.page}:{block.line}: mark this block"
            app = lab.cli.app if after[0] == "lab" else polydraft.cli.app
            given = small(after, supplies)
            result = CliRunner(env={"COLUMNS": "200"}).invoke(app, given[after[0] == "lab" :])
            assert result.exit_code == 0, f"{block.page}:{block.line}: {' '.join(after)}\n{result.output}"


def run_python(block: Block, given: dict[str, Any]) -> None:
    """A script, or a session with what it answers."""
    if block.text.lstrip().startswith(">>>"):
        session = doctest.DocTestParser().get_doctest(
            block.text, given, block.page, block.page, block.line - 1
        )
        session.globs = given  # not a copy: later blocks go on with it
        report: list[str] = []
        assert doctest.DocTestRunner().run(session, out=report.append, clear_globs=False).failed == 0, (
            "".join(report)
        )
    else:
        text = block.text.replace(f'load_model("{EMBEDDED}"', 'load_model("path/to/model"')
        exec(compile("\n" * (block.line - 1) + text, block.page, "exec"), given)


def run_small(chosen: list[Block], supplies: Path) -> None:
    given = names(supplies)
    for block in chosen:
        if block.is_shell:
            run_shell(block, supplies)
        else:
            run_python(block, given)


@pytest.mark.parametrize("page", by_day())
def test_page_runs(page: str, folder: Path, supplies: Path) -> None:
    run_small(daily(page), supplies)


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in pages() if len(runnable(page)) > len(daily(page))])
def test_all_of_a_page_runs(page: str, folder: Path, supplies: Path) -> None:
    run_small(runnable(page), supplies)


@pytest.fixture
def servers() -> Iterator[list[subprocess.Popen[str]]]:
    """Those that a page starts and leaves running; stopped at its end."""
    started: list[subprocess.Popen[str]] = []
    yield started
    for server in started:
        server.terminate()
        assert server.wait(60) == 0


def run_at_night(block: Block, folder: Path, servers: list[subprocess.Popen[str]]) -> None:
    """A block as it stands; a server is left running once it says that it is there."""
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    if block.is_shell and polydraft_words(block.commands[0]) and "serve" in block.commands[0]:
        server = subprocess.Popen(
            block.commands[0], cwd=folder, env=environment, text=True, stdout=subprocess.PIPE
        )
        servers.append(server)
        assert server.stdout is not None and "serving" in server.stdout.readline()
        return
    command = ["bash", "-euo", "pipefail", "-c"] if block.is_shell else [sys.executable, "-c"]
    subprocess.run([*command, block.text], check=True, cwd=folder, env=environment)


def nightly(page: str) -> list[Block]:
    """What runs as it stands: of pages for the night all without a reason not to, else what is marked so."""
    chosen = {block.line for block in runnable(page)} if page in AT_NIGHT else set()
    return [block for block in blocks(page) if block.line in chosen or block.mark == "nightly"]


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.real_model
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("page", [page for page in pages() if nightly(page)])
def test_page_runs_as_it_stands(page: str, tmp_path: Path, servers: list[subprocess.Popen[str]]) -> None:
    for block in nightly(page):
        run_at_night(block, tmp_path if page in AT_NIGHT else ROOT, servers)
