"""What is proposed for the rows of a batch, and what verification keeps of it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from torch import Tensor

from polydraft.decoding.tree import DraftTree
from polydraft.joint import Chain
from polydraft.masks import tree_depths


class Draft(NamedTuple):
    """The drafts of one row, m tokens.

    Attributes:
        tokens: m base token ids.
        draft_index: (m,) int64, the same in the draft vocabulary; None with `log_rows`.
        log_rows: (m, V') log q, the normalised rows the tokens were drawn from, one after the other; None
            where they were chosen, not drawn.
        parents: of a tree, per token the index of that before it, -1 for the pending token; None: a chain.
        copied: from the text, not asked of the head.
        tree: where nodes of it were drawn: it holds what from.
    """

    tokens: list[int]
    draft_index: Tensor | None = None
    log_rows: Tensor | None = None
    parents: tuple[int, ...] | None = None
    copied: bool = False
    tree: DraftTree | None = None

    def before(self, column: int) -> list[int]:
        """The drafts that lead to a column of the verification: 0 is the pending token, i + 1 draft i."""
        if self.parents is None:
            return self.tokens[:column]
        out: list[int] = []
        node = column - 1
        while node >= 0:
            out.append(self.tokens[node])
            node = self.parents[node]
        return out[::-1]

    def before_it(self, node: int) -> int:
        """The index of the draft before draft `node`, -1 for the pending token."""
        return node - 1 if self.parents is None else self.parents[node]

    @property
    def depths(self) -> list[int]:
        """How far each token lies after the pending one, from 1."""
        if self.parents is None:
            return list(range(1, len(self.tokens) + 1))
        return [depth + 1 for depth in tree_depths(self.parents)]

    def first(self, count: int | None) -> Draft:
        """The chain cut to `count` tokens, None for all of it; of a tree, which is never too deep, all."""
        if count is None or count >= len(self.tokens) or self.parents is not None:
            return self
        index, rows = (None if x is None else x[:count] for x in (self.draft_index, self.log_rows))
        return self._replace(tokens=self.tokens[:count], draft_index=index, log_rows=rows)

    def until(self, ends: Collection[int]) -> Draft:
        """The chain up to its first end token, which it keeps; of a tree all."""
        return self.first(next((at + 1 for at, token in enumerate(self.tokens) if token in ends), None))


class Kept(NamedTuple):
    """The drafts at the indices `path` stay, then comes `token`: a correction, or a bonus.

    The token is None where the text ends with the drafts.
    """

    path: Sequence[int]
    token: int | None


def grown(trees: Sequence[DraftTree], draft_ids: Tensor) -> list[Draft]:
    """Trees as the drafts of their rows."""
    return [
        Draft(
            draft_ids[tree.tokens].tolist(),
            parents=tree.parents,
            tree=None if tree.log_rows is None else tree,
        )
        for tree in trees
    ]


def split(chain: Chain, draft_ids: Tensor) -> list[Draft]:
    """A batch of chains as the drafts of its rows."""
    tokens = draft_ids[chain.tokens].tolist()
    lengths = [None] * len(tokens) if chain.lengths is None else chain.lengths.tolist()
    if chain.log_rows is None:
        return [Draft(row[:length]) for row, length in zip(tokens, lengths, strict=True)]
    return [
        Draft(row, chain.tokens[b], chain.log_rows[b]).first(length)
        for b, (row, length) in enumerate(zip(tokens, lengths, strict=True))
    ]
