"""How each token of a text came about: for pictures of a generation, and for log probabilities."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from polydraft.decoding.drafts import Draft, Kept
from polydraft.joint import JointDistribution


@dataclass(frozen=True)
class TokenTrace:
    """One token.

    Attributes:
        token: base token id. origin: s >= 1 for a token drafted at position s, 0 for the base model's own.
        kind: "prompt" (read, not written), "first" (after the prompt), "drafted", "copied" (prompt lookup),
            "correction" (drafts stood here, and all were refused), "bonus" (no draft reached so far), "plain"
            (nothing was drafted).
        step: 0 up to the first token, then the cycle of this text, from 1.
        log_prob: of the base model, before any processor.
        top: its likeliest tokens and their log probabilities, the likeliest first.
        draft_log_prob: of the head, likewise, after the tokens before; None where it said nothing.
        weights: P(component | tokens before), (r,); () where the head has one component, or said nothing.
    """

    token: int
    origin: int
    kind: str
    step: int
    log_prob: float
    top: tuple[tuple[int, float], ...]
    draft_log_prob: float | None = None
    weights: tuple[float, ...] = ()


class Said(NamedTuple):
    """What the head said of one token; no log probability outside the draft vocabulary, weights (r,)."""

    log_prob: float | None
    weights: tuple[float, ...]


SILENT = Said(None, ())


def along(joint: JointDistribution, tokens: Sequence[int]) -> list[Said]:
    """What a joint of one row says of `tokens`, each after those before it.

    Ends after its horizon, or after a token that it does not know.

    Args:
        tokens: draft indices, -1 for those outside the draft vocabulary.
    """
    out: list[Said] = []
    state = joint.start()
    for position, token in enumerate(tokens[: joint.horizon]):
        chosen = torch.tensor([token], device=joint.device)
        weights = tuple(joint.weights(state, position)[0].tolist())
        known = token >= 0
        log_prob = float(joint.token_log_prob(state, position, chosen)) if known else None
        if any(map(math.isnan, (*weights, log_prob or 0.0))):
            break  # a head that computes no numbers says nothing
        out.append(Said(log_prob, weights if len(weights) > 1 else ()))
        if not known or position + 1 == min(len(tokens), joint.horizon):
            break
        state = joint.advance(state, position, chosen)
    return out


class Tracer:
    """Writes the trace of one text.

    Args:
        likely: how many of the likeliest tokens are noted. prompt: of the prompt's tokens too.

    Attributes:
        prompt: what was read, all but its first token, which nothing predicts; None if not asked for.
    """

    def __init__(self, likely: int, *, prompt: bool = False) -> None:
        self.likely = likely
        self.tokens: list[TokenTrace] = []
        self.prompt: list[TokenTrace] | None = [] if prompt else None
        self._step = 0

    def read(self, tokens: Sequence[int], logits: Tensor) -> None:
        """Tokens of the prompt, each after a row of logits (k, V)."""
        assert self.prompt is not None
        for token, row in zip(tokens, logits, strict=True):
            self.prompt.append(self._traced(token, 0, "prompt", row))

    def first(self, token: int, logits: Tensor) -> None:
        """The token after the prompt; logits (V,)."""
        self._write(token, 0, "first", logits)

    def step(
        self, draft: Draft, kept: Kept, logits: Tensor, joint: JointDistribution | None, draft_index: Tensor
    ) -> None:
        """One cycle.

        Args:
            logits: (m + 1, V). joint: of this row, None if it was not asked for; where nothing was drafted
                here, it was asked for others, and is left out. draft_index: of the tokens kept and the one
                after them, if there is one, -1 outside the draft vocabulary.
        """
        self._step += 1
        said = []
        if joint is not None and draft.tokens and not draft.copied:
            said = along(joint, draft_index.tolist())
        said += [SILENT] * (len(kept.path) + 1 - len(said))
        columns = [0, *(node + 1 for node in kept.path)]
        kind = "copied" if draft.copied else "drafted"
        for depth, (node, before) in enumerate(zip(kept.path, columns, strict=False), start=1):
            self._write(draft.tokens[node], depth, kind, logits[before], said[depth - 1])
        if kept.token is not None:
            self._write(kept.token, 0, ending(draft, kept), logits[columns[-1]], said[-1])

    def _write(self, token: int, origin: int, kind: str, logits: Tensor, said: Said = SILENT) -> None:
        self.tokens.append(self._traced(token, origin, kind, logits, said))

    def _traced(self, token: int, origin: int, kind: str, logits: Tensor, said: Said = SILENT) -> TokenTrace:
        rows = logits.float().log_softmax(-1)
        values, ids = rows.topk(self.likely)
        top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
        log_prob = float(rows[token])
        return TokenTrace(token, origin, kind, self._step, log_prob, top, said.log_prob, said.weights)


def ending(draft: Draft, kept: Kept) -> str:
    """What the token after the drafts kept is: "plain", "correction" or "bonus"."""
    if not draft.tokens:
        return "plain"
    last = kept.path[-1] if kept.path else -1
    parents = range(-1, len(draft.tokens) - 1) if draft.parents is None else draft.parents
    return "correction" if last in parents else "bonus"
