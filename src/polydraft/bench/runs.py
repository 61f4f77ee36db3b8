"""One generation, plain or drafted, timed; the unit that every comparison is built from."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

import polydraft
from polydraft.decoding.measuring import works_alone
from polydraft.decoding.noise import check_seed
from polydraft.decoding.statistics import DecodingStatistics
from polydraft.errors import InputError
from polydraft.heads import DraftHead
from polydraft.modes import DRAFTING, VERIFICATION, check_modes


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How to continue a prompt; the same for plain and drafted runs, but for what only the latter have.

    Attributes:
        max_new_tokens: tokens at most; an end token stops earlier.
        temperature: 0 is greedy. top_k: 0 keeps all. top_p: 1 keeps all. min_p: None keeps all.
        repetition_penalty: 1 is none.
        stop: texts that end the generation.
        seed: couples the draws of a sampled drafted run, as of `polydraft.generate`; None draws drafts and
            verifies them by rejection.
        torch_seed: of torch's generators, set before every run; without `seed` all draws come from them.
        verification, drafting, draft_length, prompt_lookup_num_tokens, compiled: of drafted runs; as in
            `polydraft.decoder`.

    Raises:
        InputError: a value outside its range, or a choice that does not exist; names it.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float | None = None
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None
    torch_seed: int = 0
    verification: str = VERIFICATION
    drafting: str = DRAFTING
    draft_length: int | None = None
    prompt_lookup_num_tokens: int | None = None
    compiled: bool = False

    def __post_init__(self) -> None:
        ranges = (
            ("max_new_tokens", self.max_new_tokens >= 1, "at least 1", self.max_new_tokens),
            ("temperature", self.temperature >= 0, "0 (greedy) or more", self.temperature),
            ("top_k", self.top_k >= 0, "0 (off) or more", self.top_k),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1", self.top_p),
            ("min_p", self.min_p is None or 0 <= self.min_p <= 1, "between 0 and 1", self.min_p),
            ("repetition_penalty", self.repetition_penalty > 0, "above 0", self.repetition_penalty),
            ("stop", all(self.stop), "a text that is not empty", ""),
        )
        for name, fits, expected, value in ranges:
            if not fits:
                raise InputError(f"{name} must be {expected}, got {value!r}")
        chosen = {name: value for name, value in self.modes.items() if name != "compiled"}
        check_modes(**chosen, do_sample=not self.greedy)
        if self.seed is not None:
            check_seed(self.seed, verification=None if self.greedy else self.verification)

    @property
    def modes(self) -> dict[str, Any]:
        """How to draft: keyword arguments of `polydraft.generate` and `polydraft.decoder`."""
        names = ("verification", "drafting", "draft_length", "prompt_lookup_num_tokens", "compiled")
        return {name: getattr(self, name) for name in names}

    @property
    def greedy(self) -> bool:
        """Whether the text is determined by the prompt alone."""
        return self.temperature == 0

    def arguments(self, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
        """Keyword arguments of `model.generate` and `polydraft.generate`."""
        out: dict[str, Any] = {
            "max_new_tokens": self.max_new_tokens,
            "do_sample": not self.greedy,
            "repetition_penalty": self.repetition_penalty,
        }
        if not self.greedy:
            out |= {
                "temperature": self.temperature,
                "top_k": self.top_k,
                "top_p": self.top_p,
                "min_p": self.min_p,
            }
        if self.stop:
            out |= {"stop_strings": list(self.stop), "tokenizer": tokenizer}
        return out


@dataclass(frozen=True, kw_only=True)
class Run:
    """What one generation gave.

    Attributes:
        tokens: the new ones. seconds: wall clock from the prompt's ids to the last token.
        cpu_seconds: CPU time of the thread that decoded; None where others, or a GPU, took part in the work.
        origins: as in `DraftedOutput`, one per token; None for a run without drafts.
        statistics: None for a run without drafts.
    """

    tokens: list[int]
    seconds: float
    cpu_seconds: float | None = None
    origins: list[int] | None = None
    statistics: DecodingStatistics | None = None

    @property
    def tokens_per_second(self) -> float:
        """Generated tokens over wall clock, the prompt's forward included."""
        return len(self.tokens) / self.seconds

    def over(self, other: Run) -> float:
        """Tokens per second of this run, divided by those of the other."""
        return self.tokens_per_second / other.tokens_per_second

    def cpu_over(self, other: Run) -> float | None:
        """Return the ratio of `over` by CPU time, which other work disturbs less; None if that is unknown."""
        if self.cpu_seconds is None or other.cpu_seconds is None:
            return None
        return len(self.tokens) / self.cpu_seconds * other.cpu_seconds / len(other.tokens)


