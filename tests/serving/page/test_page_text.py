"""A text comes in: colours, counts, figures, and what is said about a token."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

import pytest

pytest.importorskip("playwright.sync_api", reason="the page's tests need playwright")

from playwright.sync_api import expect

from tests.serving.page.conftest import TEXT
from tests.serving.page.fake import HORIZON, Fake, words
from tests.serving.page.visitor import Visitor


def percent(log_prob: float) -> str:
    return f"{100 * math.exp(log_prob):.1f} %"


def test_tokens_stream_in_and_each_shows_how_it_came(visitor: Visitor, fake: Fake) -> None:
    visitor.generate()
    visitor.wait()
    assert visitor.text() == "".join(TEXT)
    shades = {1: "shade-1", 2: "shade-3", 3: "shade-6", 4: "shade-8"}  # 1 + round(7 (s - 1) / 3)
    for token, classes in zip(fake.tokens, visitor.classes(), strict=True):
        assert token["kind"] in classes
        assert [name for name in classes if name.startswith("shade")] == (
            [shades[token["origin"]]] if token["kind"] == "drafted" else []
        )


def test_the_counts_are_those_of_the_text(visitor: Visitor, fake: Fake) -> None:
    """Steps keep 1, 2, 3 and 4 drafts, the last of which is cut: 13 tokens are 1 + 2 + 3 + 4 + 3."""
    visitor.generate()
    visitor.wait()
    kinds = [f"drafted-{t['origin']}" if t["origin"] else t["kind"] for t in fake.tokens]
    assert visitor.legend() == dict(Counter(kinds))
    accepted = sum(token["origin"] > 0 for token in fake.tokens)
    assert visitor.figure("tokens") == "13"
    assert visitor.figure("per-step") == f"{1 + accepted / 4:.2f}"
    assert visitor.acceptance() == ["100 %", "75 %", "50 %", "0 %"]


def test_the_totals_are_the_servers(visitor: Visitor) -> None:
    visitor.generate()
    visitor.wait()
    assert visitor.figure("totals") == (
        "13 tokens in 1.25 s on the server (10.4 tokens/s), 4 steps of 3.25 tokens, "
        "9 of 18 drafts kept (50 %), 0.3 s in the queue before. The text ended by itself."
    )


def test_figures_move_while_the_text_comes(visitor: Visitor, fake: Fake) -> None:
    fake.hold_at = 6
    visitor.generate()
    expect(visitor.pane().locator(".token")).to_have_count(6)
    expect(visitor.pane().locator(".tokens")).to_have_text("6")
    seconds, speed = float(visitor.figure("seconds")), float(visitor.figure("speed"))
    assert speed > 0
    assert visitor.figure("per-step") == "2.50"  # 1 + 3 drafts / 2 steps
    assert visitor.legend() == {"first": 1, "drafted-1": 2, "drafted-2": 1, "correction": 2}
    assert visitor.acceptance() == ["100 %", "50 %", "0 %", "0 %"]
    expect(visitor.pane().locator(".seconds")).not_to_have_text(f"{seconds:.1f}")  # the clock goes on
    fake.go.set()
    visitor.wait()
    assert visitor.figure("tokens") == "13"


def test_the_request_says_what_the_form_says(visitor: Visitor, fake: Fake) -> None:
    visitor.generate("Hello", Max_tokens=5, Temperature=0.7, Top_p=0.9, Seed=11)
    visitor.wait()
    visitor.choose("plain text")
    visitor.choose("plain")
    visitor.generate("Hello", Temperature=0, Top_p=1, Seed="")
    visitor.wait()
    common = {"model": "tiny", "max_tokens": 5, "stream": True, "stream_options": {"include_usage": True}}
    chat = {"messages": [{"role": "user", "content": "Hello"}], "temperature": 0.7, "top_p": 0.9, "seed": 11}
    completion = {"prompt": "Hello", "temperature": 0, "top_p": 1}
    assert fake.bodies == [
        ("/v1/chat/completions", common | chat | {"polydraft": {"drafted": True, "trace": 5}}),
        ("/v1/completions", common | completion | {"polydraft": {"drafted": False, "trace": 5}}),
    ]
    assert visitor.text("plain") == "".join(TEXT[:5])
    assert {name for classes in visitor.classes("plain") for name in classes} == {"token", "first", "plain"}


def said(fake: Fake) -> list[str]:
    """The last request, message by message."""
    messages = fake.bodies[-1][1]["messages"]
    assert [one["role"] for one in messages] == (["user", "assistant"] * len(messages))[: len(messages)]
    return [one["content"] for one in messages]


def test_a_new_prompt_continues_the_chat(visitor: Visitor, fake: Fake) -> None:
    answer, begun = "".join(TEXT), visitor.page.locator("#chat p")
    visitor.generate("Why?")
    visitor.wait()
    expect(begun).to_have_text(["Why?"])
    visitor.generate("How <b>high</b>?")
    visitor.wait()
    assert said(fake) == ["Why?", answer, "How <b>high</b>?"]
    visitor.generate("How <b>high</b>?", Max_tokens=4)
    visitor.wait()
    assert said(fake) == ["Why?", answer, "How <b>high</b>?"]
    visitor.choose("race")
    visitor.generate("So?", Max_tokens=9)
    visitor.wait()
    assert said(fake) == ["Why?", answer, "How <b>high</b>?", "".join(TEXT[:4]), "So?"]
    assert begun.all_text_contents() == said(fake)
    visitor.choose("plain text")
    expect(visitor.page.locator("#chat")).to_be_hidden()
    visitor.generate("So?")
    visitor.wait()
    assert fake.bodies[-1][1]["prompt"] == "So?"
    visitor.choose("chat")
    visitor.page.get_by_role("button", name="New chat").click()
    expect(begun).to_have_count(0)
    visitor.generate("And?")
    visitor.wait()
    assert said(fake) == ["And?"]


def test_what_was_stopped_belongs_to_the_chat(visitor: Visitor, fake: Fake) -> None:
    fake.hold_at = 5
    visitor.generate("Why?")
    expect(visitor.pane().locator(".token")).to_have_count(5)
    visitor.page.keyboard.press("Escape")
    visitor.wait("Stopped.")
    fake.go.set()
    visitor.generate("How?")
    visitor.wait()
    assert said(fake) == ["Why?", "".join(TEXT[:5]), "How?"]


def test_a_new_text_has_no_token_chosen(visitor: Visitor) -> None:
    visitor.generate()
    visitor.wait()
    visitor.pane().locator(".token").nth(3).hover()
    assert visitor.facts()
    visitor.page.get_by_role("button", name="Generate").hover()
    visitor.page.get_by_role("button", name="Generate").click()
    visitor.wait()
    assert visitor.facts() == {}
    assert visitor.page.locator("#token").inner_text() == "No token chosen."


def test_pointing_at_a_token_shows_what_the_server_sent(visitor: Visitor, fake: Fake) -> None:
    visitor.generate()
    visitor.wait()
    for index in (7, 3):
        token = fake.tokens[index]
        visitor.pane().locator(".token").nth(index).hover()
        head = "\u2013" if token["draft_logprob"] is None else percent(token["draft_logprob"])
        assert visitor.facts() == {
            "Token": f"{index + 1}, id {token['id']}",
            "Step": str(token["step"]),
            "Model": percent(token["logprob"]),
            "Head": head,
        }
        assert visitor.table("Likeliest under the model") == [
            [other["text"].replace(" ", "␣"), percent(other["logprob"])] for other in token["top"]
        ]
    assert token["weights"]
    assert visitor.table("Components of the head") == [
        [str(a + 1), f"{100 * weight:.1f} %"] for a, weight in enumerate(token["weights"])
    ]
    widths = visitor.page.locator("#token .fill").evaluate_all(
        "bars => bars.map((b) => parseFloat(b.style.width))"
    )
    shares = [math.exp(other["logprob"]) for other in token["top"]] + token["weights"]
    assert widths == pytest.approx([100 * share for share in shares], rel=1e-3)


def test_a_head_of_one_component_shows_none(visitor: Visitor, fake: Fake) -> None:
    fake.tokens = words(TEXT, components=1)
    visitor.generate()
    visitor.wait()
    visitor.pane().locator(".token.drafted").first.hover()
    assert visitor.facts()["Step"] == "1"
    assert visitor.page.get_by_role("table", name="Components of the head").count() == 0


def test_keys_walk_the_tokens(visitor: Visitor, fake: Fake) -> None:
    visitor.generate()
    visitor.wait()
    page = visitor.page
    visitor.pane().locator(".text").focus()
    chosen = lambda: int(visitor.facts()["Token"].split(",")[0])  # noqa: E731
    page.keyboard.press("Home")
    assert chosen() == 1
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert chosen() == 3
    own, drafted = fake.tokens[2:4]
    expect(page.locator("#speech")).to_have_text(
        f"␣is: correction: a draft stood here and was refused, model {percent(own['logprob'])}"
    )
    page.keyboard.press("ArrowRight")
    expect(page.locator("#speech")).to_have_text(
        f"␣blue: drafted at position 1, model {percent(drafted['logprob'])}, "
        f"head {percent(drafted['draft_logprob'])}"
    )
    page.keyboard.press("ArrowDown")
    assert 7 <= chosen() <= 13  # the line break is token 6
    page.keyboard.press("ArrowUp")
    assert chosen() <= 6
    page.keyboard.press("End")
    page.keyboard.press("ArrowRight")
    assert chosen() == 13
    page.keyboard.press("ArrowLeft")
    assert chosen() == 12
    assert page.locator(".token.current").count() == 1


def test_markup_in_a_text_stays_text(visitor: Visitor, fake: Fake) -> None:
    evil = "<script>document.title = 'x'</script><img src=x onerror=\"document.title = 'x'\">&lt;"
    fake.tokens = words([evil, evil, "\t two  spaces \r\n", "\x00\x1b", "\u202eabc", "é", "", "語"])
    for token in fake.tokens:
        token["top"].append({"text": evil, "logprob": -1.0})
    title = visitor.page.title()
    visitor.generate(evil)
    visitor.wait()
    assert visitor.text() == "".join(token["text"] for token in fake.tokens)
    assert visitor.pane().locator(".text :not(.token)").count() == 0
    visitor.pane().locator(".token").nth(1).hover()
    named = sum(other["text"] == evil for other in fake.tokens[1]["top"])
    assert visitor.page.locator("#token").get_by_text("<script>").count() == 1 + named == 3
    assert visitor.page.locator("#token script, #token img").count() == 0
    assert visitor.page.title() == title


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_characters_and_lines_may_be_cut_anywhere(visitor: Visitor, fake: Fake, line_end: str) -> None:
    fake.tokens = words(["語", " é", "🙂", "\n", "ß"])
    fake.cut = 1
    fake.line_end = line_end
    visitor.generate()
    visitor.wait()
    assert visitor.text() == "語 é🙂\nß"


def test_long_texts_stay_quick(visitor: Visitor, fake: Fake) -> None:
    """Every token is added once: no span of the first hundred is made again for the other 1,900."""
    fake.tokens = words([f" w{i}" for i in range(2000)])
    fake.together = 3
    visitor.page.evaluate(
        """() => { window.added = 0; new MutationObserver((records) => {
             for (const { addedNodes } of records) window.added += addedNodes.length;
           }).observe(document.querySelector(".text"), { childList: true }); }"""
    )
    visitor.generate(Max_tokens=2000)
    visitor.wait()
    assert visitor.text() == "".join(f" w{i}" for i in range(2000))
    assert visitor.page.evaluate("window.added") == 2000
    box = visitor.pane().locator(".text")
    assert (
        box.evaluate("box => box.scrollHeight - box.scrollTop - box.clientHeight") < 40
    )  # followed to the end


def test_prompt_and_settings_stay_in_this_browser(
    visitor: Visitor, visit: Callable[..., Visitor], fake: Fake
) -> None:
    visitor.choose("plain")
    visitor.generate("Kept?", Max_tokens=7)
    visitor.wait("Done.")
    visitor.page.reload()
    expect(visitor.page.get_by_label("Prompt")).to_have_value("Kept?")
    expect(visitor.page.get_by_label("Max tokens")).to_have_value("7")
    expect(visitor.page.get_by_label("plain", exact=True)).to_be_checked()
    assert visitor.pane("plain").count() == 1
    other = visit(fake.url)
    expect(other.page.get_by_label("Max tokens")).to_have_value("200")


def test_the_head_is_named(visitor: Visitor) -> None:
    expect(visitor.page.locator("#served")).to_have_text(
        f"tiny, with a head (cp, 2 components) that drafts {HORIZON} tokens"
    )
