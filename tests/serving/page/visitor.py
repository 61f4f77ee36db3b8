"""What someone in front of the page does and sees."""

from __future__ import annotations

from typing import Any

from playwright.sync_api import BrowserContext, ConsoleMessage, Locator, Route, expect

NETWORK = "Failed to load resource"
"""How Chromium's own notes of refused and failed requests begin; the page shows these itself."""


class Visitor:
    """A page in a context of its own.

    Attributes:
        strays: addresses outside the page's origin that were asked for; they are not reached.
        complaints: errors and warnings in the console, and exceptions.
    """

    def __init__(self, context: BrowserContext, url: str, *, patience: int) -> None:
        self.context = context
        self.strays: list[str] = []
        self.complaints: list[str] = []
        context.set_default_timeout(patience)
        context.route(lambda address: not address.startswith(url), self._stray)
        self.page = context.new_page()
        self.page.on("console", self._said)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(url)

    def _stray(self, route: Route) -> None:
        self.strays.append(route.request.url)
        route.abort()

    def _said(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning") and not message.text.startswith(NETWORK):
            self.complaints.append(message.text)

    def generate(self, prompt: str = "Why?", **settings: Any) -> None:
        """Fill in the form and ask for a text; does not wait for it. Settings go by their labels."""
        self.page.get_by_label("Prompt").fill(prompt)
        for label, value in settings.items():
            self.page.get_by_label(label.replace("_", " ")).fill(str(value))
        self.page.get_by_role("button", name="Generate").click()

    def choose(self, decoding: str) -> None:
        """The switch drafted, plain or race; or chat, plain text."""
        self.page.get_by_role("radio", name=decoding, exact=True).check()

    def wait(self, status: str = "Done.") -> None:
        """Until the page says so."""
        expect(self.page.locator("#status")).to_have_text(status)

    def expect_error(self, words: str) -> None:
        """The page says so, loudly."""
        expect(self.page.get_by_role("alert")).to_have_text(words)

    def pane(self, name: str = "drafted") -> Locator:
        """Where the drafted or the plain text is."""
        return self.page.locator(f"[data-pane={name}]")

    def text(self, name: str = "drafted") -> str:
        """The text of a pane, every character as it is in the page."""
        return self.pane(name).locator(".text").evaluate("box => box.textContent") or ""

    def classes(self, name: str = "drafted") -> list[list[str]]:
        """The classes of every token."""
        every = "spans => spans.map((span) => [...span.classList])"
        found: list[list[str]] = self.pane(name).locator(".token").evaluate_all(every)
        return found

    def figure(self, part: str, name: str = "drafted") -> str:
        """A figure of a pane, as shown."""
        return self.pane(name).locator(f".{part}").inner_text()

    def legend(self) -> dict[str, int]:
        """The counts of the legend that are not 0."""
        every = "items => items.map((item) => [item.dataset.key, Number(item.lastChild.textContent)])"
        rows: list[tuple[str, int]] = self.page.locator("#legend li").evaluate_all(every)
        return {key: count for key, count in rows if count}

    def acceptance(self) -> list[str]:
        """The shares of the bar chart, as shown."""
        return self.page.locator("#acceptance td:last-child").all_inner_texts()

    def facts(self) -> dict[str, str]:
        """Names and values beside the chosen token."""
        names = self.page.locator("#token dt").all_inner_texts()
        return dict(zip(names, self.page.locator("#token dd").all_inner_texts(), strict=True))

    def table(self, caption: str) -> list[list[str]]:
        """Rows of a table beside the chosen token: name and figure."""
        rows = self.page.get_by_role("table", name=caption).locator("tbody tr").all()
        return [[row.locator("th").inner_text(), row.locator("td").last.inner_text()] for row in rows]
