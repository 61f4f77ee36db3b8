"""The reference: written from the code, complete, and with something to read for every public name."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import polydraft
from tests.docs.pages import ROOT

ROOMS = ("decoding", "heads", "joint", "training", "bench", "serving", "hub")
DIRECTIVE = re.compile(r"^::: (\S+)$", re.MULTILINE)
PAGES = {path.name: path.read_text() for path in (ROOT / "docs" / "reference").glob("*.md")}
DIRECTIVES = [name for text in PAGES.values() for name in DIRECTIVE.findall(text)]


def modules(room: str) -> Iterator[ModuleType]:
    """Every module of a room."""
    package = importlib.import_module(f"polydraft.{room}")
    yield package
    for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        yield importlib.import_module(found.name)


def public(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """Functions and classes that `module` defines, with the methods of the classes; no leading underscore.

    Of protocols the class alone: their methods are what others have.
    """
    for name, thing in vars(module).items():
        if name.startswith("_") or getattr(thing, "__module__", None) != module.__name__:
            continue
        if inspect.isfunction(thing) or inspect.isclass(thing):
            yield name, thing
        if inspect.isclass(thing) and not getattr(thing, "_is_protocol", False):
            for inner, method in vars(thing).items():
                if not inner.startswith("_") and inspect.isfunction(method):
                    yield f"{name}.{inner}", method


def resolve(path: str) -> Any:
    """What a dotted path names: a module, or something in one."""
    parts = path.split(".")
    for length in range(len(parts), 0, -1):
        name = ".".join(parts[:length])
        try:
            thing: Any = importlib.import_module(name)
        except ModuleNotFoundError:
            continue
        for attribute in parts[length:]:
            thing = getattr(thing, attribute)
        return thing
    raise LookupError(path)


@pytest.mark.parametrize("room", ROOMS)
def test_everything_public_is_documented(room: str) -> None:
    silent = [
        f"{m.__name__}.{name}"
        for m in modules(room)
        for name, thing in public(m)
        if not inspect.getdoc(thing)
    ]
    assert silent == []


@pytest.mark.parametrize("room", ROOMS)
def test_modules_say_what_they_are(room: str) -> None:
    filled = [m for m in modules(room) if m.__file__ and Path(m.__file__).stat().st_size]
    assert [m.__name__ for m in filled if not m.__doc__] == []


@pytest.mark.parametrize("name", polydraft.__all__)
def test_public_names_say_what_they_take_and_raise(name: str) -> None:
    thing = getattr(polydraft, name)
    text = inspect.getdoc(thing) or ""
    assert len(text) > 30
    code = thing.__init__ if inspect.isclass(thing) else thing
    taken = (
        set(inspect.signature(code).parameters) - {"self", "args", "kwargs"}
        if inspect.isfunction(code)
        else set()
    )
    if inspect.isfunction(thing):
        unnamed = {argument for argument in taken if not re.search(rf"\b{argument}\b", text)}
        assert unnamed == set()
        assert ("raise InputError" in inspect.getsource(thing)) <= ("InputError" in text)


@pytest.mark.parametrize("path", DIRECTIVES)
def test_the_reference_shows_what_is_there(path: str) -> None:
    assert inspect.getdoc(resolve(path))


def test_the_reference_shows_all_that_is_public() -> None:
    listed = [path for path in DIRECTIVES if not path.startswith("polydraft.serving.")]  # it exports nothing
    shown = {id(resolve(path)) for path in listed}
    homes = {path for path in listed if isinstance(resolve(path), ModuleType)}
    rooms = [importlib.import_module(f"polydraft.{room}") for room in ("decoding", "heads", "joint", "hub")]
    names = {name: getattr(module, name) for module in (polydraft, *rooms) for name in module.__all__}
    missing = {
        name for name, thing in names.items()
        if id(thing) not in shown and getattr(thing, "__module__", None) not in homes
        and not isinstance(thing, (dict, str, ModuleType))
    }  # fmt: skip
    assert missing - {"Warp"} == set()


def test_the_command_line_reference_is_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, "scripts/cli_reference.py", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_site_builds(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    page = (tmp_path / "site" / "reference" / "decoding.html").read_text()
    assert 'id="polydraft.decoding.generate.generate"' in page
    assert "tree.svg" in (tmp_path / "site" / "maths.html").read_text()
    outside = re.compile(r'<(?:script|img|iframe)[^>]*src="(?:https?:)?//|<link[^>]*href="(?:https?:)?//')
    loaded = [path.name for path in (tmp_path / "site").rglob("*.html") if outside.search(path.read_text())]
    assert loaded == []  # it opens, and is searched, without a network
