"""constraints.txt pins whatever the project and its extras bring, by version alone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import metadata

from packaging.requirements import Requirement

from tests.packaging.conftest import ROOT
from tests.packaging.test_build import PROJECT

PIN = re.compile(r"([\w.-]+)==[\w.!]+")


def plain(name: str) -> str:
    """A distribution's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def brought(name: str, extras: frozenset[str], seen: set[tuple[str, frozenset[str]]]) -> Iterator[str]:
    """`name`, and what it needs with these extras, here and in turn."""
    if (name, extras) in seen:
        return
    seen.add((name, extras))
    yield name
    for line in metadata.requires(name) or []:
        wanted = Requirement(line)
        if wanted.marker is None or any(wanted.marker.evaluate({"extra": e}) for e in extras | {""}):
            yield from brought(plain(wanted.name), frozenset(wanted.extras), seen)


def test_everything_is_pinned() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [PIN.fullmatch(line) for line in lines if not line.startswith("#")]
    assert all(pins)
    names = [plain(pin[1]) for pin in pins if pin]
    assert len(names) == len(set(names))
    extras = frozenset(PROJECT["optional-dependencies"])
    needed = set(brought("polydraft", extras, set()))
    # torch is chosen by the Makefile: builds for the CPU and for CUDA have other versions and other parts.
    own = set(brought("torch", frozenset(), set()))
    assert needed - own - {"polydraft"} <= set(names)
    assert not {"torch", "polydraft", "pip"} & set(names)
