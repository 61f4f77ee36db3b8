"""Completion in shells: the scripts, and what they are answered; help without heavy imports."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from polydraft.cli.completion import complete_name
from polydraft.embedded import EMBEDDED

HEAVY = ("torch", "transformers", "huggingface_hub", "datasets", "matplotlib", "fastapi")


def polydraft(*args: str, cwd: Path | None = None, **variables: str) -> str:
    """Output of the command in a process of its own."""
    command = [sys.executable, "-m", "polydraft", *args]
    return subprocess.run(
        command, env=os.environ | variables, cwd=cwd, capture_output=True, text=True, check=True
    ).stdout


@pytest.mark.parametrize(
    ("shell", "registers"),
    [
        ("bash", "complete -o default -F _polydraft_completion polydraft"),
        ("zsh", "#compdef polydraft"),
        ("fish", "complete --command polydraft"),
    ],
)
def test_scripts(shell: str, registers: str) -> None:
    shown = polydraft("--show-completion", shell, _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    sourced = polydraft(_POLYDRAFT_COMPLETE=f"source_{shell}")
    assert registers in shown
    assert f"_POLYDRAFT_COMPLETE=complete_{shell}" in shown
    assert sourced.split() == shown.split()


def test_commands_options_and_folders(tmp_path: Path) -> None:
    (tmp_path / "runs/one").mkdir(parents=True)
    (tmp_path / "runs/one/config.json").touch()

    def tab(line: str) -> list[str]:
        words = {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1)}
        return polydraft(cwd=tmp_path, _POLYDRAFT_COMPLETE="complete_bash", **words).split()

    assert tab("polydraft insp") == ["inspect"]
    assert {"generate", "bench", "push", "card"} <= set(tab("polydraft "))
    assert tab("polydraft generate --max-n") == ["--max-new-tokens"]
    assert tab("polydraft generate --head r") == tab("polydraft card r") == ["runs/one"]
    assert tab("polydraft bench --model smol") == [EMBEDDED]


def test_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("heads/a", "heads/b/deep", ".hidden", "models/only/deeper"):
        Path(folder).mkdir(parents=True)
    Path("heads/a/config.json").touch()
    Path("a-file").touch()
    assert complete_name("") == [EMBEDDED, "heads/", "models/"]
    assert complete_name("he") == ["heads/a", "heads/b/"]  # goes on below the only folder
    assert complete_name("heads/b") == ["heads/b/deep/"]
    assert complete_name("mod") == ["models/only/deeper/"]
    assert complete_name(".h") == [".hidden/"]
    assert complete_name(f"{tmp_path}/heads/a") == [f"{tmp_path}/heads/a"]
    assert complete_name("nowhere/x") == complete_name("a-f") == []


@pytest.mark.parametrize("args", ["['--help']", "['generate', '--help']", "['push', '--help']"])
def test_help_imports_nothing_heavy(args: str) -> None:
    script = (
        f"import sys\nsys.argv[1:] = {args}\nfrom polydraft.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        f"sys.exit(str([name for name in {HEAVY} if name in sys.modules] or '') or 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Usage: polydraft" in done.stdout
