"""What decoding would accept along a text that the base model wrote: a renewal process, nothing decoded.

A cycle that starts with the pending token x_i drafts x[i+1..i+n]. Given the text, its drafts are accepted
one after the other:

    greedy    the text is the base model's greedy one: draft s is accepted iff it equals x[i+s];
    sampled   the text is a sample of p at temperature 1: P(x[i+s] was an accepted draft | the drafts
              before it were) = min(1, q(x | ..) / p(x | ..)), since token-wise rejection accepts x with
              probability min(p, q) in all and emits it with probability p.

After a accepted drafts the next cycle starts with x[i+a+1]. So the probability that a cycle starts at i, for
every i, and with it the expected number of cycles, follow exactly. Averaged over texts it is the law of
decoding itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad


@dataclass(frozen=True, kw_only=True)
class Walk:
    """Expectations over the cycles along one text.

    Attributes:
        tokens: emitted by cycles: all of the text but the first, which the prompt's forward gives.
        cycles: expected number of them.
        tried: (n,) expected cycles that judge a draft at position s, its predecessors accepted.
        accepted: (n,) expected cycles that accept it.
    """

    tokens: int
    cycles: float
    tried: list[float]
    accepted: list[float]


def walk(survival: Tensor, *, ended: bool = False) -> Walk:
    """Expected cycles along a text of L tokens.

    Args:
        survival: (L - 1, n), P(the first s drafts of a cycle that starts with token i are all accepted),
            the row of token i and the column of s = 1..n; zero where `fitting` is not.
        ended: as in `fitting`.
    """
    anchors, n = survival.shape
    survival = survival.double().cpu()
    reached = pad(survival, (1, 0), value=1.0)  # (L - 1, n + 1): the first 0..n drafts accepted
    exactly = reached - pad(survival, (0, 1))  # just 0..n of them
    starts = torch.zeros(anchors + n + 1, dtype=torch.float64)
    starts[0] = 1.0
    for i in range(anchors):
        starts[i + 1 : i + n + 2] += starts[i] * exactly[i]
    starts = starts[:anchors]
    return Walk(
        tokens=anchors,
        cycles=float(starts.sum()),
        tried=(starts @ (reached[:, :-1] * fitting(anchors, n, ended=ended))).tolist(),
        accepted=(starts @ survival).tolist(),
    )


def fitting(anchors: int, n: int, *, ended: bool = False) -> Tensor:
    """Which drafts there is room for; (L - 1, n) bool, as the survival of `walk`.

    With one token to go up to a limit of length, decoding drafts nothing: the last token is no draft.

    Args:
        ended: the text's last token is an end token, so no limit cut it short: it may be a draft too.
    """
    left = torch.arange(anchors - 1, -1, -1)[:, None] + int(ended)
    return torch.arange(1, n + 1) <= left
