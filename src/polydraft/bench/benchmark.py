"""Plain against drafted decoding, like for like: same prompts, interleaved.

Eager drafting is compared with `model.generate`. Compiled drafting is compared with the same compiled layers
without a draft, so that the ratio is what drafting brings; both are also compared with `model.generate`.
Each prompt runs all ways one after the other, and who begins rotates from prompt to prompt, so that a machine
that slows down or speeds up meanwhile does it to all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from polydraft.bench.prompts import Prompt
from polydraft.bench.runs import Run, Sampling, run_drafted, run_plain, run_undrafted
from polydraft.decoding.refusals import refuse_length
from polydraft.decoding.statistics import DecodingStatistics
from polydraft.heads import DraftHead

WARM_UP_TOKENS = 16


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One prompt, run without and with drafts.

    Attributes:
        plain: without drafts, in the way of `drafted`: compiled where that is. eager: `model.generate`, where
            the two are compiled; else None, since `plain` is that.
    """

    prompt: Prompt
    plain: Run
    drafted: Run
    eager: Run | None = None

    @property
    def ratio(self) -> float:
        """Drafted tokens per second over plain ones, like for like."""
        return self.drafted.over(self.plain)

    @property
    def identical(self) -> bool:
        """Whether the drafted run gave the tokens of the plain one."""
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
        """Return the statistics of the drafted run."""
        assert self.drafted.statistics is not None
        return self.drafted.statistics


def compare(
    model: PreTrainedModel,
    head: DraftHead,
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    sampling: Sampling,
    *,
    turn: int = 0,
    streamer: BaseStreamer | None = None,
) -> Comparison:
    """Run one prompt all ways.

    Args:
        turn: which way begins: 0 without drafts, 1 with drafts, 2, where they are compiled, the eager one.
        streamer: receives the tokens of the drafted run as they are accepted.
    """
    ids = prompt.encode(tokenizer)
    ways: dict[str, Callable[[], Run]] = {
        "plain": lambda: run_undrafted(model, head, tokenizer, ids, sampling),
        "drafted": lambda: run_drafted(model, head, tokenizer, ids, sampling, streamer=streamer),
    }
    if sampling.compiled:
        ways["eager"] = lambda: run_plain(model, tokenizer, ids, sampling)
    first = turn % len(ways)
    names = [*ways][first:] + [*ways][:first]
    return Comparison(prompt=prompt, **{name: ways[name]() for name in names})


def warm_up(
    model: PreTrainedModel,
    head: DraftHead,
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    sampling: Sampling,
) -> None:
    """Run a few tokens all ways, so that no timed run pays for what only happens once."""
    few = replace(sampling, max_new_tokens=min(sampling.max_new_tokens, WARM_UP_TOKENS))
    compare(model, head, tokenizer, prompt, few)


def check_prompts(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], sampling: Sampling
) -> None:
    """Refuse prompts that cannot be encoded, or that this model cannot continue so far.

    Raises:
        InputError: names the prompt, its token without an embedding, or the positions that there are.
    """
    for prompt in prompts:
        length = len(prompt.encode(tokenizer, model=model))
        refuse_length(model, shortest=length, longest=length + sampling.max_new_tokens)


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
        InputError: as of `check_prompts`, before anything runs.
    """
    check_prompts(model, tokenizer, prompts, sampling)
    warm_up(model, head, tokenizer, prompts[0], sampling)
    results = []
    for index, prompt in enumerate(prompts):
        seeded = replace(sampling, torch_seed=sampling.torch_seed + index)
        result = compare(model, head, tokenizer, prompt, seeded, turn=index)
        results.append(result)
        if on_result is not None:
            on_result(result)
    return results
