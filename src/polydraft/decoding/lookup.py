"""Drafts copied from the text itself: what followed its last tokens where they stood before.

Where a text repeats itself, or its prompt (editing, quoting, loops), such drafts are long and nearly free.
They are deterministic, so their q is one-hot, and they know no draft vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from polydraft.errors import InputError

CONTEXT = 16
"""Tokens that are compared at most to tell earlier places apart."""


def find_continuation(ids: Tensor, *, n: int, ngram: int) -> Tensor:
    """The n tokens that followed an earlier occurrence of the last `ngram` tokens of `ids`.

    Of several occurrences it takes the one with the most tokens before it in common with the end, up to
    `CONTEXT`, and of these the latest. A copy that reaches the end of the text goes on with what it copied,

        draft[i] = text[e + 1 + i mod (L - 1 - e)],    e: where the occurrence ends,

    so that a text in a loop is drafted n tokens ahead.

    Args:
        ids: (L,) int64, prompt and tokens so far.
        n: tokens wanted. ngram: how many must match.

    Returns:
        (n,) int64, or (0,) where the last tokens occur for the first time.

    Raises:
        InputError: `n` is below 0 or `ngram` below 1.
    """
    if n < 0 or ngram < 1:
        raise InputError(f"lookup needs n >= 0 and ngram >= 1, got {n} and {ngram}")
    last = ids.shape[0] - 1
    ends = torch.arange(ngram - 1, max(last, ngram - 1), device=ids.device)  # of earlier occurrences
    for k in range(max(ngram, CONTEXT)):
        if k >= ngram and ends.shape[0] == 1:
            break
        longer = ends[ends >= k]
        longer = longer[ids[longer - k] == ids[last - k]] if longer.shape[0] else longer
        if longer.shape[0] == 0:
            if k < ngram:
                return ids[:0]
            break
        ends = longer
    start = ends[-1] + 1
    return ids[start + torch.arange(n, device=ids.device) % (last + 1 - start)]
