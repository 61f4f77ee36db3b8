"""Extension of griffe (`make docs`): docstrings that name several arguments in one line, one to a line.

    model: the base model. tokenizer, seed: checked too.

becomes three arguments of the reference's table. Words before a colon count only where the function has an
argument, or the class an attribute, of that name.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

SECTION = re.compile(r"^(Args|Attributes):\n((?:[ ]{4}.*\n?|\n)+)", re.MULTILINE)
NAMES = re.compile(r"(?:^|(?<=[.;?!)] ))((?:\*{0,2}\w+)(?:, \*{0,2}\w+)*): ")


def separated(text: str, known: set[str]) -> str:
    """`text`, a docstring, with every one of the `known` names of its sections on a line of its own."""

    def section(found: re.Match[str]) -> str:
        entries = _entries(found[2], known)
        return f"{found[1]}:\n" + "".join(f"    {line}\n" for line in entries) + "\n" if entries else found[0]

    return SECTION.sub(section, text + "\n").rstrip()


def _entries(body: str, known: set[str]) -> list[str]:
    """`name: what it is`, for each name of a section's body; nothing if none is known."""
    words = " ".join(line.strip() for line in body.splitlines())
    starts = [m for m in NAMES.finditer(words) if {n.strip("* ") for n in m[1].split(",")} <= known]
    ends = [m.start() for m in starts[1:]] + [len(words)] * bool(starts)
    return [
        f"{name.strip()}: {words[start.end() : end].strip()}"
        for start, end in zip(starts, ends, strict=True)
        for name in start[1].split(",")
    ]


class OneArgumentALine(griffe.Extension):
    """Applies `separated` to all functions and classes."""

    def on_function(self, *, func: griffe.Function, **kwargs: Any) -> None:
        """Of a function, or method."""
        _apply(func, {parameter.name for parameter in func.parameters})

    def on_class_members(self, *, cls: griffe.Class, **kwargs: Any) -> None:
        """Of a class: the arguments of its `__init__` and its attributes."""
        known = {*cls.members, *(p.name for p in cls.parameters)}
        _apply(cls, known)


def _apply(thing: griffe.Object, known: set[str]) -> None:
    if thing.docstring is not None:
        thing.docstring.value = separated(thing.docstring.value, known)
