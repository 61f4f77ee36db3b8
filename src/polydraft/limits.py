"""What a model can read: token ids with a row of its embedding, positions with a row of its table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from polydraft.errors import InputError

BOUNDED = {"mpt": "max_seq_len"}
"""Kinds of model whose forward fails beyond a number of its configuration, with no table to be seen."""


def embedding_rows(model: PreTrainedModel) -> int:
    """Token ids that the model reads and gives: those below.

    It may have rows for more than its tokenizer has tokens; padding to a round number is common.
    """
    ends = [model.get_input_embeddings(), model.get_output_embeddings()]
    return min(len(end.weight) for end in ends if end is not None)


def check_ids(
    ids: Sequence[int], rows: int, *, where: str, tokenizer: PreTrainedTokenizerBase | None = None
) -> None:
    """Refuse token ids that have no row in the model's embedding.

    Args:
        rows: as of `embedding_rows`. tokenizer: it gave these ids; None for ids from elsewhere.

    Raises:
        InputError: names the first such id.
    """
    if not ids or 0 <= min(ids) <= max(ids) < rows:
        return
    wrong = next(token for token in ids if not 0 <= token < rows)
    if tokenizer is None:
        raise InputError(
            f"{where}: token id {wrong} is of another tokenizer: the model reads ids below {rows}"
        )
    name = tokenizer.convert_ids_to_tokens(wrong)
    raise InputError(
        f"{where}: the tokenizer has token {wrong}, {name!r}, the model reads ids below {rows}: leave it out "
        "of the text, or resize the model's embedding"
    )


def position_rows(model: PreTrainedModel) -> int | None:
    """Positions of a table that the model looks them up in; None where positions are computed.

    A table has as many rows as the configuration names positions (some begin further down, by an `offset`),
    learned or not; beyond it the forward fails. Computed positions, rotary ones for instance, only get worse.
    """
    config: Any = model.config.get_text_config(decoder=True)
    if config.model_type in BOUNDED:
        return int(getattr(config, BOUNDED[config.model_type]))
    positions = getattr(config, "max_position_embeddings", None)
    if positions is None:
        return None
    tokens = (model.get_input_embeddings(), model.get_output_embeddings())
    tables: list[tuple[int, int]] = []
    for module in model.modules():
        if isinstance(module, nn.Embedding) and module not in tokens:
            tables.append((len(module.weight), getattr(module, "offset", 0)))
        tables += [(len(b), 0) for b in module.buffers(recurse=False) if b.ndim == 2]
    return int(positions) if any(rows - offset == positions for rows, offset in tables) else None


def check_positions(model: PreTrainedModel, length: int, *, what: str) -> None:
    """Refuse texts that run past the model's table of positions.

    Args:
        length: tokens that are read of the longest. what: says so, and how it gets shorter.

    Raises:
        InputError: says how many positions there are.
    """
    rows = position_rows(model)
    if rows is not None and length > rows:
        raise InputError(f"{type(model).__name__} has positions for {rows} tokens: {what}")