def run_plain(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], sampling: Sampling
) -> Run:
    """Continue `ids` by `model.generate`, eagerly."""
    inputs = _inputs(ids, model)
    began = clock(model, seed=sampling.torch_seed)
    out: Tensor = cast(Any, model).generate(**inputs, **sampling.arguments(tokenizer))
    seconds, cpu_seconds = began.until(clock(model))
    return Run(tokens=out[0, len(ids) :].tolist(), seconds=seconds, cpu_seconds=cpu_seconds)


def run_undrafted(
    model: PreTrainedModel,
    head: DraftHead,
    tokenizer: PreTrainedTokenizerBase,
    ids: Sequence[int],
    sampling: Sampling,
) -> Run:
    """Continue `ids` without drafts in the way of `run_drafted`: what that is to be compared with.

    Compiled, that is the same compiled layers without a draft; eager, `model.generate`.
    """
    if not sampling.compiled:
        return run_plain(model, tokenizer, ids, sampling)
    without = replace(sampling, draft_length=0, prompt_lookup_num_tokens=None)
    return replace(run_drafted(model, head, tokenizer, ids, without), origins=None, statistics=None)


def run_drafted(
    model: PreTrainedModel,
    head: DraftHead,
    tokenizer: PreTrainedTokenizerBase,
    ids: Sequence[int],
    sampling: Sampling,
    *,
    streamer: BaseStreamer | None = None,
) -> Run:
    """Continue `ids` by `polydraft.generate`; `streamer` receives tokens as they are accepted."""
    inputs = _inputs(ids, model)
    began = clock(model, seed=sampling.torch_seed)
    arguments = inputs | sampling.arguments(tokenizer)
    out = polydraft.generate(
        model,
        head,
        streamer=streamer,
        seed=None if sampling.greedy else sampling.seed,
        **sampling.modes,
        **arguments,
    )
    seconds, cpu_seconds = began.until(clock(model))
    assert out.sequences is not None
    assert out.origins is not None
    return Run(
        tokens=out.sequences[0, len(ids) :].tolist(),
        seconds=seconds,
        cpu_seconds=cpu_seconds,
        origins=out.origins[0].tolist(),
        statistics=out.statistics,
    )


def pieces(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> list[str]:
    """The text of each token, so that they join to the whole; special tokens are empty.

    A token that ends inside a character is empty and the text comes with the one that completes it.
    """
    out: list[str] = []
    shown = 0
    for end in range(1, len(tokens) + 1):
        text = tokenizer.decode(list(tokens[:end]), skip_special_tokens=True)
        assert isinstance(text, str)
        if text.endswith("\ufffd") and end < len(tokens):
            out.append("")
        else:
            out.append(text[shown:])
            shown = len(text)
    return out


def _inputs(ids: Sequence[int], model: PreTrainedModel) -> dict[str, Any]:
    """Input ids and mask, (1, prompt) each, on the model's device."""
    row = torch.tensor([list(ids)], device=model.device)
    return {"input_ids": row, "attention_mask": torch.ones_like(row)}


class Moment(NamedTuple):
    """A reading of the clocks, in seconds; `cpu` is None where this thread does not do all of the work."""

    wall: float
    cpu: float | None

    def until(self, later: Moment) -> tuple[float, float | None]:
        """Seconds of wall clock and of CPU time between the two."""
        cpu = None if self.cpu is None or later.cpu is None else later.cpu - self.cpu
        return later.wall - self.wall, cpu


def clock(model: PreTrainedModel, *, seed: int | None = None) -> Moment:
    """The moment at which all queued work is done; sets torch's seeds first when given one."""
    if seed is not None:
        torch.manual_seed(seed)
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return Moment(time.perf_counter(), time.thread_time() if works_alone(model.device) else None)
