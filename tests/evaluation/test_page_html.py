"""The page of a document: valid, whole in itself, and what its links, pictures and tables become."""

from __future__ import annotations

import base64
import struct
import zlib
from html.parser import HTMLParser
from pathlib import Path

import pytest
from typer.testing import CliRunner

from polydraft.cli import app
from polydraft.errors import InputError, PolydraftError
from polydraft.evaluation.page.build import build
from polydraft.evaluation.page.run import check_page, write_page

VOID = {"meta", "link", "img", "br", "hr", "input"}
MAIN = """# Results & more

Words with `code`, [all tables](sub/README.md), [one](sub/README.md#second-part), [below](#a-table),
[data](sub/data.json), [outside](../other.md), and the [paper](https://arxiv.org/abs/2410.17765).

## A table

```
polydraft bench --a < b
```

```python
x = 1
```

| head | ratio | words |
|---|---|---|
| a <b | **1.86** (1.2-1.9) | one |
| b | - | 2 |
| c | +3% | three |

![the plot](sub/plot.png "What it shows.")
![again](sub/plot.png)

#### Deep

- a list ![inline](sub/plot.png)

## A table

Contents and contents.

## Contents
"""
LINKED = """# Full tables

## Second part

[back](../results.md), [there](../results.md#contents), [self](#second-part), [picture](plot.png)

![plot](plot.png)
"""


def png(width: int, height: int) -> bytes:
    """A white picture."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = zlib.compress(b"".join(b"\0" + b"\xff" * width for _ in range(height)))
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


class Reader(HTMLParser):
    """Elements in order, with their attributes, texts and the path of elements around them."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"<{tag}> says {names}"
        self.found.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> inside {self.open}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append(("/".join(self.open), data.strip()))

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attrs for name, attrs in self.found if name == tag]


