"""What decoding would accept along a text that the base model wrote, computed without decoding.

A cycle that starts with the pending token x_i drafts x[i+1..i+n]. Given the text, its drafts are accepted
one after the other:

    greedy    the text is the base model's greedy one: draft s is accepted iff it equals x[i+s];
    sampled   the text is a sample of p at temperature 1: P(x[i+s] was an accepted draft | the drafts
              before it were) = min(1, q(x | ..) / p(x | ..)), since token-wise rejection accepts x with
              probability min(p, q) in all and emits it with probability p.

After a accepted drafts the next cycle starts with x[i+a+1]. That is a renewal process along the text: the
probability that a cycle starts at i, for every i, and with it the expected number of cycles, follow
exactly, without drawing anything. Averaged over texts it is the law of decoding itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from polydraft.heads import DraftHead
from polydraft.joint import JointDistribution

MODES = ("greedy", "components", "sampled")
"""How the drafts are made and judged: the greedy chain, the chain of the best components, sampling."""
CHUNK_BYTES = 2**27
"""Log factors made at a time; the joint holds a few arrays of this size."""


@dataclass(frozen=True, kw_only=True)
class Text:
    """A continuation that the base model wrote.

    Attributes:
        tokens: (L,) int64, the new ones. hidden: (L, d), the state that gave each of them.
        log_probs: (L,) float32, log p of each under the base model at temperature 1.
    """

    tokens: Tensor
    hidden: Tensor
    log_probs: Tensor

    @property
    def anchors(self) -> int:
        """Tokens that a cycle can start with: all but the last."""
        return max(len(self.tokens) - 1, 0)


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
    hidden = torch.cat([text.hidden[: text.anchors] for text in texts])
    pending = torch.cat([text.tokens[: text.anchors] for text in texts])
    size = 4 * head.config.positions * head.config.rank * head.config.draft_vocab_size
    parts = []
    for part in torch.arange(len(pending)).split(max(1, CHUNK_BYTES // size)):
        joint = head(hidden[part], pending[part])
        if mode == "sampled":
            chances = kept(joint, targets[part], log_p[part])
        else:
            chain = joint.argmax() if mode == "greedy" else joint.best_components()
            chances = (chain.tokens == targets[part]).double()
        parts.append(chances.cumprod(-1).cpu())
    return list(torch.cat(parts).split([text.anchors for text in texts]))


def kept(joint: JointDistribution, targets: Tensor, log_p: Tensor) -> Tensor:
    """min(1, q / p) of each target given those before it; 0 for one outside the draft vocabulary.

    Args:
        targets: (B, n) draft ids, -1 outside. log_p: (B, n) of the same tokens.

    Returns:
        (B, n) float64.
    """
    state, out = joint.start(), []
    for s in range(joint.horizon):
        token = targets[:, s].clamp(min=0)
        log_q = joint.token_log_prob(state, s, token)
        out.append((log_q - log_p[:, s]).clamp(max=0).double().exp())
        if s + 1 < joint.horizon:
            state = joint.advance(state, s, token)
    return torch.stack(out, dim=-1) * (targets >= 0)


def walk(survival: Tensor) -> Walk:
    """Expected cycles along a text of L tokens; survival (L - 1, n) as `survival` gives it."""
    anchors, n = survival.shape
    survival = survival.double()
    reached = pad(survival, (1, 0), value=1.0)  # (L - 1, n + 1): the first 0..n drafts accepted
    exactly = reached - pad(survival, (0, 1))  # just 0..n of them
    starts = torch.zeros(anchors + n + 1, dtype=torch.float64)
    starts[0] = 1.0
    for i in range(anchors):
        starts[i + 1 : i + n + 2] += starts[i] * exactly[i]
    starts = starts[:anchors]
    left = torch.arange(anchors - 1, -1, -1)[:, None]  # drafts that fit before the last token
    judged = reached[:, :-1] * (torch.arange(1, n + 1) <= left)
    return Walk(
        tokens=anchors,
        cycles=float(starts.sum()),
        tried=(starts @ judged).tolist(),
        accepted=(starts @ survival).tolist(),
    )


def _ahead(values: Tensor, n: int, *, fill: float) -> Tensor:
    """Row i: values[i+1..i+n], `fill` beyond the end; (L,) -> (L, n), or more rows where L is 0."""
    return pad(values[1:], (0, n), value=fill).unfold(0, n, 1)
