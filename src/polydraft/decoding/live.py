"""Texts that come and go, decoded together: what a server needs of the decoding loop."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import (
    EosTokenCriteria,
    LogitsProcessorList,
    MaxLengthCriteria,
    PreTrainedModel,
    StoppingCriteriaList,
)
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from polydraft.decoding.engine import Engine
from polydraft.decoding.grammar import check_grammars
from polydraft.decoding.loop import Loop
from polydraft.decoding.noise import GumbelNoise
from polydraft.decoding.penalties import OccurrencePenalty
from polydraft.decoding.plan import Plan
from polydraft.decoding.processing import of_row
from polydraft.decoding.reading import Readings
from polydraft.decoding.refusals import longest_text, refuse_batch, refuse_generate, refuse_model
from polydraft.decoding.row import Row
from polydraft.decoding.stateless import describe, keeping_state
from polydraft.decoding.trace import Tracer
from polydraft.errors import InputError, PolydraftError
from polydraft.heads import DraftHead
from polydraft.modes import VERIFICATION


class LiveRow(Row):
    """A text of a `LiveBatch`; made by `new_row`."""

    def __init__(
        self,
        prompt: Sequence[int],
        criteria: StoppingCriteriaList,
        *,
        device: torch.device,
        processors: LogitsProcessorList,
        drafted: bool,
        tracer: Tracer | None,
    ) -> None:
        ids = torch.tensor([list(prompt)], dtype=torch.long, device=device)
        super().__init__(ids, criteria, processors=processors, drafted=drafted, tracer=tracer)

    @property
    def ended(self) -> bool:
        """Whether its last token ends a text, so that it has not just been cut."""
        return bool(self.origins) and int(self.ids[0, -1]) in self.end_tokens


def new_row(
    prompt: Sequence[int],
    *,
    device: torch.device,
    max_new_tokens: int,
    end_tokens: Collection[int] = (),
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    frequency_penalty: float = 0.0,
    presence_penalty: float = 0.0,
    logit_bias: Mapping[int, float] | None = None,
    logits_processor: Sequence[Any] = (),
    seed: int = 0,
    choice: int = 0,
    drafted: bool = True,
    trace: int | None = None,
    trace_prompt: bool = False,
) -> LiveRow:
    """A text to be written after `prompt`; the tokens of a sampled one follow from these arguments alone.

    Args:
        prompt: token ids, at least one. device: of the model.
        max_new_tokens: 1 or more; with `trace_prompt` also 0. end_tokens: after any of these the text ends.
        temperature: 0 takes the likeliest token; else `GumbelNoise` of `seed`, prompt and `choice` decides.
        top_p, top_k, min_p, repetition_penalty, logit_bias: as transformers' processors; 1, 0, 0, 1 for none.
        frequency_penalty, presence_penalty: see `OccurrencePenalty`.
        logits_processor: further processors, of this text alone, called after penalties and before
            `temperature`; see `polydraft.decoding.stateless`.
        drafted: False decodes this text plainly.
        trace: keep a `TokenTrace` of every token, with this many of the likeliest; None keeps none.
        trace_prompt: keep one of the prompt's tokens too; needs `trace`.

    Raises:
        InputError: no prompt, `trace_prompt` without `trace`, or a number out of its range.
    """
    if not prompt:
        raise InputError("the prompt has no tokens: give at least one")
    if trace_prompt and trace is None:
        raise InputError("trace_prompt says how many of the likeliest tokens to keep by trace: give it too")
    if max_new_tokens < (0 if trace_prompt else 1):
        raise InputError(f"max_new_tokens must be 1 or more, got {max_new_tokens}")
    if not temperature >= 0:
        raise InputError(f"temperature must be 0 (greedy) or more, got {temperature}")
    processors = LogitsProcessorList()
    if logit_bias:
        processors.append(
            SequenceBiasLogitsProcessor([[[token], bias] for token, bias in logit_bias.items()])
        )
    if repetition_penalty != 1:
        processors.append(RepetitionPenaltyLogitsProcessor(repetition_penalty))
    if frequency_penalty or presence_penalty:
        processors.append(OccurrencePenalty(frequency_penalty, presence_penalty, after=len(prompt)))
    check_grammars(logits_processor, rows=1)
    processors += of_row(LogitsProcessorList(logits_processor), 0, prompt_length=len(prompt))
    if temperature:
        processors += _sampling(temperature, top_p=top_p, top_k=top_k, min_p=min_p)
        processors.append(GumbelNoise(seed, prompt=prompt, choice=choice))
    criteria = StoppingCriteriaList([MaxLengthCriteria(len(prompt) + max_new_tokens)])
    if end_tokens:
        criteria.append(EosTokenCriteria(sorted(end_tokens)))
    return LiveRow(
        prompt,
        criteria,
        device=device,
        processors=processors,
        drafted=drafted,
        tracer=None if trace is None else Tracer(trace, prompt=trace_prompt),
    )


def _sampling(temperature: float, *, top_p: float, top_k: int, min_p: float) -> LogitsProcessorList:
    """What shapes the row that is drawn from, in the order of transformers."""
    out = LogitsProcessorList()
    if temperature != 1:
        out.append(TemperatureLogitsWarper(temperature))
    if top_k:
        out.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        out.append(TopPLogitsWarper(top_p))
    if min_p:
        out.append(MinPLogitsWarper(min_p))
    return out


class LiveBatch:
    """Decodes texts together that join and leave between cycles; each is what it would be alone.

    Belongs to one thread. An error of one text, out of its processors, ends that text alone: when all others
    have grown, `admit` or `step` raises it, the text has left, `failed`, and the batch goes on. Any other
    error ends the batch: it is `dead`, and lets go of its texts, which another batch can go on with as they
    are.

    Args:
        head: attached to `model`, or attachable. rows: how many texts at once.
        plan: how to draft; its costs are measured here, and the model compiled, where they are not yet.
        prefill_chunk_size: tokens of prompts read between two cycles of the texts at work; None reads every
            prompt when it is admitted.

    Attributes:
        dead: nothing more can be admitted.

    Raises:
        InputError: a model, head or plan that this does not take; says why.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        head: DraftHead,
        *,
        rows: int,
        plan: Plan | None = None,
        prefill_chunk_size: int | None = None,
    ) -> None:
        plan = Plan() if plan is None else plan
        if rows < 1:
            raise InputError(f"a batch needs at least one row, got {rows}")
        if prefill_chunk_size is not None and prefill_chunk_size < 1:
            raise InputError(f"prefill_chunk_size must be 1 or more, got {prefill_chunk_size}")
        if plan.verification != VERIFICATION:
            raise InputError("a live batch couples its draws: leave verification out")
        refuse_model(model)
        refuse_generate(model)
        if not head.is_attached_to(model):
            head.attach(model)
        if head.switch is not None:
            raise InputError("verifier 'base' follows one generation at a time: serve the trained model")
        drafting = plan.drafts(model, do_sample=False)
        if rows > 1 or drafting == "tree":
            refuse_batch(model)
        policy, copying = plan.policies(model, head, drafting, rows=rows)
        self._engine = Engine(
            head,
            processors=LogitsProcessorList(),
            do_sample=False,
            generator=None,
            drafting=drafting,
            policy=policy,
            copying=copying,
        )
        self.dead = False
        self.rows = rows
        self.longest = longest_text(model)
        opened, taps = plan.opener(model, head, rows=rows), head.config.taps
        self._readings = Readings(
            self._engine,
            open_trunk=lambda rows: opened(taps=taps, rows=rows, longest=self.longest),
            chunk=prefill_chunk_size,
        )
        self._reads_at_once = prefill_chunk_size is None
        self._loop: Loop | None = None

    @property
    def active(self) -> list[Row]:
        """The texts at work, and those whose prompts are not read yet."""
        return [*([] if self._loop is None else self._loop.active), *self._readings.rows]

    @property
    def free(self) -> int:
        """How many more fit."""
        return self.rows - len(self.active)

    @torch.no_grad()
    def admit(self, rows: Sequence[LiveRow]) -> list[LiveRow]:
        """Read the prompts and write the first token of each; returns those that have ended with it.

        If reading them fails, none is admitted, and those at work go on. With `prefill_chunk_size` nothing
        is read yet.

        Raises:
            InputError: more than are free, a text could outgrow the model, or a processor that may keep a
                state belongs to another text too; none is admitted.
            PolydraftError: the batch is dead.
            Exception: what a processor raised; all but that text are admitted.
        """
        self._check_alive()
        if len(rows) > self.free:
            raise InputError(
                f"{len(rows)} texts for {self.free} free rows: admit them when others have ended"
            )
        for row in rows:
            self._check(row)
        self._check_owners(rows)
        self._readings.add(rows)
        ended: list[Any] = []
        while self._reads_at_once and self._readings.rows:
            ended += self.read()
        return ended

    def step(self) -> list[Any]:
        """`read` and `cycle`; returns the texts that have ended and left."""
        return [*self.read(), *self.cycle()]

    @torch.no_grad()
    def cycle(self) -> list[Row]:
        """Every text that has begun grows by 1 to n + 1 tokens; returns those that have ended and left.

        Raises:
            PolydraftError: the batch is dead.
            Exception: what a processor or the model raised; see above.
        """
        self._check_alive()
        loop = self._loop
        if loop is None:
            return []
        with self._or_dead(), loop.trunk:
            ended = loop.cycle()
        self._forget()
        loop.raise_failure()
        return ended

    @torch.no_grad()
    def read(self) -> list[Any]:
        """A chunk of the prompts that wait; returns the texts that have ended with their first token.

        Raises:
            PolydraftError: the batch is dead.
            Exception: what a processor or the model raised; a prompt that cannot be read leaves alone.
        """
        self._check_alive()
        reading = self._readings.read()
        if reading is None:
            return []
        if reading.loop is None:
            return [row for row in reading.rows if row.finished]
        with self._or_dead():
            if self._loop is None:
                self._loop = reading.loop
            elif reading.loop.active:
                self._loop.join(reading.loop)
        self._forget()
        reading.loop.raise_failure()
        return [row for row in reading.rows if row.finished]

    def drop(self, row: Row) -> None:
        """Take a text out of the work; nothing happens to one that has left it."""
        self._readings.drop(row)
        if self._loop is not None:
            with self._or_dead():
                self._loop.drop(row)
            self._forget()

    @contextmanager
    def _or_dead(self) -> Iterator[None]:
        """An error in here leaves the states of some texts changed and of others not: none is kept."""
        try:
            yield
        except BaseException:
            self.dead, self._loop = True, None
            self._readings.clear()
            raise

    def _check_alive(self) -> None:
        if self.dead:
            raise PolydraftError(
                "this batch has failed in an earlier step and holds no text any more: admit them to a new one"
            )

    def _check_owners(self, rows: Sequence[LiveRow]) -> None:
        """A processor that may keep a state belongs to one text."""
        owned: set[int] = set()
        for row in [*self.active, *rows]:
            for processor in keeping_state(row.processors or ()):
                if id(processor) in owned:
                    raise InputError(
                        f"{describe(processor)} may keep a state of its own, which two texts would mix up: "
                        "make one for each, or set its attribute stateless = True if it keeps none"
                    )
                owned.add(id(processor))

    def _forget(self) -> None:
        """Let go of the states when nobody is left."""
        if self._loop is not None and not self._loop.active:
            self._loop = None

    def _check(self, row: LiveRow) -> None:
        wanted = row.ids.shape[1] + (row.room or 0)
        if self.longest is not None and wanted > self.longest:
            raise InputError(
                f"{row.prompt_length} tokens and {row.room} new ones are more than the {self.longest} of the "
                "model: shorten the prompt, or ask for fewer"
            )
