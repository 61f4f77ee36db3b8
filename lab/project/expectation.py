"""Tokens a cycle, from the acceptance of drafts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from polydraft.errors import InputError


def expected_tokens(acceptance: Sequence[float], horizon: int) -> float:
    """E = 1 + sum_{s=1}^{n} prod_{i=1}^{s} a_i: the base model's own token, and drafts that are kept.

    With one a for all positions E = (1 - a^(n+1)) / (1 - a) (Leviathan et al. 2023, arXiv 2211.17192, eq. 1).

    Args:
        acceptance: a_s, P(draft s is accepted | those before it were); the last one holds for all after it.
        horizon: n.

    Raises:
        InputError: no numbers, or one that is no probability.
    """
    if not acceptance or not all(0 <= a <= 1 for a in acceptance):
        raise InputError(
            f"acceptance must be numbers from 0 to 1, got {', '.join(map(str, acceptance)) or 'none'}"
        )
    total, reached = 1.0, 1.0
    for s in range(horizon):
        reached *= acceptance[min(s, len(acceptance) - 1)]
        total += reached
    return total


def parse_acceptance(text: str) -> tuple[float, ...]:
    """ "0.8" or "0.8,0.7,0.6", the conditional acceptance of each position.

    Raises:
        InputError: that is something else.
    """
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise InputError(f"--acceptance {text}: give numbers such as 0.8 or 0.8,0.7,0.6") from error
    expected_tokens(values, 1)
    return values


def cell_tokens(cell: dict[str, Any], mode: str) -> float | None:
    """Tokens a cycle of a row of a grid's results, as replayed over all texts; None where it was not."""
    found = cell["acceptance"].get(mode)
    return None if found is None else float(found["all"]["length"])
