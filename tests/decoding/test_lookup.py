"""Lookup drafts against examples by hand and a slow search over lists."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polydraft.decoding.lookup import CONTEXT, find_continuation
from polydraft.errors import InputError


def look(text: list[int], *, n: int, ngram: int) -> list[int]:
    """`find_continuation` over lists."""
    found: list[int] = find_continuation(torch.tensor(text, dtype=torch.long), n=n, ngram=ngram).tolist()
    return found


def common(text: list[int], end: int) -> int:
    """Tokens up to and with `end` that equal those up to the end of `text`, `CONTEXT` at most."""
    count = 0
    while count < min(end + 1, CONTEXT) and text[end - count] == text[len(text) - 1 - count]:
        count += 1
    return count


def search(text: list[int], *, n: int, ngram: int) -> list[int]:
    """The same by looking at every place, token by token."""
    scores = {end: common(text, end) for end in range(len(text) - 1)}
    best = max(
        (end for end, score in scores.items() if score >= ngram), key=lambda e: (scores[e], e), default=None
    )
    if best is None:
        return []
    grown = list(text)
    for i in range(n):
        grown.append(grown[best + 1 + i])
    return grown[len(text) :]


@pytest.mark.parametrize(
    ("text", "n", "ngram", "expected"),
    [
        ([1, 2, 3, 4, 5, 1, 2], 2, 2, [3, 4]),
        ([1, 2, 3, 4, 5, 1, 2], 5, 2, [3, 4, 5, 1, 2]),
        ([1, 2, 3, 4, 5, 9, 2], 2, 2, []),  # 9 2 is new
        ([1, 2, 3, 4, 5, 9, 2], 2, 1, [3, 4]),
        ([7, 2, 3, 8, 2, 4, 2], 1, 1, [4]),  # the latest of equals
        ([7, 2, 3, 8, 2, 4, 7, 2], 1, 1, [3]),  # more in common goes before later
        ([1, 2, 1, 2, 1], 6, 2, [2, 1, 2, 1, 2, 1]),  # a loop goes on
        ([5, 5], 3, 1, [5, 5, 5]),
        ([5, 5, 5], 0, 1, []),
        ([5], 3, 1, []),
        ([], 3, 1, []),
        ([1, 2], 3, 2, []),
        ([1, 2], 3, 5, []),
    ],
)
def test_by_hand(text: list[int], n: int, ngram: int, expected: list[int]) -> None:
    assert look(text, n=n, ngram=ngram) == expected
    assert search(text, n=n, ngram=ngram) == expected


@given(
    text=st.lists(st.integers(0, 2), max_size=40),
    n=st.integers(0, 12),
    ngram=st.integers(1, 5),
)
def test_equals_a_search_of_every_place(text: list[int], n: int, ngram: int) -> None:
    assert look(text, n=n, ngram=ngram) == search(text, n=n, ngram=ngram)


def test_compares_ngrams_longer_than_the_context() -> None:
    text = list(range(40))
    assert look([*text, 99, *text[:30]], n=2, ngram=20) == [30, 31]
    assert look([*text, 99, *text[5:30]], n=2, ngram=26) == []


@pytest.mark.parametrize(("n", "ngram"), [(-1, 2), (3, 0)])
def test_refuses_numbers_that_mean_nothing(n: int, ngram: int) -> None:
    with pytest.raises(InputError, match="n >= 0 and ngram >= 1"):
        look([1, 2, 3], n=n, ngram=ngram)
