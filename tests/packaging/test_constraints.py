"""constraints.txt pins whatever the project and its extras bring, by version alone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import metadata

import pytest
from packaging.requirements import Requirement

from tests.packaging.conftest import ROOT
from tests.packaging.test_build import PROJECT

LINES = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
PIN = re.compile(r"([\w.-]+)==[\w.!]+")
TORCH = "torch==2.13.*"
"""Torch alone is pinned by a prefix: its builds for the CPU and for CUDA have versions of their own."""


BUILDS = ("torch", "triton")
"""What differs from build to build, and what it needs: each build of torch pins its own."""


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
        if plain(wanted.name) in BUILDS:
            continue
        if wanted.marker is None or any(wanted.marker.evaluate({"extra": e}) for e in extras | {""}):
            yield from brought(plain(wanted.name), frozenset(wanted.extras), seen)


def test_everything_is_pinned() -> None:
    pins = [PIN.fullmatch(line) for line in LINES if line != TORCH]
    assert all(pins)
    names = [plain(pin[1]) for pin in pins if pin]
    assert len(names) == len(set(names))
    extras = frozenset(PROJECT["optional-dependencies"])
    needed = set(brought("polydraft", extras, set()))
    assert needed - {"polydraft"} <= set(names)
    assert not {"torch", "polydraft", "pip"} & set(names)


@pytest.mark.parametrize(
    ("version", "taken"),
    [("2.13.0", True), ("2.13.0+cpu", True), ("2.13.1+cu130", True), ("2.12.1", False), ("2.14.0", False)],
)
def test_any_build_of_the_torch_that_is_tested(version: str, taken: bool) -> None:
    assert TORCH in LINES
    assert Requirement(TORCH).specifier.contains(version) is taken
