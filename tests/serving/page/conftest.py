"""A headless Chromium, a fake server behind the page, and a guard on everything the page does."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.serving.page.fake import Fake, words

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from tests.serving.page.visitor import Visitor

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
"""It draws without a graphics card, and asks nothing of the network by itself."""
TEXT = [
    "The",
    " sky",
    " is",
    " blue",
    ".",
    "\n",
    "Air",
    " scatters",
    " short",
    " waves",
    " the",
    " most",
    ".",
]
PATIENCE = 60_000
"""Milliseconds that a busy machine may take for what takes a tenth of a second elsewhere."""


def chromium() -> str | None:
    """The browser's path: $POLYDRAFT_BROWSER, or the first one found; None without any."""
    found = os.environ.get("POLYDRAFT_BROWSER") or next(filter(None, map(shutil.which, BROWSERS)), None)
    return found if found and Path(found).exists() else None


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One browser for the tests of a file; while it runs, no other loop can in this thread."""
    api = pytest.importorskip("playwright.sync_api", reason="the page's tests need playwright")
    path = chromium()
    if path is None:
        pytest.skip("no Chromium found: install one or set POLYDRAFT_BROWSER to its path")
    api.expect.set_options(timeout=PATIENCE)
    with api.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def fake() -> Iterator[Fake]:
    """A running fake server with a short text."""
    server = Fake(tokens=words(TEXT))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def visit(browser: Browser) -> Iterator[Callable[..., Visitor]]:
    """Opens a page as a new visitor; at the end no visitor may have met an error or another origin."""
    from tests.serving.page.visitor import Visitor

    visitors: list[Visitor] = []

    def open_page(url: str, **options: Any) -> Visitor:
        visitors.append(Visitor(browser.new_context(**options), url, patience=PATIENCE))
        return visitors[-1]

    yield open_page
    for visitor in visitors:
        visitor.context.close()
        assert visitor.strays == []
        assert visitor.complaints == []


@pytest.fixture
def visitor(visit: Callable[..., Visitor], fake: Fake) -> Visitor:
    """One visitor of the fake server's page."""
    return visit(fake.url)
