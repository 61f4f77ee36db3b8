"""How many times as fast, in words, for tables."""

from __future__ import annotations

from typing import Any


def ratio_words(found: dict[str, Any]) -> str:
    """Median and quartiles of what `bench.report.ratios` gave: "1.67 (1.54-1.87)"."""
    spread = found["ratio_per_prompt"]
    return f"{spread['median']:.2f} ({spread['q1']:.2f}-{spread['q3']:.2f})"


def cpu_words(found: dict[str, Any]) -> str:
    """The median by CPU time, or a dash where it is not known."""
    return "-" if found["cpu_ratio"] is None else f"{found['cpu_ratio']:.2f}"
