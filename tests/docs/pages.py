"""The repository's pages, and the fenced blocks in them.

A block may be marked by a comment in the line above it (or above an empty line):

    <!-- nightly -->          run as it stands by `make test-nightly`, by no other test
    <!-- not run: why -->     run by nobody; its `polydraft` commands are still parsed
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
WRITTEN = ("docs/reference/", "docs/results/", "heads/smollm2-")
"""Pages that commands write: the reference, tables of figures, cards of heads."""
FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>\w*)\n(?P<body>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL
)
MARK = re.compile(r"<!-- (nightly|not run: [^>]+) -->\n\n?$")
PROGRAMS = (
    "polydraft",
    "python",
    "pip",
    "make",
    "torchrun",
    "accelerate",
    "curl",
    "npm",
    "git",
    "cd",
    "source",
)
SETTING = re.compile(r"[A-Z_]+=\S* ")


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced block. `mark` is "" where it has none, `line` that of its first line."""

    page: str
    line: int
    language: str
    text: str
    mark: str

    @property
    def is_shell(self) -> bool:
        """Whether it holds commands: it says so, or begins with a program's name."""
        if self.language:
            return self.language in ("bash", "sh", "console")
        first = SETTING.sub("", self.text.lstrip()).split(maxsplit=1)
        return bool(first) and first[0] in PROGRAMS

    @property
    def commands(self) -> list[list[str]]:
        """Words of every command of a block of them; continued lines are joined, comments left out."""
        lines = self.text.replace("\\\n", " ").splitlines()
        words = (shlex.split(line, comments=True) for line in lines)
        return [line for line in words if line]


def pages() -> list[str]:
    """README.md and every page under docs, examples and heads, but for those that commands write."""
    found = [
        ROOT / "README.md",
        *(p for folder in ("docs", "examples", "heads") for p in (ROOT / folder).rglob("*.md")),
    ]
    names = (path.relative_to(ROOT).as_posix() for path in found)
    return sorted(name for name in names if not name.startswith(WRITTEN))


def blocks(page: str) -> list[Block]:
    """All fenced blocks of a page."""
    text = (ROOT / page).read_text()
    found = []
    for match in FENCE.finditer(text):
        mark = MARK.search(text[: match.start()])
        found.append(
            Block(
                page=page,
                line=text.count("\n", 0, match.start()) + 2,
                language=match["language"],
                text=match["body"],
                mark=mark[1] if mark else "",
            )
        )
    return found


def polydraft_words(words: list[str]) -> list[str] | None:
    """What follows `polydraft` in a command, however it is started; None if it is another program's.

    The words of `python -m lab` come with `lab` before them.
    """
    words = [word for word in words if not SETTING.fullmatch(word + " ")]
    if words[0] == "polydraft":
        return words[1:]
    for i in range(len(words) - 1):
        if words[i] == "-m" and words[i + 1] in ("polydraft", "lab"):
            return words[i + 1 :] if words[i + 1] == "lab" else words[i + 2 :]
    return None
