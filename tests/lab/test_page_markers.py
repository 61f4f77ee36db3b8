"""Parts of a document that are written from results: markers, sources, `python -m lab page`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from lab.cli import app
from lab.page.markers import find_markers
from lab.page.update import check, update, updated
from polydraft.errors import InputError, PolydraftError

TABLE = {
    "title": "Rank pays",
    "headings": ["head", "tokens"],
    "rows": [["cp | 4", "1.5"], ["cp 8", "**1.6**"]],
}
START = "<!-- from: r/results.json table: rank -->"
DOCUMENT = f"# Words\n\nBefore.\n\n{START}\n<!-- end -->\n\nAfter, `x`.\n"
WRITTEN = f"""# Words

Before.

{START}

**Rank pays**

| head | tokens |
| --- | ---: |
| cp \\| 4 | 1.5 |
| cp 8 | **1.6** |

<!-- end -->

After, `x`.
"""


@pytest.fixture
def document(tmp_path: Path) -> Path:
    put(tmp_path, tables={"rank": TABLE})
    path = tmp_path / "words.md"
    path.write_text(DOCUMENT)
    return path


def put(folder: Path, **content: Any) -> None:
    (folder / "r").mkdir(exist_ok=True)
    (folder / "r" / "results.json").write_text(json.dumps(content))


def page(*words: object) -> Result:
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, ["page", *map(str, words)])


def test_the_part_is_written_and_the_words_stay(document: Path) -> None:
    found = update(document)
    assert document.read_text() == WRITTEN
    assert (found.parts, len(found.stale)) == (1, 1)


def test_a_second_time_changes_nothing(document: Path) -> None:
    update(document)
    before = document.stat().st_mtime_ns
    assert update(document).stale == []
    assert document.stat().st_mtime_ns == before
    check(document)


def test_new_results_replace_old_ones(document: Path) -> None:
    update(document)
    put(document.parent, tables={"rank": TABLE | {"rows": [["one", "2"]]}})
    update(document)
    assert document.read_text() == WRITTEN.replace("| cp \\| 4 | 1.5 |\n| cp 8 | **1.6** |", "| one | 2 |")


def test_command_before_note_after(document: Path) -> None:
    put(
        document.parent,
        tables={"rank": TABLE | {"note": "One seed.\n\nTwo cores.", "command": "a \\\n  --b\n"}},
    )
    text = updated(document).text
    assert "\n```\na \\\n  --b\n```\n\n**Rank pays**\n\n| head" in text
    assert "| **1.6** |\n\nOne seed.\n\nTwo cores.\n\n<!-- end -->" in text
    document.write_text(text)
    assert updated(document).stale == []


def test_a_picture_is_relative_to_the_document(document: Path) -> None:
    put(document.parent, pictures={"plot": {"file": "a b.png", "alt": "ranks [1, 2]"}})
    (document.parent / "r" / "a b.png").write_bytes(b"")
    document.write_text("<!-- from: r/results.json picture: plot -->\n<!-- end -->")
    update(document)
    wanted = "<!-- from: r/results.json picture: plot -->\n\n![ranks \\[1, 2\\]](r/a%20b.png)\n\n<!-- end -->"
    assert document.read_text() == wanted


def test_several_parts_and_their_lines(document: Path) -> None:
    put(document.parent, tables={"rank": TABLE, "other": TABLE | {"title": "Other"}})
    document.write_text(DOCUMENT + DOCUMENT.replace("rank", "other"))
    text = update(document).text
    assert text == WRITTEN + WRITTEN.replace("rank", "other").replace("Rank pays", "Other")
    assert [(marker.line, marker.name) for marker in find_markers(text, where="x")] == [
        (5, "rank"),
        (21, "other"),
    ]


def test_markers_in_code_are_text() -> None:
    fenced = f"```\n{START}\n```\n~~~~ md\n```\n~~~\n{START}\n~~~~\nin a line `{START}`\n"
    assert find_markers(fenced, where="x") == []
    assert [marker.line for marker in find_markers(f"{fenced}{START}\n<!-- end -->\n", where="x")] == [10]


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        (f"a\n{START}\ntext\n", 2, "no end"),
        (f"{START}\n\n{START}\n<!-- end -->\n", 1, "no end: .*before line 3"),
        ("a\n\n<!-- end -->\n", 3, "belongs to no marker"),
        ("<!-- from: x.json tabel: y -->\n<!-- end -->\n", 1, "cannot read this marker"),
        ("<!-- from: x.json table: -->\n<!-- end -->\n", 1, "cannot read this marker"),
        (f"- {START}\n  {START}\n", 2, "cannot read this marker"),
        (f"{START}\n```\n<!-- end -->\n", 1, "no end"),
    ],
)
def test_markers_that_are_wrong(text: str, line: int, words: str) -> None:
    with pytest.raises(InputError, match=rf"^doc\.md:{line}: .*{words}"):
        find_markers(text, where="doc.md")


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        ({}, r"no table 'rank'; there is none"),
        ({"a": TABLE, "b": TABLE}, r"no table 'rank'; there is a, b"),
        ([], r"`tables` must be an object"),
        ({"rank": []}, r"table 'rank': it must be an object"),
        ({"rank": {}}, r"`title` is missing"),
        ({"rank": TABLE | {"title": "a\nb"}}, r"`title` must be one line"),
        ({"rank": TABLE | {"headings": []}}, r"`headings` is empty"),
        ({"rank": TABLE | {"rows": {}}}, r"`rows` must be a list"),
        ({"rank": TABLE | {"rows": [["a", "b"], ["a"]]}}, r"row 2 has 1 cells under 2 headings"),
        ({"rank": TABLE | {"rows": [["a", 1.5]]}}, r"row 1: cell 2 must be a text"),
        ({"rank": TABLE | {"rows": [["a", "b\nc"]]}}, r"row 1: a cell has a line break"),
        ({"rank": TABLE | {"note": 3}}, r"`note` must be a text"),
        ({"rank": TABLE | {"note": "<!-- end -->"}}, r"`note` holds a comment"),
    ],
)
def test_tables_that_are_wrong(document: Path, tables: Any, words: str) -> None:
    put(document.parent, tables=tables)
    with pytest.raises(InputError, match=rf"words\.md:5: r/results\.json: .*{words}"):
        update(document)
    assert document.read_text() == DOCUMENT


def test_sources_that_are_missing_or_no_json(document: Path) -> None:
    source = document.parent / "r" / "results.json"
    source.write_text("{")
    with pytest.raises(InputError, match=r"words\.md:5: r/results\.json: no JSON"):
        update(document)
    source.write_text("[]")
    with pytest.raises(InputError, match="the file must be an object"):
        update(document)
    source.unlink()
    with pytest.raises(InputError, match=r"words\.md:5: r/results\.json: no such file"):
        update(document)


def test_a_picture_that_is_missing(document: Path) -> None:
    put(document.parent, pictures={"plot": {"file": "a.png", "alt": "ranks"}})
    document.write_text("<!-- from: r/results.json picture: plot -->\n<!-- end -->\n")
    with pytest.raises(InputError, match=r"words\.md:1: .*picture 'plot': no such file: .*a\.png"):
        update(document)


def test_check_names_the_first_part_that_is_old(document: Path) -> None:
    with pytest.raises(PolydraftError, match=r"words\.md:5: table 'rank' is not what r/results\.json says"):
        check(document)
    assert document.read_text() == DOCUMENT


def test_the_command_writes_and_checks(document: Path) -> None:
    stale = page(document, "--check")
    assert stale.exit_code == 1 and len(stale.stderr.strip().splitlines()) == 1, stale.stderr
    assert document.read_text() == DOCUMENT
    written = page(document)
    assert written.exit_code == 0 and "1 parts from results, 1 of them rewritten" in written.stdout
    assert document.read_text() == WRITTEN
    assert page(document, "--check").exit_code == 0


def test_the_command_refuses_in_one_line(document: Path) -> None:
    document.write_text(f"{START}\n")
    for words in ((document,), (document, "--check"), (document.parent / "none.md",)):
        result = page(*words)
        assert result.exit_code == 2 and len(result.stderr.strip().splitlines()) == 1, result.stderr
