"""Text that the base model writes while its head is trained: a round, learnt from, then the next; no disk.

A round is one batch of prompts, continued by `collect.write_batch`. What it holds depends on the seed and
on its number alone, so a run that was killed writes again only the round it was in, and the held-out set.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.data import Sampler, SequentialSampler
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.trainer_pt_utils import get_length_grouped_indices

from polydraft.errors import InputError
from polydraft.heads import DraftHead
from polydraft.limits import embedding_rows
from polydraft.ranks import world_size
from polydraft.training.collect import check_room, cut, distinct, pad_token, write_batch
from polydraft.training.data import Document, split, windows
from polydraft.training.online import Online
from polydraft.training.options import TrainOptions
from polydraft.training.order import DocumentDataset, micro_batch_seed
from polydraft.training.validation import choose

ROUND, PASS, ORDER, HELD_OUT = range(4)
"""What a seed is for."""


class Writer:
    """Rounds of text by the base model, and a held-out set from prompts of its own.

    Args:
        model: the base model. options: `max_length` leaves a prompt what `max_new_tokens` does not take;
            `held_out` is the share of the prompts held out, `validation_windows` of them at most.

    Raises:
        InputError: too few prompts, or too long a text.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        online: Online,
        options: TrainOptions,
    ) -> None:
        room = options.max_length - online.max_new_tokens
        if room < 1:
            raise InputError(
                f"max_new_tokens {online.max_new_tokens} leave no room for a prompt in --max-length "
                f"{options.max_length}"
            )
        self.model, self.online, self.options = model, online, options
        self.pad = pad_token(tokenizer)
        rows = distinct(online.prompts, tokenizer, most=room, rows=embedding_rows(model))
        check_room(model, max(len(ids) for ids, _ in rows) + online.max_new_tokens)
        self.rows, held_out = split(
            [Document(ids) for ids, _ in rows], held_out=options.held_out, seed=options.seed
        )
        self.reserved = held_out[: options.validation_windows]
        self.size = min(online.round_size, len(self.rows))
        self._last: tuple[int, list[Document]] | None = None

    @property
    def documents(self) -> list[Document]:
        """All prompts, to tell one run from another."""
        return [*self.rows, *self.reserved]

    def held_out(self) -> list[Document]:
        """The held-out prompts, continued at every temperature."""
        found = []
        for number, temperature in enumerate(sorted(set(self.online.temperatures))):
            for start in range(0, len(self.reserved), self.online.round_size):
                part = self.reserved[start : start + self.online.round_size]
                found += self._write(part, temperature, HELD_OUT, number, start)
        if not found:
            raise InputError("the model ends every held-out text at once: give prompts that it goes on from")
        most, seed = self.options.validation_windows, self.options.seed
        return choose(found, max_length=self.options.max_length, most=most, seed=seed)

    def vocabulary(self, checkpoint: str | None) -> list[Document]:
        """Text whose frequent tokens can be drafted: the prompts and the first round.

        Args:
            checkpoint: of this run; its draft vocabulary is then the text, and nothing is written.
        """
        if checkpoint is not None:
            return [Document(DraftHead.from_pretrained(checkpoint).draft_ids.tolist())]
        return [*self.rows, *self.round(0)]

    def describe(self, held_out: Sequence[Document]) -> str:
        """One line about the data."""
        return (
            f"{len(self.rows):,} prompts to write from, {self.size:,} at a time; "
            f"{len(held_out):,} texts held out"
        )

    def round(self, number: int) -> list[Document]:
        """The documents of a round; those of the last one asked for are kept.

        Every pass over the prompts cuts them into new rounds; those that do not fill a round are left out.

        Raises:
            InputError: the model wrote nothing to learn from.
        """
        if self._last is None or self._last[0] != number:
            passes, index = divmod(number, len(self.rows) // self.size)
            order = random.Random(micro_batch_seed(self.options.seed, PASS, passes))
            chosen = order.sample(self.rows, len(self.rows) // self.size * self.size)
            batch = cut(chosen, self.size, order, length=lambda d: len(d.input_ids))[index]
            every = self.online.temperatures
            temperatures = [every[(number + place) % len(every)] for place in range(len(batch))]
            found = self._write(batch, temperatures, ROUND, number)
            if not found:
                raise InputError(f"round {number}: the model ended all texts at once: give other prompts")
            self._last = number, found
        return self._last[1]

    def _write(
        self, batch: Sequence[Document], temperature: float | Sequence[float], *key: int
    ) -> list[Document]:
        """The batch, continued; random draws are those of `key` and leave no trace."""
        device = self.model.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(micro_batch_seed(self.options.seed, *key))
            texts = write_batch(
                self.model,
                [(d.input_ids, {}) for d in batch],
                temperature=temperature,
                max_new_tokens=self.online.max_new_tokens,
                pad_token_id=self.pad,
            )
        found = [Document(t["input_ids"], t["prompt_length"], t["temperature"]) for t in texts]
        return windows(found, max_length=self.options.max_length)


class OnlineDataset(DocumentDataset):
    """All documents of a run in the order they are seen, written when first asked for.

    Micro-batches go to the processes in turn; each process writes rounds of its own. Where a model ended
    texts at once, the others of the round are seen again in their place.

    Args:
        writer: writes rounds. options: their steps and batch sizes say how many documents the run sees.
    """

    def __init__(self, writer: Writer, options: TrainOptions) -> None:
        self.writer, self.options = writer, options
        self.total = options.steps * options.accumulate * options.batch_size * world_size()
        self._order: tuple[tuple[int, int], list[int]] | None = None

    def __len__(self) -> int:
        return self.total

    def order(self, *, batch_size: int, seed: int, epoch: Callable[[], int]) -> Sampler[int]:
        """One after the other; the documents are shuffled within their round."""
        return SequentialSampler(self)

    def __getitem__(self, index: int) -> dict[str, Any]:
        micro_batch, place = divmod(index, self.options.batch_size)
        turn, process = divmod(micro_batch, world_size())
        size, epochs = self.writer.size, self.writer.online.epochs
        again, slot = divmod(turn * self.options.batch_size + place, size)
        number = again // epochs * world_size() + process
        documents = self.writer.round(number)
        key = number, again % epochs
        if self._order is None or self._order[0] != key:
            generator = torch.Generator().manual_seed(micro_batch_seed(self.options.seed, ORDER, *key))
            lengths = [len(d.input_ids) for d in documents]
            indices = get_length_grouped_indices(lengths, self.options.batch_size, generator=generator)
            self._order = key, indices
        order = self._order[1]
        return vars(documents[order[slot % len(order)]])
