"""What a shell offers for names of models and heads; it runs at each press of the tab key, without torch."""

from __future__ import annotations

from pathlib import Path

from polydraft.embedded import EMBEDDED


def complete_name(incomplete: str) -> list[str]:
    """The embedded name, and folders: a model's or head's as it is, others with a slash, to go on below."""
    own = [EMBEDDED] if EMBEDDED.startswith(incomplete) else []
    found = below(incomplete)
    while not own and len(found) == 1 and found[0].endswith("/") and (deeper := below(found[0])):
        found = deeper
    return own + found


def below(incomplete: str) -> list[str]:
    """Folders whose path begins with `incomplete`, as it is written; hidden ones when asked for by a dot."""
    typed, start = incomplete[: incomplete.rfind("/") + 1], incomplete[incomplete.rfind("/") + 1 :]
    parent = Path(typed or ".").expanduser()
    if not parent.is_dir():
        return []
    names = sorted(path.name for path in parent.iterdir() if path.is_dir() and path.name.startswith(start))
    return [
        f"{typed}{name}" if (parent / name / "config.json").is_file() else f"{typed}{name}/"
        for name in names
        if start or not name.startswith(".")
    ]
