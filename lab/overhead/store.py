"""Where the measurements lie; see `run`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lab.grid.store import read_json


def round_path(out: Path, number: int) -> Path:
    """A round, a row per head; there only when it is complete."""
    return out / "rounds" / f"{number:03d}.json"


def read_rounds(out: Path) -> list[dict[str, Any]]:
    """All complete rounds."""
    return [read_json(path) for path in sorted((out / "rounds").glob("*.json"))]


def memory_path(out: Path, name: str) -> Path:
    """Peak memory of one head."""
    return out / "memory" / f"{name}.json"