@pytest.fixture
def document(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    (folder / "sub").mkdir(parents=True)
    (folder / "results.md").write_text(MAIN)
    (folder / "sub" / "README.md").write_text(LINKED)
    (folder / "sub" / "data.json").write_text("{}")
    (folder / "sub" / "plot.png").write_bytes(png(3, 2))
    (tmp_path / "other.md").write_text("no title")
    return folder / "results.md"


def made(document: Path, text: str = MAIN) -> Reader:
    return Reader(build(document, text=text, out=document.parent / "sub" / "index.html"))


def test_it_is_well_formed_with_unique_ids_and_no_link_that_leads_nowhere(document: Path) -> None:
    page = made(document)
    ids = [attrs["id"] for _, attrs in page.found if "id" in attrs]
    assert len(ids) == len(set(ids))
    named = [attrs["href"][1:] for attrs in page.all("a") if attrs["href"].startswith("#")]
    named += [attrs["aria-labelledby"] for _, attrs in page.found if "aria-labelledby" in attrs]
    named += [attrs["for"] for _, attrs in page.found if "for" in attrs]
    assert set(named) <= set(ids)
    assert page.all("html")[0]["lang"] == "en"
    assert ("html/head/title", "Results & more") in page.texts


def test_nothing_comes_from_outside(document: Path) -> None:
    text = build(document, text=MAIN, out=document.parent / "index.html")
    page = Reader(text)
    for tag, attrs in page.found:
        for name in ("src", "href", "srcset", "data", "poster", "action"):
            if name in attrs and tag != "a":
                assert attrs[name].startswith("data:"), (tag, attrs[name])
    away = [attrs["href"] for attrs in page.all("a") if "://" in attrs["href"]]
    assert away == ["https://arxiv.org/abs/2410.17765"]
    assert text.count("://") == 1 and "@import" not in text and "url(" not in text
    assert page.all("meta")[1]["content"].startswith("default-src 'none'; img-src data:")


def test_headings_leave_no_level_out(document: Path) -> None:
    page = made(document)
    levels = [int(tag[1]) for tag, _ in page.found if tag in ("h1", "h2", "h3", "h4", "h5", "h6")]
    assert levels == [1, 2, 3, 2, 2, 2, 3]


def test_headings_of_equal_names_and_those_of_the_template(document: Path) -> None:
    page = made(document)
    ids = [attrs["id"] for tag, attrs in page.found if tag in ("h1", "h2", "h3")]
    assert ids == [
        "results--more",
        "a-table",
        "deep",
        "a-table-1",
        "contents",
        "sub-readme--full-tables",
        "sub-readme--second-part",
    ]
    taken = {attrs["id"] for tag, attrs in page.found if "id" in attrs} - set(ids)
    assert taken == {"page-search", "page-words", "page-found", "page-contents", "page-text"}
    again = made(document, text="# Page text\n\n[here](#page-text)\n")
    assert again.all("h1")[0]["id"] == "page-text-2"
    assert {attrs["href"] for attrs in again.all("a")} == {"#page-text", "#page-text-2"}


def test_links_lead_from_the_page(document: Path) -> None:
    page = made(document)
    inside = [attrs["href"] for tag, attrs in page.found if tag == "a"]
    start = inside.index("#sub-readme--full-tables", inside.index("#contents") + 3)
    assert inside[start:] == [
        "#sub-readme--full-tables",
        "#sub-readme--second-part",
        "#a-table",
        "data.json",
        "../../other.md",
        "https://arxiv.org/abs/2410.17765",
        "#results--more",
        "#contents",
        "#sub-readme--second-part",
        "plot.png",
    ]


def test_pictures_are_whole_and_described(document: Path) -> None:
    page = made(document)
    pictures = page.all("img")
    assert [attrs["alt"] for attrs in pictures] == ["the plot", "again", "inline", "plot"]
    for attrs in pictures:
        assert (attrs["width"], attrs["height"]) == ("3", "2")
        assert base64.b64decode(attrs["src"].removeprefix("data:image/png;base64,")) == png(3, 2)
    assert len(page.all("figure")) == 3
    assert [text for path, text in page.texts if path.endswith("figcaption")] == ["What it shows."]


def test_tables_scroll_and_columns_of_numbers_are_known(document: Path) -> None:
    page = made(document)
    box = page.all("div")[0]
    assert box == {"class": "scroll", "role": "region", "tabindex": "0", "aria-labelledby": "a-table"}
    assert page.all("th") == [{"scope": "col"}, {"scope": "col", "class": "number"}, {"scope": "col"}]
    assert page.all("td") == [{}, {"class": "number"}, {}] * 3
    assert next(text for path, text in page.texts if path.endswith("td")) == "a <b"


def test_commands_are_marked_and_readable(document: Path) -> None:
    page = made(document)
    assert page.all("pre") == [{"class": "command", "tabindex": "0"}, {"tabindex": "0"}]
    assert [text for path, text in page.texts if path.endswith("pre/code")] == [
        "polydraft bench --a < b",
        "x = 1",
    ]


def test_contents_name_every_section(document: Path) -> None:
    page = made(document)
    entries = [
        text for path, text in page.texts if path.startswith("html/body/nav") and path.endswith("li/a")
    ]
    assert entries == ["A table", "Deep", "A table", "Contents", "Full tables", "Second part"]
    assert ("html/body/nav/details/ul/li/a/small", "sub/README.md") in page.texts


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Words.\n", "begins with its title"),
        ("# A\n\n[x](none.md)\n", r":3: the link none\.md leads to no file"),
        ("# A\n\n[x](sub/README.md#none)\n", r":3: no heading #none in .*README\.md"),
        ("# A\n\n[x](#none)\n", r":3: no heading #none"),
        ("# A\n\n[x](ftp://a/b)\n", ":3: cannot keep the link"),
        ("# A\n\n![x](https://a/b.png)\n", ":3: a page holds its pictures itself"),
        ("# A\n\n![x](sub/none.png)\n", r":3: no picture sub/none\.png"),
        ("# A\n\n![x](sub/data.json)\n", ":3: .* is no PNG"),
        ("# A\n\n![](sub/plot.png)\n", ":3: the picture .* has no description"),
        ("# A\n\na\n\nb <br> c\n", ":5: a page takes markdown, no HTML: <br>"),
        ("# A\n\n<script>\n</script>\n", ":3: a page takes markdown, no HTML: <script>"),
    ],
)
def test_what_a_page_cannot_hold(document: Path, text: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        made(document, text=text)


def test_comments_stay_out(document: Path) -> None:
    page = made(
        document, text="# A\n\n<!-- from: x.json table: y -->\n\n| a |\n| --- |\n| 1 |\n<!-- end -->\n\nb\n"
    )
    assert len(page.all("table")) == 1
    assert [text for path, text in page.texts if path.endswith("main/header/p")] == ["b"]


def test_the_style_adapts_and_prints(document: Path) -> None:
    text = build(document, text=MAIN, out=document)
    style = text[text.index("<style>") : text.index("</style>")]
    for needed in ("prefers-color-scheme: dark", "@media print", "overflow-x: auto", "max-width: 63.99rem"):
        assert needed in style
    assert 'type="search"' in text and "aria-sort" in text and "clipboard" in text


def test_write_then_check(document: Path) -> None:
    html = document.parent / "sub" / "index.html"
    with pytest.raises(PolydraftError, match=r"index\.html is not what .*results\.md makes"):
        check_page(document, html)
    assert not html.exists()
    assert write_page(document, html)[0].endswith("parts from results: 0, written anew: 0")
    first = html.read_bytes()
    write_page(document, html)
    assert html.read_bytes() == first
    assert check_page(document, html) == [f"{document}: up to date"]
    (document.parent / "sub" / "README.md").write_text(LINKED + "\nMore.\n")
    with pytest.raises(PolydraftError, match=r"index\.html"):
        check_page(document, html)


def test_the_command_makes_a_page(document: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(document.parent)
    runner = CliRunner(env={"COLUMNS": "200"})
    result = runner.invoke(app, ["evaluate", "page", "results.md", "--html", "sub/index.html"])
    assert result.exit_code == 0, result.output
    assert Reader(Path("sub/index.html").read_text()).all("h1")[0]["id"] == "results--more"
    refused = runner.invoke(app, ["evaluate", "page", "results.md", "--html", "none/index.html"])
    assert refused.exit_code == 2 and "does not exist" in refused.stderr
