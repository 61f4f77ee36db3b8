"""Files as people write them: every ending and mark is read, what is no text is refused in one line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from polydraft.errors import InputError
from polydraft.textfiles import json_lines, parse_json, read_text

ROWS = [{"text": "Grüße"}, {"text": "a\u2028b\u2029c\u0085d\u000be\u000cf"}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
MARK = b"\xef\xbb\xbf"


@pytest.mark.parametrize(
    ("content", "places"),
    [
        (LINES, [1, 2]),
        (LINES[:-1], [1, 2]),
        (LINES.replace(b"\n", b"\r\n"), [1, 2]),
        (LINES.replace(b"\n", b"\r"), [1, 2]),
        (MARK + LINES, [1, 2]),
        (LINES.replace(b'\n{"', b"\n\n \t\n" + MARK + b'{"'), [1, 4]),  # two files put together
    ],
    ids=["plain", "no-last-end", "windows", "old-mac", "marked", "marked-seam"],
)
def test_json_lines(tmp_path: Path, content: bytes, places: list[int]) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    assert list(json_lines(path)) == [
        (f"{path}, line {place}", row) for place, row in zip(places, ROWS, strict=True)
    ]


@pytest.mark.parametrize("content", [b"", MARK, b"\n \r\n\n", MARK + b"\n"])
def test_nothing_in_it(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.jsonl").write_bytes(content)
    assert list(json_lines(tmp_path / "a.jsonl")) == []


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "not JSON (Expecting property name"),
        ('{"a": 1},', "not JSON (Extra data)"),
        ("\0\0", "not JSON (Expecting value)"),
        ("[" * 100_000, "nested too deeply"),
        ("9" * 5_000, "Exceeds the limit (4300 digits)"),
        (r'{"a": "x\ud800y"}', "U+D800 is half a surrogate pair"),
        (r'{"\uDFFF": 1}', "U+DFFF is half a surrogate pair"),
    ],
)
def test_a_line_that_is_no_json(line: str, says: str) -> None:
    with pytest.raises(InputError) as error:
        parse_json(line, where="FILE, line 3")
    assert str(error.value).startswith("FILE, line 3: ")
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_a_whole_pair_is_a_character() -> None:
    assert parse_json(r'"a\ud83d\ude00b"', where="x") == "a\N{GRINNING FACE}b"


@pytest.mark.parametrize(
    "content",
    [gzip.compress(LINES), LINES.decode().encode("utf-16"), "größe".encode("latin-1"), bytes(range(256))],
    ids=["gzip", "utf-16", "latin-1", "binary"],
)
def test_what_is_no_utf8(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    for read in (read_text, lambda path: list(json_lines(path))):
        with pytest.raises(InputError, match="not UTF-8 text"):
            read(path)


def test_missing_files_and_folders(tmp_path: Path) -> None:
    for read in (read_text, lambda path: list(json_lines(path))):
        with pytest.raises(InputError, match="none: no such file"):
            read(tmp_path / "none")
        with pytest.raises(InputError, match="a folder, where a file is wanted"):
            read(tmp_path)


def test_text_loses_its_mark_and_odd_ends_of_line(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(MARK + "Grüße\r\nund\rmehr\n".encode())
    assert read_text(tmp_path / "a.txt") == "Grüße\nund\nmehr\n"
