"""What is served: a model with its head, its vocabulary and its limits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from polydraft.decoding.plan import Plan
from polydraft.errors import InputError
from polydraft.heads import DraftHead
from polydraft.limits import embedding_rows
from polydraft.serving.batch import Batch, Row
from polydraft.serving.characters import least_tokens
from polydraft.serving.tokens import Vocabulary


@dataclass(frozen=True, kw_only=True)
class Served:
    """A model as requests see it.

    Attributes:
        name: what they call it. max_model_len: tokens of a prompt and its answer together.
        least_tokens: says how many tokens a text has at least; see `polydraft.serving.characters`.
        end_tokens: ids that end a text. vocab_size: ids the model reads, the rows of its embedding.
        head: its joint, rank and horizon, for people to read.
        open_batch: makes the batch; called once, in the thread that owns it.
        new_row: `polydraft.decoding.live.new_row`, on the model's device.
    """

    name: str
    tokenizer: PreTrainedTokenizerBase
    vocabulary: Vocabulary
    least_tokens: Callable[[str], int]
    max_model_len: int
    end_tokens: tuple[int, ...]
    vocab_size: int
    head: dict[str, Any]
    open_batch: Callable[[], Batch]
    new_row: Callable[..., Row]


def served(
    model: PreTrainedModel,
    head: DraftHead,
    tokenizer: PreTrainedTokenizerBase,
    *,
    name: str,
    rows: int,
    plan: Plan,
    max_model_len: int | None = None,
    prefill_chunk_size: int | None = None,
) -> Served:
    """`model` with `head`, for `rows` texts at once.

    Args:
        max_model_len: at most, and by default, as many as texts of the model may have.
        prefill_chunk_size: as of `LiveBatch`.

    Raises:
        InputError: more than that.
    """
    from polydraft.decoding.live import LiveBatch, new_row
    from polydraft.decoding.refusals import longest_text

    positions = longest_text(model)
    length = max_model_len if max_model_len is not None else positions
    if length is None:
        raise InputError("the model does not say how long its texts may be: give --max-model-len")
    if length < 2 or (positions is not None and length > positions):
        raise InputError(f"max_model_len must be between 2 and the model's {positions}, got {length}")
    return Served(
        name=name,
        tokenizer=tokenizer,
        vocabulary=Vocabulary(tokenizer),
        least_tokens=least_tokens(tokenizer),
        max_model_len=length,
        end_tokens=end_tokens(model),
        vocab_size=embedding_rows(model),
        head={"joint": head.config.joint, "rank": head.config.rank, "horizon": head.config.horizon},
        open_batch=lambda: LiveBatch(
            model, head, rows=rows, plan=plan, prefill_chunk_size=prefill_chunk_size
        ),
        new_row=lambda prompt, **options: new_row(prompt, device=model.device, **options),
    )


def end_tokens(model: PreTrainedModel) -> tuple[int, ...]:
    """The ids that end a text, as `model.generate` has them."""
    config = model.generation_config
    found: int | Sequence[int] | None = None if config is None else config.eos_token_id
    if found is None:
        return ()
    return (found,) if isinstance(found, int) else tuple(found)
