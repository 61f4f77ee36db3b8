"""What decoding would accept along a text that the base model wrote, computed without decoding.

Whether each draft of each cycle would be accepted is found here, the expected cycles by `training.walk`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from polydraft.heads import DraftHead
from polydraft.heads.past import Past
from polydraft.training.paths import along, kept
from polydraft.training.walk import Walk, walk

MODES = ("greedy", "sampled")
"""How the drafts are made and judged: the greedy chain, or sampling."""
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
    """Walk along each text with `head`, attached to the model that wrote them; `mode`: one of `MODES`."""
    return [walk(table) for table in survival(head, texts, mode=mode)]


def survival(head: DraftHead, texts: Sequence[Text], *, mode: str) -> list[Tensor]:
    """P(the first s drafts of a cycle that starts with token i are all accepted).

    Per text (L - 1, n) float64, the row of token i and the column of s = 1..n.
    The last token is never a draft: with one token to go, decoding drafts nothing.
    """
    return [text_survival(head, text, mode=mode) for text in texts]


@torch.inference_mode()
def text_survival(head: DraftHead, text: Text, *, mode: str) -> Tensor:
    """`survival` of one text, some anchors at a time."""
    n = head.config.horizon
    targets = _ahead(head.draft_index(text.tokens)[:-1], n, fill=-1)[: text.anchors]
    log_p = _ahead(text.log_probs[:-1], n, fill=0)[: text.anchors]
    features, past = features_along(head, text)
    size = max(
        1, CHUNK_BYTES // (4 * head.config.positions * head.config.rank * head.config.draft_vocab_size)
    )
    parts = [torch.zeros(0, n, dtype=torch.float64)]
    for start in range(0, text.anchors, size):
        part = slice(start, min(start + size, text.anchors))
        seen = None if past is None else past.part(part)
        joint = head.joint(features[part], text.tokens[part], seen)
        if mode == "sampled":
            chances = kept(along(joint, targets[part], hits=False).log_q, log_p[part], targets[part])
        else:
            chances = (joint.argmax().tokens == targets[part]).double()
        parts.append(chances.cumprod(-1).cpu())
    return torch.cat(parts)


def features_along(head: DraftHead, text: Text) -> tuple[Tensor, Past | None]:
    """u of every token a cycle can start with, (L - 1, d), and what chains from there see of the text."""
    states = torch.cat([text.told_hidden, text.hidden])[None]
    after = torch.cat([text.told, text.tokens])[None]
    features, memory = head.read(states, after)
    places = len(text.told) + torch.arange(text.anchors, device=features.device)
    return features[0, places], None if memory is None else memory.at(torch.zeros_like(places), places)


def _ahead(values: Tensor, n: int, *, fill: float) -> Tensor:
    """Row i: values[i+1..i+n], `fill` beyond the end; (L,) -> (L, n), or more rows where L is 0."""
    return pad(values[1:], (0, n), value=fill).unfold(0, n, 1)
