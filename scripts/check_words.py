"""Find words for which the field, or plain English, has a better one. Part of `make lint`.

python scripts/check_words.py        # exit code 1, and a line for each place
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
INSTEAD = {
    r"(?<!left )(?<!nothing )behind(?! (?:a|the) (?:reverse )?proxy)": "after",
    r"anew": "again",
    r"dear": "expensive",
    r"foretell\w*|foretold": "predict",
    r"from nothing": "from scratch",
    r"tells nothing": "marks an unknown token",
    r"so many (?!of (?:them|these))": "the number's name",
    r"as many as pay": "the fastest number",
    r"of one's own": "of your own, custom",
}
"""What is looked for, as a regular expression of whole words, and what to write."""
LEFT_OUT = ("docs/log.md", "docs/results/", "docs/reference/cli.md")
"""The log is a record; the others are written by commands."""
FRAGMENT = re.compile(r'"""(?:Of|None|As) ')
"""How a docstring begins that is no sentence."""


def pages() -> list[Path]:
    """Return the sources of package and laboratory, the README and the guides."""
    found = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    found += [path for folder in ("src", "lab") for path in (ROOT / folder).rglob("*.py")]
    return sorted(p for p in found if not p.relative_to(ROOT).as_posix().startswith(LEFT_OUT))


def places(path: Path) -> list[str]:
    """Return a line for each place in `path` that should be put otherwise."""
    out = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        where = f"{path.relative_to(ROOT)}:{number}"
        for words, instead in INSTEAD.items():
            out += [
                f"{where}: {m[0]!r}: {instead}" for m in re.finditer(rf"\b(?:{words})\b", line, re.IGNORECASE)
            ]
        if "src" in path.parts and FRAGMENT.search(line):
            out.append(f"{where}: a docstring is a whole sentence")
    return out


if __name__ == "__main__":
    found = [place for path in pages() for place in places(path)]
    print("\n".join(found))
    sys.exit(bool(found))
