"""HTML of sections and of the table of contents."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from markdown_it.renderer import RendererHTML
from markdown_it.token import Token

from polydraft.evaluation.page.links import Places
from polydraft.evaluation.page.prepare import prepare
from polydraft.evaluation.page.sections import Section

COMMANDS = ("", "sh", "bash", "console")
"""Code fences that a reader may want to copy."""


class PageRenderer(RendererHTML):
    """HTML of single blocks."""

    def __init__(self, options: Any) -> None:
        super().__init__()
        self.options = options

    def blocks(self, tokens: Sequence[Token]) -> str:
        """Of blocks in a row."""
        return str(self.render(tokens, self.options, {}))

    def line(self, tokens: Sequence[Token]) -> str:
        """Of text within a block."""
        return str(self.renderInline(tokens, self.options, {}))

    def fence(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
        """Code; the class `command` asks the script for a button."""
        kind = ' class="command"' if tokens[idx].info.strip() in COMMANDS else ""
        return f'<pre{kind} tabindex="0"><code>{escape(tokens[idx].content, quote=False)}</code></pre>\n'


def render(section: Section, places: Places, renderer: PageRenderer) -> str:
    """A section with those in it; the page's own title stands above all sections.

    Raises:
        InputError: as `prepare`.
    """
    own = renderer.blocks(prepare(section, places))
    tag = f"h{section.level}"
    heading = f'<{tag} id="{section.anchor}">{renderer.line(section.heading.children or [])}</{tag}>\n'
    inside = "".join(render(part, places, renderer) for part in section.parts)
    if section.level == 1:
        return f"<header>\n{heading}{own}</header>\n{inside}"
    note = f'<p class="file">{escape(section.document.name)}</p>\n' if section.whole else ""
    return f'<section aria-labelledby="{section.anchor}">\n{note}{heading}{own}{inside}</section>\n'


def contents(roots: Sequence[Section], renderer: PageRenderer) -> str:
    """Two levels: of the first document its sections, then the linked documents, whose sections unfold."""
    first = [entry(section, nested(section.parts, renderer), renderer) for section in roots[0].parts]
    out = listed(first)
    if len(roots) > 1:
        linked = []
        for root in roots[1:]:
            inside = nested(root.parts, renderer)
            count = f"{len(root.parts)} section{'s' * (len(root.parts) != 1)}"
            folded = f"<details><summary>{count}</summary>\n{inside}</details>\n" if inside else ""
            linked.append(entry(root, folded, renderer))
        out += f"<p>In full</p>\n{listed(linked)}"
    return out


def nested(sections: Sequence[Section], renderer: PageRenderer) -> str:
    """A list of links, without those of their parts."""
    return listed([entry(section, "", renderer) for section in sections])


def listed(entries: Sequence[str]) -> str:
    """A list, where there is something to list."""
    return f"<ul>\n{''.join(entries)}</ul>\n" if entries else ""


def entry(section: Section, inside: str, renderer: PageRenderer) -> str:
    """A link to a section, and what unfolds below it."""
    words = [part for part in section.heading.children or [] if part.type not in LEFT_OUT]
    file = f"<small>{escape(section.document.name)}</small>" if section.whole else ""
    return f'<li><a href="#{section.anchor}">{renderer.line(words)}{file}</a>\n{inside}</li>\n'


LEFT_OUT = ("link_open", "link_close", "image")
"""What a heading may hold and a link may not."""


def plain(heading: Token) -> str:
    """The words of a heading."""
    return "".join(part.content for part in heading.children or [] if part.type in ("text", "code_inline"))
