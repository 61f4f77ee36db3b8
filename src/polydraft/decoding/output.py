"""What a drafted generation returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers.utils.generic import ModelOutput

from polydraft.decoding.row import Row
from polydraft.decoding.statistics import DecodingStatistics


@dataclass
class DraftedOutput(ModelOutput):
    """What `polydraft.generate` returns.

    Attributes:
        sequences: (B, prompt + new) int64, as `model.generate` returns them; rows that end early are padded.
        scores, logits: with `output_scores`, `output_logits`, per new token (B, V) float32, the processed
            and the raw rows it was chosen from; zeros after the end of a row.
        origins: (B, new) int64; s >= 1 for a token drafted at position s, 0 for one the base model
            gave itself (the first token, a correction or a bonus), -1 for padding.
        statistics: counts and figures of this generation.
        cache: the base model's cache, without the last token; of one row alone. Also `past_key_values`.
    """

    sequences: Tensor | None = None
    scores: tuple[Tensor, ...] | None = None
    logits: tuple[Tensor, ...] | None = None
    origins: Tensor | None = None
    statistics: DecodingStatistics | None = None
    cache: Any = None

    @property
    def past_key_values(self) -> Any:
        """The older name of `cache`."""
        return self.cache


def together(rows: Sequence[Row], statistics: DecodingStatistics, *, padding: int) -> DraftedOutput:
    """The output of finished rows; `padding`: the token after those that ended early."""
    device = rows[0].ids.device
    origins = [torch.tensor(row.origins, device=device) for row in rows]
    return DraftedOutput(
        sequences=pad_sequence([row.ids[0] for row in rows], batch_first=True, padding_value=padding),
        scores=_by_step([row.scores[: len(row.origins)] for row in rows]),
        logits=_by_step([row.logits[: len(row.origins)] for row in rows]),
        origins=pad_sequence(origins, batch_first=True, padding_value=-1),
        statistics=statistics,
    )


def _by_step(rows: Sequence[Sequence[Tensor]]) -> tuple[Tensor, ...] | None:
    """Per row its steps (V,) -> per step (B, V), zeros where a row has no more; None of nothing."""
    steps = max(len(row) for row in rows)
    if not steps:
        return None
    whole = pad_sequence([torch.stack(list(row)) for row in rows])
    return tuple(whole)
