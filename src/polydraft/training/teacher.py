"""The base model's own rows over the draft vocabulary, made when they are asked for."""

from __future__ import annotations

from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn.functional import linear
from transformers import PreTrainedModel

from polydraft.forwards import lean
from polydraft.heads.fingerprint import unembedding

MOST_LOGITS = 2**24
"""Numbers that one matrix product gives at most; 32 MiB in bfloat16."""
MOST_SCRATCH = 2**18
"""Logits that are handled at a time; 1 MiB in float32, what a core's cache holds."""

_LINEAR: WeakKeyDictionary[PreTrainedModel, bool] = WeakKeyDictionary()


class Teacher(NamedTuple):
    """log p of Q positions of the text, from hidden states or from logits.

    Attributes:
        log_normaliser: (Q,) float32, logsumexp of the logits over the whole vocabulary.
        hidden: (Q, d), with `rows` (V', d), the base model's unembedding of the draft vocabulary.
        logits: (Q, V), with `draft_ids` (V',); for models that change their logits after the unembedding.
    """

    log_normaliser: Tensor
    hidden: Tensor | None = None
    rows: Tensor | None = None
    logits: Tensor | None = None
    draft_ids: Tensor | None = None

    @torch.no_grad()
    def scores(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the draft vocabulary at the positions `index` (C,), in the base model's dtype, (C, V'),
        and their normalisers, (C, 1) float32.
        """
        if self.logits is not None and self.draft_ids is not None:
            scores = self.logits[index][:, self.draft_ids]
        else:
            assert self.hidden is not None and self.rows is not None
            scores = self.hidden[index].to(self.rows.dtype) @ self.rows.T
        return scores, self.log_normaliser[index][:, None]

    def log_rows(self, index: Tensor) -> Tensor:
        """log p of the draft vocabulary at the positions `index` (C,); (C, V') float32.

        A row sums to at most 1; what is missing are the tokens that cannot be drafted.
        """
        scores, normaliser = self.scores(index)
        return scores.float() - normaliser

    @torch.no_grad()
    def log_probs(self, index: Tensor, tokens: Tensor) -> Tensor:
        """log p of single tokens at the positions `index`, without the rows; any shape, float32.

        Args:
            tokens: draft ids; where -1 the result has no meaning.
        """
        tokens = tokens.clamp(min=0)
        if self.logits is not None and self.draft_ids is not None:
            scores = self.logits[index, self.draft_ids[tokens]].float()
        else:
            assert self.hidden is not None and self.rows is not None
            state = self.hidden[index].to(self.rows.dtype)
            scores = (state[..., None, :] @ self.rows[tokens][..., None])[..., 0, 0].float()
        return scores - self.log_normaliser[index]


def probabilities(scores: Tensor, normaliser: Tensor) -> Tensor:
    """p (C, V') float32, of what `Teacher.scores` gives."""
    return torch.exp_(scores.float() - normaliser)


@torch.no_grad()
def log_normalisers(logits: Tensor) -> Tensor:
    """logsumexp over the vocabulary, in float32, a few rows at a time in the same memory; (Q, V) -> (Q,)."""
    few = max(MOST_SCRATCH // logits.shape[-1], 1)
    scratch = torch.empty(few, logits.shape[-1], device=logits.device)
    out = scratch.new_empty(len(logits))
    for some, sums in zip(logits.split(few), out.split(few), strict=True):
        wide = scratch[: len(some)].copy_(some)
        top = wide.amax(-1, keepdim=True)
        torch.add(wide.sub_(top).exp_().sum(-1).log_(), top[:, 0], out=sums)
    return out


@torch.no_grad()
def state_normalisers(hidden: Tensor, matrix: Tensor) -> Tensor:
    """`log_normalisers` of U h, which never exists as a whole; hidden (Q, d), U (V, d) -> (Q,).

    The logits are rounded to the dtype of U, as the base model's own are.
    """
    size = max(MOST_LOGITS // len(matrix), 1)
    logits = matrix.new_empty(min(size, len(hidden)), len(matrix))
    parts = [
        log_normalisers(torch.mm(states, matrix.T, out=logits[: len(states)]))
        for states in hidden.to(matrix.dtype).split(size)
    ]
    return torch.cat(parts)


@torch.no_grad()
def has_linear_logits(model: PreTrainedModel) -> bool:
    """Whether the model's logits are U times the last states of its decoder.

    Then the decoder alone has to run, and only positions whose rows are wanted need the unembedding. Tried on
    two tokens, once per model.
    """
    if model not in _LINEAR:
        ids = torch.zeros(1, 2, dtype=torch.long, device=model.device)
        logits = model(input_ids=ids, use_cache=False, **lean(model)).logits
        states = model.get_decoder()(input_ids=ids, use_cache=False, **lean(model))[0]
        _LINEAR[model] = torch.equal(linear(states, unembedding(model)), logits)
    return _LINEAR[model]
