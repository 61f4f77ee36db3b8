"""Block verification: the drafts of a step are judged together, which keeps more of them on average.

Sun et al. 2024 (arXiv 2403.10444), algorithm 2. With M_b the base model's processed rows, M_s the rows
the drafts x_1..x_m were drawn from:

    p_0 = 1,  p_i = min(1, p_{i-1} M_b(x_i | x_<i) / M_s(x_i | x_<i))
    S_i = sum_x max(0, p_i M_b(x | x_<=i) - M_s(x | x_<=i))
    h_i = S_i / (S_i + 1 - p_i)  for i < m,   h_m = p_m

The drafts kept are the first t, t the last i whose uniform number is below h_i, or 0: a refusal does not
end the search. The next token comes from M_b if t = m, else from max(0, p_t M_b - M_s), normalised. The
result is distributed as M_b. On average at least as many drafts are kept as token by token, where one
that is likelier under M_b than under M_s cannot make up for the one before it.

Drafts that end early, at a limit or where nothing can be drafted, are a block of m < n: where they end
depends on the tokens before alone, as if what followed were a token that the base model never says. So do
drafts whose last is an end token: the text ends with it, and nothing is asked of the row after it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from polydraft.decoding.verify import Settle, Verified, draw, excess, happens, never_ends, ratio


def chance_to_keep(path: float, more: float) -> float:
    """h_i from p_i and S_i.

    With p_i = 1 and S_i = 0 the next rows are equal and a later i is kept for certain: any value will do.
    """
    whole = more + (1.0 - path)
    return more / whole if whole > 0 else 1.0


def verify_block(
    target_row: Callable[[int], Tensor],
    drafts: Sequence[int],
    draft_index: Tensor,
    draft_log_rows: Tensor,
    draft_ids: Tensor,
    *,
    generator: torch.Generator | None = None,
    settle: Settle = never_ends,
) -> Verified:
    """Block verification; see the module's docstring. Arguments as of `verify_sampled`.

    Args:
        target_row: s -> M_b after the first s drafts, probabilities (V,); asked in order, and never
            beyond a draft that M_b rules out.
        settle: see `Settle`; it is told when all drafts are judged, since none is certain before.
    """
    if not drafts:
        return Verified(0, draw(target_row(0), generator))
    accepted, path = 0, 1.0
    weights: list[Tensor] = []  # entry i: of the next token, should it follow i drafts
    for i, draft in enumerate(drafts):
        target, row = target_row(i), draft_log_rows[i].exp()
        rest = excess(path * target, row, draft_ids)
        more = float(rest.sum())
        weights.append(rest if more > 0 else target)
        if i and happens(chance_to_keep(path, more), generator, target.device):
            accepted = i
        path = min(1.0, path * ratio(float(target[draft]), float(row[draft_index[i]])))
        if path == 0:
            break
    if path > 0 and happens(path, generator, target.device):
        accepted = len(drafts)
    for kept in range(accepted):
        if settle(kept):
            return Verified(kept + 1, None)
    if accepted == len(drafts):
        weights.append(target_row(accepted))
    return Verified(accepted, draw(weights[accepted], generator))
