"""What decoding would accept along a text that the base model wrote, computed without decoding.

Whether each draft of each cycle would be accepted is found here, the expected cycles by `training.walk`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch.nn.functional import pad

from polydraft.heads import DraftHead
from polydraft.joint import LatentMixture
from polydraft.training.paths import along, kept
from polydraft.training.walk import Walk, walk

MODES = ("greedy", "components", "sampled")
"""How the drafts are made and judged: the greedy chain, the chain of the best components, sampling."""
CHUNK_BYTES = 2**27
"""Log factors made at a time; the joint holds a few arrays of this size."""


@dataclass(frozen=True, kw_only=True)
class Text:
    """A continuation that the base model wrote.

    Attributes:
        tokens: (L,) int64, the new ones. hidden: (L, D), the states that gave each of them.
        log_probs: (L,) float32, log p of each under the base model at temperature 1.
        told: (P - 1,) int64, the prompt but for its first token. told_hidden: (P - 1, D), the states that
            gave each of those: the context of features "block".
    """

    tokens: Tensor
    hidden: Tensor
    log_probs: Tensor
    told: Tensor
    told_hidden: Tensor

    @property
    def anchors(self) -> int:
        """Tokens that a cycle can start with: all but the last."""
        return max(len(self.tokens) - 1, 0)


def replay(head: DraftHead, texts: Sequence[Text], *, mode: str) -> list[Walk]:
    """Walk along each text with `head`, attached to the model that wrote them; `mode`: one of `MODES`.

    Raises:
        ValueError: "components" for a joint that has no best components.
    """
    return [walk(table) for table in survival(head, texts, mode=mode)]


@torch.inference_mode()
def survival(head: DraftHead, texts: Sequence[Text], *, mode: str) -> list[Tensor]:
    """P(the first s drafts of a cycle that starts with token i are all accepted).

    Per text (L - 1, n) float64, the row of token i and the column of s = 1..n.
    The last token is never a draft: with one token to go, decoding drafts nothing.
    """
    n = head.config.horizon
    known = [head.draft_index(text.tokens) for text in texts]
    targets = torch.cat([_ahead(k[:-1], n, fill=-1)[: t.anchors] for k, t in zip(known, texts, strict=True)])
    log_p = torch.cat([_ahead(t.log_probs[:-1], n, fill=0)[: t.anchors] for t in texts])
    features = torch.cat([features_along(head, text) for text in texts])
    pending = torch.cat([text.tokens[: text.anchors] for text in texts])
    size = 4 * head.config.positions * head.config.rank * head.config.draft_vocab_size
    parts = []
    for part in torch.arange(len(pending)).split(max(1, CHUNK_BYTES // size)):
        joint = head.joint(features[part], pending[part])
        if mode == "sampled":
            chances = kept(along(joint, targets[part], hits=False).log_q, log_p[part], targets[part])
        else:
            chain = joint.argmax() if mode == "greedy" else cast(LatentMixture, joint).best_components()
            chances = (chain.tokens == targets[part]).double()
        parts.append(chances.cumprod(-1).cpu())
    return list(torch.cat(parts).split([text.anchors for text in texts]))


def features_along(head: DraftHead, text: Text) -> Tensor:
    """u of every token a cycle can start with, its whole past known; (L - 1, d)."""
    states = torch.cat([text.told_hidden, text.hidden])[None]
    after = torch.cat([text.told, text.tokens])[None]
    return head.features(states, after)[0, len(text.told) :][: text.anchors]


def _ahead(values: Tensor, n: int, *, fill: float) -> Tensor:
    """Row i: values[i+1..i+n], `fill` beyond the end; (L,) -> (L, n), or more rows where L is 0."""
    return pad(values[1:], (0, n), value=fill).unfold(0, n, 1)
