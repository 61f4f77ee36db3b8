"""Read what a command of `python -m lab` has written, with one-line errors."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from polydraft.errors import InputError


def read_results(path: Path, keys: Sequence[str], *, of: str) -> dict[str, Any]:
    """A results.json; `keys`: what must be in it; `of`: the command that writes it.

    Raises:
        InputError: it is missing, no JSON, or of another command.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: give the results.json of `python -m lab {of}`") from error
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is no JSON: give the results.json of `python -m lab {of}`") from error
    missing = [key for key in keys if not isinstance(content, dict) or key not in content]
    if missing:
        raise InputError(f"{path} has no {missing[0]!r}: give the results.json of `python -m lab {of}`")
    found: dict[str, Any] = content
    return found
