"""How to get what an extra brings: the command that a message gives."""

from __future__ import annotations

import shlex
from importlib import metadata

from packaging.requirements import Requirement


def install(extra: str) -> str:
    """The `pip install` command for the packages of `extra`, in the versions that polydraft asks for.

    It names the packages and not `polydraft[extra]`, since polydraft is on no package index.
    """
    words = ["pip", "install"]
    for line in metadata.requires("polydraft") or []:
        wanted = Requirement(line)
        if wanted.marker is not None and wanted.marker.evaluate({"extra": extra}):
            wanted.marker = None
            words.append(str(wanted))
    return shlex.join(words)
