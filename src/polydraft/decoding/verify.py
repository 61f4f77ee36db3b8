"""Token-wise verification: keep of a draft what the base model would have said, and one token more.

Leviathan et al. 2023 (arXiv 2211.17192), Chen et al. 2023 (arXiv 2302.01318). With p the base model's
processed row and q the row the draft x was drawn from, x is kept with probability min(1, p(x)/q(x));
at the first refusal the token comes from the residual max(0, p - q), normalised. The result is
distributed as p whatever q is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from polydraft.errors import PolydraftError

Settle = Callable[[int], bool]
"""Told the index of each draft that is kept, in their order, as soon as that is certain; True where the text
ends with it. Nothing is asked of the base model's row after the end of a text, as in plain decoding."""


class UndrawableError(PolydraftError, RuntimeError):
    """There is nothing to draw the next token from."""


class Verified(NamedTuple):
    """`accepted` drafts are kept, then comes `token`: a correction, or a bonus when all were kept.

    The token is None where the text ends with the last draft kept.
    """

    accepted: int
    token: int | None


def never_ends(_: int) -> bool:
    """A `Settle` of texts that go on."""
    return False


def check_drawable(scores: Tensor) -> None:
    """Refuse what plain sampling cannot draw from either.

    Args:
        scores: (V,), the base model's row after all processors.

    Raises:
        UndrawableError: they hold NaN or +inf, or nothing but -inf.
    """
    if not bool(scores.max().isfinite()):
        raise UndrawableError(
            "the next token cannot be drawn: the scores, after all processors, hold NaN or +inf, or are all "
            "-inf; check the model's weights and dtype, and the processors"
        )


def probabilities(scores: Tensor) -> Tensor:
    """softmax(scores), (V,).

    Raises:
        UndrawableError: as `check_drawable`.
    """
    check_drawable(scores)
    return scores.softmax(-1)


def ratio(target: float, draft: float) -> float:
    """p(x) / q(x) of a token drawn from q; 0 where q(x) is 0 or NaN, which no draw gives."""
    return target / draft if draft > 0 else 0.0


def excess(target: Tensor, draft: Tensor, draft_ids: Tensor) -> Tensor:
    """max(0, p - q); p (V,), q (V',) over `draft_ids` (V',) -> (V,)."""
    rest = target.clone()
    rest[draft_ids] -= draft
    return rest.clamp_(min=0)


def residual(target: Tensor, draft: Tensor, draft_ids: Tensor) -> Tensor:
    """`excess`, not normalised; where rounding leaves nothing of it, p and q are equal and p is returned.

    So it is where q holds a NaN, whose drafts `ratio` refuses.
    """
    rest = excess(target, draft, draft_ids)
    return rest if float(rest.sum()) > 0 else target


def happens(chance: float, generator: torch.Generator | None, device: torch.device) -> bool:
    """True with probability `chance`: never at 0, always from 1 on."""
    return float(torch.rand((), generator=generator, device=device)) < chance


def draw(weights: Tensor, generator: torch.Generator | None) -> int:
    """One index drawn in proportion to `weights` (V,)."""
    return int(torch.multinomial(weights, 1, generator=generator))


def verify_chosen(
    choose: Callable[[int], int],
    drafts: Sequence[int],
    parents: Sequence[int] | None = None,
    *,
    settle: Settle = never_ends,
) -> tuple[list[int], int | None]:
    """Keep drafts while they are what the base model says: its argmax, or a draw from its row.

    The text is the one that plain decoding writes with the same choices: nothing is asked of where the drafts
    come from, so long as they were not drawn. They may form a tree; siblings differ.

    Args:
        choose: column -> the token after draft `column` - 1, after the pending token for 0; asked once for
            each column on the way.
        drafts: base token ids. parents: of a tree, the index before each, -1 for the pending token.
        settle: see `Settle`.

    Returns:
        The indices kept, and the token after them, None where the text ends with them.
    """
    path: list[int] = []
    while True:
        at = path[-1] if path else -1
        token = choose(at + 1)
        if parents is None:
            children = [at + 1] if at + 1 < len(drafts) else []
        else:
            children = [node for node, parent in enumerate(parents) if parent == at]
        kept = next((node for node in children if drafts[node] == token), None)
        if kept is None:
            return path, token
        path.append(kept)
        if settle(kept):
            return path, None


def verify_sampled(
    target_row: Callable[[int], Tensor],
    drafts: Sequence[int],
    draft_index: Tensor,
    draft_log_rows: Tensor,
    draft_ids: Tensor,
    *,
    generator: torch.Generator | None = None,
    settle: Settle = never_ends,
) -> Verified:
    """Token-wise rejection sampling; see the module's docstring.

    Args:
        target_row: s -> p after the first s drafts, probabilities (V,); asked in order, and never
            beyond the first refusal.
        drafts: m base token ids. draft_index: (m,) the same in the draft vocabulary.
        draft_log_rows: (m, V') log q, the normalised rows the drafts were drawn from.
        draft_ids: (V',) base ids of the draft vocabulary. settle: see `Settle`.
    """
    for s, draft in enumerate(drafts):
        target, row = target_row(s), draft_log_rows[s].exp()
        if not happens(ratio(float(target[draft]), float(row[draft_index[s]])), generator, target.device):
            return Verified(s, draw(residual(target, row, draft_ids), generator))
        if settle(s):
            return Verified(s + 1, None)
    return Verified(len(drafts), draw(target_row(len(drafts)), generator))
