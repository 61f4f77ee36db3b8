"""Which documents are seen when."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices

from polydraft.training.data import Document, collate


class DocumentDataset(Dataset[dict[str, Any]]):
    """Documents as the Trainer wants them: dicts with `input_ids`.

    Attributes:
        lengths: of the documents, in tokens. collate: makes a batch of them.
    """

    collate = staticmethod(collate)

    def __init__(self, documents: Sequence[Document]) -> None:
        self.rows = [vars(d) for d in documents]
        self.lengths = [len(d.input_ids) for d in documents]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index]

    def order(self, *, batch_size: int, seed: int, epoch: Callable[[], int]) -> Sampler[int]:
        """Which document is seen when; arguments as of `EpochOrder`."""
        return EpochOrder(self.lengths, batch_size=batch_size, seed=seed, epoch=epoch)


class EpochOrder(Sampler[int]):
    """Documents of like length together, in an order that the seed and the epoch fix.

    The Trainer's own sampler draws from torch's global generator, whose state at the start of an epoch
    a resumed run cannot know. The last step of an epoch is filled up from its beginning, so that every
    step has `batch_size` documents, however many processes share them: consecutive micro-batches go to
    the processes in turn.

    Args:
        lengths: of the documents, in tokens. batch_size: documents per optimiser step, of all processes.
        epoch: tells the current epoch, from 0.
    """

    def __init__(
        self, lengths: Sequence[int], *, batch_size: int, seed: int, epoch: Callable[[], int]
    ) -> None:
        self.lengths = list(lengths)
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-len(self.lengths) // self.batch_size) * self.batch_size

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch())
        order = get_length_grouped_indices(self.lengths, self.batch_size, generator=generator)
        for i in range(len(self)):
            yield order[i % len(order)]


def micro_batch_seed(*key: int) -> int:
    """A seed for one micro-batch from (seed, step, number within the step, rank), all 0 or more."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])
