"""Tables that a grid's file asks for: cells by some fields, runs that differ in their seed put together."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from lab.grid.config import Selection, TableSpec
from lab.grid.metrics import Metric, Row, metric
from polydraft.errors import InputError

ABSENT = "-"


def field(row: Row, name: str) -> Any:
    """A field of a row of the results.

    Raises:
        InputError: rows have none of that name.
    """
    if name not in row:
        known = ", ".join(key for key, value in row.items() if not isinstance(value, dict))
        raise InputError(f"rows have no field {name!r}: choose from {known}")
    return row[name]


def chosen(rows: Sequence[Row], spec: Selection) -> list[Row]:
    """Those that `spec.where` lets through."""
    return [row for row in rows if all(field(row, name) in values for name, values in spec.where.items())]


def grouped(rows: Sequence[Row], names: Sequence[str]) -> dict[tuple[Any, ...], list[Row]]:
    """Rows of equal fields `names` together; numbers ascend, all else stands as it came."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(field(row, name) for name in names), []).append(row)
    first: list[dict[Any, int]] = [{} for _ in names]
    for key in found:
        for seen, value in zip(first, key, strict=True):
            seen.setdefault(value, len(seen))

    def place(key: tuple[Any, ...]) -> list[float]:
        return [
            float(value) if isinstance(value, int | float) else seen[value]
            for seen, value in zip(first, key, strict=True)
        ]

    return {key: found[key] for key in sorted(found, key=place)}


def pooled(rows: Sequence[Row], shown: Metric, *, title: str) -> tuple[float, list[float] | None] | None:
    """The metric of one row with its interval, or of several seeds their mean and, if they differ, the ends.

    Raises:
        InputError: the rows are several runs of one seed: a table that does not tell them apart.
    """
    seeds = [row["seed"] for row in rows]
    if len({*seeds}) < len(seeds):
        names = ", ".join(row["name"] for row in rows)
        raise InputError(f"{title!r} puts {names} together: add the field in which they differ")
    found = [value for value in map(shown.value, rows) if value is not None]
    if not found:
        return None
    if len(found) == 1:
        value, bounds = found[0]
        return value, None if bounds is None else list(bounds)
    values = [value for value, _ in found]
    ends = [min(values), max(values)]
    return statistics.fmean(values), None if ends[0] == ends[1] else ends


def words(rows: Sequence[Row], shown: Metric, *, title: str) -> str:
    """ "1.85 [1.71, 2.01]", or a dash."""
    found = pooled(rows, shown, title=title)
    if found is None:
        return ABSENT
    value, bounds = found
    ends = f" [{', '.join(map(shown.form.format, bounds))}]" if bounds is not None else ""
    return shown.form.format(value) + ends


def pivot(content: dict[str, Any], spec: TableSpec) -> dict[str, Any]:
    """One table, ready for markdown: `title`, `headings`, `rows` of texts, `note`.

    Raises:
        InputError: an unknown column or field, or rows that the table cannot tell apart.
    """
    rows = chosen(content["cells"], spec)
    columns = [metric(name) for name in spec.columns]
    spread = [value for (value,) in grouped(rows, [spec.across])] if spec.across else [None]
    headings, lines = list(spec.rows), []
    for value in spread:
        which = "" if value is None else f", {spec.across} {text(value)}"
        headings += [shown.title + which for shown in columns]
    for key, group in grouped(rows, spec.rows).items():
        line = [text(value) for value in key]
        for value in spread:
            part = group if value is None else [row for row in group if row[spec.across] == value]
            line += [words(part, shown, title=spec.title) if part else ABSENT for shown in columns]
        lines.append(line)
    several = any(
        len(part) > 1
        for part in grouped(rows, [*spec.rows, *([spec.across] if spec.across else [])]).values()
    )
    intervals = (
        "Several seeds: the mean, in brackets the lowest and the highest. One: 95% intervals by bootstrap."
        if several
        else "Brackets: 95% intervals by bootstrap over prompts or windows."
    )
    return {
        "title": spec.title,
        "headings": headings,
        "rows": lines,
        "note": " ".join(filter(None, [spec.note, intervals])),
    }


def text(value: Any) -> str:
    """A field as it stands in a table."""
    if isinstance(value, float):
        return f"{value:g}"
    return "all" if value is None else str(value)
