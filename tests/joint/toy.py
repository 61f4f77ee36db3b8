"""A sixth member: the example of docs/add-a-family.md, run as it stands there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from polydraft.joint import MEMBERS, Member, register

DOCUMENT = Path(__file__).parents[2] / "docs" / "add-a-family.md"
TOY = "switch"


@cache
def example() -> dict[str, Any]:
    """What the document's code defines; it registers its member, and is taken out of the registry here."""
    (code,) = re.findall(r"^```python\n(.*?)^```$", DOCUMENT.read_text(), flags=re.DOTALL | re.MULTILINE)
    names: dict[str, Any] = {"__name__": TOY}
    exec(compile(code, str(DOCUMENT), "exec"), names)
    names["member"] = MEMBERS.pop(TOY)
    return names


@contextmanager
def registered() -> Iterator[Member]:
    """The toy as a member of the family, for a while."""
    member: Member = example()["member"]
    register(member)
    try:
        yield member
    finally:
        del MEMBERS[TOY]
