"""Write the reference of the command line, docs/reference/cli.md, from the command line itself.

python scripts/cli_reference.py           # write it
python scripts/cli_reference.py --check   # exit code 1 if it is not up to date
"""

from __future__ import annotations

import argparse
import html
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "cli.md"
NOTE = "<!-- Written by scripts/cli_reference.py: change the commands' own help instead. -->\n\n"


def reference() -> str:
    """The page, as typer writes it."""
    command = [sys.executable, "-m", "typer", "polydraft.cli", "utils", "docs", "--name", "polydraft"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    text = html.unescape(done.stdout).rstrip()
    return NOTE + text.replace("# `polydraft`", "# Command line", 1) + "\n"


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description="Write docs/reference/cli.md.")
    parser.add_argument("--check", action="store_true", help="change nothing; say whether it is up to date")
    check = parser.parse_args().check
    found = reference()
    if not check:
        PAGE.write_text(found)
    elif PAGE.read_text() != found:
        sys.exit(f"{PAGE.name} is not up to date: run `python scripts/cli_reference.py`")


if __name__ == "__main__":
    main()
