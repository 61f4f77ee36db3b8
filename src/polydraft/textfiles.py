"""Files of text and of JSON lines, as people write them: UTF-8, with or without a mark of byte order."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from polydraft.errors import InputError

MARK = "\ufeff"
"""Byte order mark; editors on Windows put it first, and files put together have it at every seam."""


def read_text(path: Path) -> str:
    """The text of a file, without a byte order mark; every end of line is "\\n".

    Raises:
        InputError: it is missing, a folder, or not UTF-8; names it.
    """
    with _one_line(path):
        return path.read_text(encoding="utf-8").removeprefix(MARK)


def json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """The values of a file of JSON lines, each with its place, "FILE, line 3"; blank lines are skipped.

    Raises:
        InputError: the file is missing, a folder or not UTF-8, or a line is no JSON; names it.
    """
    with _one_line(path), path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            content = line.removeprefix(MARK)
            if content.strip():
                where = f"{path}, line {number}"
                yield where, parse_json(content, where=where)


def parse_json(text: str, *, where: str) -> Any:
    """The value that `text` writes.

    Raises:
        InputError: it is no JSON, or holds half a surrogate pair, which JSON can write and no encoding can.
    """
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not JSON ({error.msg})") from error
    except RecursionError as error:
        raise InputError(f"{where}: not JSON of any use: it is nested too deeply") from error
    except ValueError as error:  # a number of thousands of digits
        raise InputError(f"{where}: not JSON of any use ({str(error).partition(';')[0]})") from error
    if "\\ud" in text.lower():
        check_unicode(json.dumps(value, ensure_ascii=False), where=where)
    return value


def check_unicode(text: str, *, where: str) -> str:
    """`text` as it is.

    Raises:
        InputError: it holds half a surrogate pair, so it is no Unicode text.
    """
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            half = f"U+{ord(text[error.start]):04X}"
            raise InputError(
                f"{where}: {half} is half a surrogate pair, no character: leave it out"
            ) from error
    return text


@contextmanager
def _one_line(path: Path) -> Iterator[None]:
    """What can be wrong with a file as a whole, in one line."""
    try:
        yield
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except IsADirectoryError as error:
        raise InputError(f"{path}: a folder, where a file is wanted") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text") from error
