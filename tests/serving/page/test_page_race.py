"""The same request plainly and drafted, one after the other, on one time axis."""

from __future__ import annotations

import math

import pytest

pytest.importorskip("playwright.sync_api", reason="the page's tests need playwright")

from playwright.sync_api import expect

from tests.serving.page.conftest import TEXT
from tests.serving.page.fake import Fake, words
from tests.serving.page.visitor import Visitor


def verdict(visitor: Visitor) -> str:
    return visitor.page.locator(".verdict").inner_text()


def race(visitor: Visitor, **settings: object) -> None:
    visitor.choose("race")
    visitor.generate(**settings)  # type: ignore[arg-type]
    visitor.wait()


def test_both_texts_come_one_after_the_other(visitor: Visitor, fake: Fake) -> None:
    race(visitor)
    assert [body["polydraft"]["drafted"] for _, body in fake.bodies] == [False, True]
    assert visitor.text("plain") == visitor.text("drafted") == "".join(TEXT)
    assert (visitor.figure("per-step", "plain"), visitor.figure("per-step")) == ("1.00", "3.25")
    assert visitor.legend()["drafted-1"] == 4  # the legend counts the drafted text
    assert verdict(visitor).startswith("Equal: both texts are the same 13 tokens. Plain ")


def test_the_plain_text_is_over_before_the_drafted_one_begins(visitor: Visitor, fake: Fake) -> None:
    fake.hold_at = 4
    visitor.choose("race")
    visitor.generate()
    expect(visitor.pane("plain").locator(".token")).to_have_count(4)
    visitor.wait("First plain …")
    assert len(fake.bodies) == 1
    assert verdict(visitor) == ""
    fake.go.set()
    visitor.wait()
    assert len(fake.bodies) == 2


def test_different_texts_are_said_to_differ(visitor: Visitor, fake: Fake) -> None:
    fake.differs = 8
    race(visitor)
    share = f"{100 * math.exp(fake.tokens[8]['logprob']):.1f} %"
    assert verdict(visitor).startswith(
        f"Different from token 9 on, where plain says ␣short ({share}) and drafted ␣other ({share}). "
    )


def test_sampled_texts_share_a_seed(visitor: Visitor, fake: Fake) -> None:
    race(visitor, Temperature=1)
    one, other = (body["seed"] for _, body in fake.bodies)
    assert one == other >= 0
    visitor.generate(Seed=5)
    visitor.wait()
    assert [body["seed"] for _, body in fake.bodies[2:]] == [5, 5]


def test_the_lines_hold_a_point_for_every_token(visitor: Visitor) -> None:
    race(visitor)
    for name in ("plain", "drafted"):
        points = visitor.page.locator(f"polyline.{name}").get_attribute("points")
        pairs = [tuple(map(float, pair.split(","))) for pair in (points or "").split()]
        assert len(pairs) == 1 + len(TEXT)
        assert pairs == sorted(pairs, key=lambda pair: (pair[0], -pair[1]))
        assert [y for _, y in pairs] == pytest.approx([100 - 100 * i / 13 for i in range(14)])
    assert visitor.page.locator(".most").inner_text() == "13 tokens"


def test_a_replay_ends_with_all_tokens(visitor: Visitor, fake: Fake) -> None:
    fake.tokens = words([" a"] * 40)
    race(visitor)
    figures = [visitor.figure(part) for part in ("tokens", "speed", "seconds")]
    visitor.page.evaluate(
        """() => { window.most = 0; new MutationObserver(() => {
             window.most = Math.max(window.most, document.querySelectorAll(".later").length);
           }).observe(document.body, { subtree: true, attributeFilter: ["class"] }); }"""
    )
    visitor.page.get_by_role("button", name="Replay side by side").click()
    expect(visitor.pane().locator(".later")).to_have_count(0)
    expect(visitor.pane().locator(".tokens")).to_have_text("40")
    assert visitor.page.evaluate("window.most") == 80
    assert [visitor.figure(part) for part in ("tokens", "speed", "seconds")] == figures


def test_a_stopped_race_has_no_verdict(visitor: Visitor, fake: Fake) -> None:
    fake.hold_at = 4
    visitor.choose("race")
    visitor.generate()
    expect(visitor.pane("plain").locator(".token")).to_have_count(4)
    visitor.page.get_by_role("button", name="Stop").click()
    visitor.wait("Stopped.")
    assert verdict(visitor) == ""
    expect(visitor.page.get_by_role("button", name="Replay side by side")).to_be_disabled()
