"""Replay every head along the continuations: what decoding with it would accept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from polydraft.evaluation.grid.config import GridConfig, Variant
from polydraft.evaluation.grid.progress import Progress
from polydraft.evaluation.grid.store import Store, write_json
from polydraft.evaluation.grid.texts import Continuation, read_texts
from polydraft.evaluation.replay import MODES, replay
from polydraft.heads import DraftHead
from polydraft.loading import load_head
from polydraft.modes import VERIFICATION


def open_variant(
    store: Store, variant: Variant, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> DraftHead:
    """Its head, drafting as the variant says."""
    head = load_head(str(store.head(variant.cell)), model=model, tokenizer=tokenizer)
    if variant.components is not None:
        head.config.components = variant.components
    return head


def modes_of(head: DraftHead) -> tuple[str, ...]:
    """The `MODES` that differ for this head: best components need several, and no bias on their rows."""
    plain = head.config.rank == 1 or head.config.member.markov or head.config.features == "hidden"
    return tuple(mode for mode in MODES if not (mode == "components" and plain))


def replay_variants(
    config: GridConfig,
    store: Store,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    progress: Progress,
) -> None:
    """Replay every trained head that has no replay along these texts yet.

    Block verification judges whole drafts, not tokens one by one: its acceptance comes from decoding.
    """
    wanted = [
        variant
        for variant in config.variants
        if variant.verification == VERIFICATION
        and store.is_trained(variant.cell)
        and not store.replay(variant)
    ]
    if not wanted:
        return
    texts: dict[tuple[int, ...], list[Continuation]] = {}  # by the layers that heads read
    with progress.counting("replay", len(wanted)) as advance:
        for variant in wanted:
            head = open_variant(store, variant, model, tokenizer)
            layers = tuple(head.config.layers)
            if layers not in texts:
                texts[layers] = read_texts(config, store, model, layers=layers)
            rows = {mode: walk_rows(head, texts[layers], mode=mode) for mode in modes_of(head)}
            made_with = store.replay_settings(variant)
            write_json(store.replay_path(variant), {"made_with": made_with, "modes": rows})
            advance(variant.name)


def walk_rows(head: DraftHead, texts: Sequence[Continuation], *, mode: str) -> list[dict[str, Any]]:
    """One row per continuation of the mode's kind: its prompt's index and its `Walk`."""
    chosen = [text for text in texts if text.sampled == (mode == "sampled")]
    walks = replay(head, [item.text for item in chosen], mode=mode)
    return [{"prompt": item.prompt} | vars(walk) for item, walk in zip(chosen, walks, strict=True)]
