"""The page for those who use no mouse, hear it, have little room, or want it dark."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

pytest.importorskip("playwright.sync_api", reason="the page's tests need playwright")
pytest.importorskip("axe_playwright_python", reason="the page's tests need axe-playwright-python")

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from tests.serving.page.conftest import TEXT
from tests.serving.page.fake import Fake, words
from tests.serving.page.visitor import Visitor


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_rule_of_axe_is_broken(visit: Callable[..., Visitor], fake: Fake, scheme: str) -> None:
    """With every kind of token, the figures of one, an error, a field for a key, and a race."""
    fake.tokens = words([f" w{i}" for i in range(40)])
    fake.tokens[20] |= {"kind": "copied"}
    fake.key = "secret"
    visitor = visit(fake.url, color_scheme=scheme)
    visitor.generate()
    expect(visitor.page.get_by_role("alert")).to_contain_text("Enter its API key")
    broken(visitor)
    visitor.page.get_by_label("API key").fill("secret")
    visitor.choose("race")
    visitor.generate()
    visitor.wait()
    visitor.pane().locator(".token.drafted").first.hover()
    broken(visitor)


def broken(visitor: Visitor) -> None:
    found = Axe().run(visitor.page).response
    assert len(found["passes"]) > 15
    assert found["violations"] == [], json.dumps(found["violations"], indent=1)


def test_everything_is_done_by_keys(visitor: Visitor, fake: Fake) -> None:
    """From the prompt to the figures of a token: by Tab, arrows, typing and the keys that the page names."""
    page, keys = visitor.page, visitor.page.keyboard
    focused = lambda: page.evaluate("document.activeElement.name || document.activeElement.id")  # noqa: E731
    page.get_by_label("Prompt").focus()
    keys.press("Control+A")
    keys.type("Why?")
    keys.press("Tab")
    assert focused() == "mode"
    keys.press("Tab")
    keys.press("ArrowRight")
    expect(page.get_by_label("plain", exact=True)).to_be_checked()
    keys.press("ArrowLeft")
    for name in ("max_tokens", "temperature", "top_p", "seed"):
        keys.press("Tab")
        assert focused() == name
    keys.type("7")
    keys.press("Tab")
    assert focused() == "generate"
    keys.press("Enter")
    visitor.wait()
    assert [(body["messages"][0]["content"], body["seed"]) for _, body in fake.bodies] == [("Why?", 7)]
    visitor.page.locator("#generate").focus()  # it was disabled meanwhile
    keys.press("Tab")
    assert focused() == "new-chat"
    keys.press("Tab")
    assert visitor.facts()["Token"] == "1, id 1000"  # the first token is chosen with the text's focus
    keys.press("Control+Enter")
    expect(visitor.pane().locator(".token.current")).to_have_count(0)
    visitor.wait()
    assert len(fake.bodies) == 2


LISTEN = """() => {
    const box = document.querySelector("#speech");
    window.said = [];
    new MutationObserver(() => window.said.push(box.textContent)).observe(box, { childList: true });
}"""
"""Keeps what a screen reader would be told, however many words a frame of the page brings."""


def test_whole_sentences_are_said_and_no_more(visitor: Visitor, fake: Fake) -> None:
    """A screen reader hears a sentence when it has ended, and at the end what is left of the text."""
    fake.tokens = words([*TEXT, " And", " more"])
    fake.hold_at = 8
    visitor.page.evaluate(LISTEN)
    visitor.generate()
    expect(visitor.page.locator("#speech")).to_have_text("The sky is blue.")
    fake.go.set()
    visitor.wait()
    said = [words for words in visitor.page.evaluate("window.said") if words]
    assert said[0] == "The sky is blue."
    assert " ".join(said) == "The sky is blue. Air scatters short waves the most. And more"
    assert visitor.pane().locator(".text[aria-live]").count() == 0


def test_a_narrow_window_has_the_figures_in_a_sheet(visit: Callable[..., Visitor], fake: Fake) -> None:
    visitor = visit(fake.url, viewport={"width": 360, "height": 640}, has_touch=True)
    fake.tokens = words([f" word{i}" for i in range(60)])
    visitor.generate()
    visitor.wait()
    page = visitor.page
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    expect(page.locator("#inspector")).to_be_hidden()
    token = visitor.pane().locator(".token").nth(30)
    token.tap()
    assert visitor.facts()["Token"] == "31, id 1030"
    sheet, place = page.locator("#inspector").bounding_box(), token.bounding_box()
    assert sheet is not None and place is not None
    assert place["y"] + place["height"] <= sheet["y"]  # not under the sheet
    page.get_by_role("button", name="Close the token's figures").tap()
    expect(page.locator("#inspector")).to_be_hidden()
