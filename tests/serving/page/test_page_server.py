"""What the page does when the server refuses, fails, goes away and comes back."""

from __future__ import annotations

import pytest

pytest.importorskip("playwright.sync_api", reason="the page's tests need playwright")

from playwright.sync_api import expect

from tests.serving.page.conftest import TEXT
from tests.serving.page.fake import Fake, words
from tests.serving.page.visitor import Visitor

AWAY = "The server is not answering, trying again …"


def test_stop_ends_the_request_and_keeps_the_text(visitor: Visitor, fake: Fake) -> None:
    fake.tokens = words([" a"] * 5000)
    fake.hold_at = 5
    visitor.generate(Max_tokens=5000)
    expect(visitor.pane().locator(".token")).to_have_count(5)
    visitor.page.get_by_role("button", name="Stop").click()
    visitor.wait("Stopped.")
    fake.go.set()
    assert fake.left.wait(30)
    assert visitor.text() == " a" * 5
    fake.tokens = words(TEXT)
    visitor.generate(Max_tokens=100)
    visitor.wait()
    assert visitor.text() == "".join(TEXT)


def test_escape_stops_too(visitor: Visitor, fake: Fake) -> None:
    fake.hold_at = 5
    visitor.generate()
    expect(visitor.pane().locator(".token")).to_have_count(5)
    expect(visitor.page.get_by_role("button", name="Generate")).to_be_disabled()
    visitor.page.keyboard.press("Escape")
    visitor.wait("Stopped.")
    expect(visitor.page.get_by_role("button", name="Stop")).to_be_disabled()


def test_a_restart_of_the_server_needs_no_reload(visitor: Visitor, fake: Fake) -> None:
    fake.hold_at = 6
    visitor.generate("Kept?")
    expect(visitor.pane().locator(".token")).to_have_count(6)
    fake.stop()
    visitor.expect_error(AWAY)
    assert visitor.text() == "".join(TEXT[:6])
    assert visitor.page.get_by_label("Prompt").input_value() == "Kept?"
    fake.hold_at = None
    fake.rank = 8
    fake.start()
    visitor.wait("The server is back.")
    visitor.expect_error("")
    expect(visitor.page.locator("#served")).to_contain_text("8 components")
    visitor.page.get_by_role("button", name="Generate").click()
    visitor.wait()
    assert visitor.text() == "".join(TEXT)
    assert [body["messages"][0]["content"] for _, body in fake.bodies] == ["Kept?", "Kept?"]


def test_a_new_try_may_come_before_the_server(visitor: Visitor, fake: Fake) -> None:
    fake.stop()
    visitor.generate()
    visitor.expect_error(AWAY)
    visitor.page.get_by_role("button", name="Generate").click()
    visitor.expect_error(AWAY)
    fake.start()
    visitor.page.get_by_role("button", name="Generate").click()
    visitor.wait()
    assert visitor.text() == "".join(TEXT)


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (400, "max_tokens is too large:\n say less"),
        (429, "the queue is full: try again later"),
        (503, "the server is shutting down"),
    ],
)
def test_a_refusal_is_one_line(visitor: Visitor, fake: Fake, status: int, message: str) -> None:
    fake.refuse = (status, message)
    visitor.generate()
    visitor.expect_error(f"The server answered {status}: {' '.join(message.split())}.")
    fake.refuse = None
    visitor.page.get_by_role("button", name="Generate").click()
    visitor.wait()
    visitor.expect_error("")


def test_a_refusal_leaves_the_last_answer(visitor: Visitor, fake: Fake) -> None:
    visitor.generate()
    visitor.wait()
    figures = [visitor.figure(part) for part in ("tokens", "totals", "per-step")]
    fake.refuse = (400, "top_p must be above 0")
    for decoding in ("drafted", "race"):
        visitor.choose(decoding)
        visitor.generate("And then?")
        visitor.expect_error("The server answered 400: top_p must be above 0.")
        assert visitor.text() == "".join(TEXT)
        assert [visitor.figure(part) for part in ("tokens", "totals", "per-step")] == figures
        assert visitor.legend()["drafted-1"] == 4
    fake.refuse = None
    visitor.page.get_by_role("button", name="Generate").click()
    visitor.wait()
    asked = [message["content"] for message in fake.bodies[-1][1]["messages"]]
    assert asked == ["Why?", "".join(TEXT), "And then?"]


def test_an_error_within_a_text_is_one_line(visitor: Visitor, fake: Fake) -> None:
    fake.fails_after = 3
    visitor.generate()
    visitor.expect_error("The server ended the text: the request took longer than 1 seconds")
    assert visitor.text() == "".join(TEXT[:3])


def test_a_text_that_breaks_off_is_no_whole_text(visitor: Visitor, fake: Fake) -> None:
    """The connection ends properly, the text does not; the server is there all the time."""
    fake.breaks_after = 3
    visitor.generate()
    visitor.wait("The server is back.")
    assert visitor.text() == "".join(TEXT[:3])


def test_a_key_is_asked_for_only_where_one_is_needed(visitor: Visitor, fake: Fake) -> None:
    field = visitor.page.get_by_label("API key")
    visitor.generate()
    visitor.wait()
    expect(field).to_be_hidden()
    fake.key = "secret"
    visitor.page.get_by_role("button", name="Generate").click()
    visitor.expect_error("The server answered 401: the API key is missing or wrong. Enter its API key.")
    expect(field).to_be_focused()
    field.fill("wrong")
    visitor.page.get_by_role("button", name="Generate").click()
    visitor.expect_error("The server answered 401: the API key is missing or wrong. Enter its API key.")
    field.fill("secret")
    visitor.page.get_by_role("button", name="Generate").click()
    visitor.wait()
    assert len(fake.bodies) == 2
    assert "secret" not in visitor.page.evaluate("JSON.stringify({ ...localStorage, ...sessionStorage })")


def test_a_server_that_asks_for_a_key_from_the_start(visitor: Visitor, fake: Fake) -> None:
    fake.key = "secret"
    visitor.page.reload()
    visitor.page.get_by_label("API key").fill("secret")
    visitor.generate()
    visitor.wait()
    expect(visitor.page.locator("#served")).to_contain_text("tiny")
