"""Plain `model.generate` against drafted decoding: same prompts, interleaved.

Each prompt runs both ways one after the other, the order alternating from prompt to prompt, so that a
machine that slows down or speeds up meanwhile does it to both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from polydraft.bench.prompts import Prompt
from polydraft.bench.runs import Run, Sampling, run_drafted, run_plain
from polydraft.decoding.statistics import DecodingStatistics
from polydraft.heads import DraftHead

WARM_UP_TOKENS = 16


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One prompt, run both ways."""

    prompt: Prompt
    plain: Run
    drafted: Run

    @property
    def ratio(self) -> float:
        """Drafted tokens per second over plain ones."""
        return self.drafted.tokens_per_second / self.plain.tokens_per_second

    @property
    def identical(self) -> bool:
        """Whether both runs gave the same tokens."""
        return self.plain.tokens == self.drafted.tokens

    @property
    def first_difference(self) -> int | None:
        """Index of the first new token that differs; None if all are equal."""
        if self.identical:
            return None
        pairs = zip(self.plain.tokens, self.drafted.tokens, strict=False)
        shorter = min(len(self.plain.tokens), len(self.drafted.tokens))
        return next((i for i, (a, b) in enumerate(pairs) if a != b), shorter)

    @property
    def statistics(self) -> DecodingStatistics:
        """Of the drafted run."""
        assert self.drafted.statistics is not None
        return self.drafted.statistics


def compare(
    model: PreTrainedModel,
    head: DraftHead,
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    sampling: Sampling,
    *,
    plain_first: bool = True,
) -> Comparison:
    """Run one prompt both ways."""
    ids = prompt.encode(tokenizer)
    if plain_first:
        plain = run_plain(model, tokenizer, ids, sampling)
        drafted = run_drafted(model, head, tokenizer, ids, sampling)
    else:
        drafted = run_drafted(model, head, tokenizer, ids, sampling)
        plain = run_plain(model, tokenizer, ids, sampling)
    return Comparison(prompt=prompt, plain=plain, drafted=drafted)


def warm_up(
    model: PreTrainedModel,
    head: DraftHead,
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    sampling: Sampling,
) -> None:
    """Run a few tokens both ways, so that no timed run pays for what only happens once."""
    few = replace(sampling, max_new_tokens=min(sampling.max_new_tokens, WARM_UP_TOKENS))
    compare(model, head, tokenizer, prompt, few)


def benchmark(
    model: PreTrainedModel,
    head: DraftHead,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    *,
    on_result: Callable[[Comparison], None] | None = None,
) -> list[Comparison]:
    """Compare over all prompts, after a warm-up; prompt i sets torch's seeds to `sampling.torch_seed + i`.

    Args:
        on_result: called after each prompt.

    Raises:
        InputError: a prompt that this tokenizer cannot encode; before anything runs.
    """
    for prompt in prompts:
        prompt.encode(tokenizer)
    warm_up(model, head, tokenizer, prompts[0], sampling)
    results = []
    for index, prompt in enumerate(prompts):
        seeded = replace(sampling, torch_seed=sampling.torch_seed + index)
        result = compare(model, head, tokenizer, prompt, seeded, plain_first=index % 2 == 0)
        results.append(result)
        if on_result is not None:
            on_result(result)
    return results
