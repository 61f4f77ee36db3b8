"""A tiny model and its head as look-up tables, so that the decoding loop runs hundreds of thousands of times.

Every row and hidden state comes from one forward of the real model over all continuations of a prompt,
every joint from the real head; nothing of the decoding loop is replaced.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import LogitsProcessorList, MaxLengthCriteria, PreTrainedModel, StoppingCriteriaList

from polydraft.decoding.drafts import Draft, Kept
from polydraft.decoding.engine import Engine
from polydraft.decoding.loop import run
from polydraft.decoding.row import Row
from polydraft.decoding.trunk import Trunk
from polydraft.heads import DraftHead
from polydraft.hidden import HiddenTap
from polydraft.joint import Chain, JointDistribution, Warp

Array = NDArray[np.float64]
LENGTH = 4
"""Generated tokens whose joint distribution is tested."""
POOL = 512


class Enough(MaxLengthCriteria):
    """Stops after `LENGTH` tokens, but leaves room for one more, so that the first cycle drafts three."""

    def __init__(self, prompt: Tensor) -> None:
        self.enough = prompt.shape[1] + LENGTH
        super().__init__(max_length=self.enough + 1)

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        return torch.tensor([input_ids.shape[1] >= self.enough])


class TableModel:
    """Calls like the base model, for one prompt and up to `LENGTH` tokens after it.

    Its "hidden state" after a continuation is the number of that continuation, (1, k, 1), which
    `TableHead` turns back into the real one.
    """

    def __init__(self, model: PreTrainedModel, prompt: Tensor) -> None:
        self.prompt = prompt
        self.vocab_size = model.config.vocab_size
        every = torch.tensor(list(itertools.product(range(self.vocab_size), repeat=LENGTH)))
        inputs = torch.cat([prompt.expand(len(every), -1), every], dim=-1)
        with torch.no_grad(), HiddenTap(model) as tap:
            logits, hidden = cast(Any, model)(input_ids=inputs).logits, tap.hidden
        self.logits: dict[tuple[int, ...], Tensor] = {}
        self.hidden: list[Tensor] = []
        self.number: dict[tuple[int, ...], int] = {}
        for length in range(LENGTH + 1):
            for row in range(0, len(every), self.vocab_size ** (LENGTH - length)):
                tokens = tuple(every[row, :length].tolist())
                self.logits[tokens] = logits[row, prompt.shape[1] + length - 1]
                self.number[tokens] = len(self.hidden)
                self.hidden.append(hidden[row, prompt.shape[1] + length - 1])
        self.tokens = list(self.number)
        self.prompt_hidden = hidden[0, : prompt.shape[1] - 1]
        self._blocks: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}

    def context(self, number: int, next_token: int) -> tuple[Tensor, Tensor]:
        """All real states up to a hidden state, and the token after each; (1, T, d) and (1, T)."""
        told = self.tokens[number]
        states = [*self.prompt_hidden, *(self.hidden[self.number[told[:k]]] for k in range(len(told) + 1))]
        after = [*self.prompt[0, 1:].tolist(), *told, next_token]
        return torch.stack(states)[None], torch.tensor([after])

    def behind(self, read: tuple[int, ...], kept: int) -> tuple[Tensor, Tensor]:
        """Logits (kept, V) and states (kept, 1) of the last `kept` tokens of prompt and `read`."""
        key = (kept, *read)
        if key not in self._blocks:
            ends = [read[: len(read) - kept + 1 + k] for k in range(kept)]
            numbers = torch.tensor([[self.number[end]] for end in ends])
            self._blocks[key] = (torch.stack([self.logits[end] for end in ends]), numbers)
        return self._blocks[key]


class TableTrunk(Trunk):
    """`Trunk` out of a table; as for the real one, what is not kept is forgotten."""

    def __init__(self, table: TableModel) -> None:
        self._table = table
        self._told: list[tuple[int, ...]] = []
        self._new: list[tuple[int, ...]] = []

    def __exit__(self, *error: Any) -> None:
        pass

    def prefill(self, prompts: Sequence[Tensor]) -> Tensor:
        assert all(torch.equal(prompt, self._table.prompt[0]) for prompt in prompts)
        self._told = [() for _ in prompts]
        self.hidden = torch.tensor([[[self._table.number[()]]]]).expand(len(prompts), -1, -1)
        return torch.stack([self._table.logits[()] for _ in prompts])

    def forward(self, tokens: Tensor, *, parents: Sequence[Sequence[int]] | None = None) -> Tensor:
        assert parents is None
        self._new = [tuple(row) for row in tokens.tolist()]
        found = [
            self._table.behind(told + new, len(new)) for told, new in zip(self._told, self._new, strict=True)
        ]
        self.hidden = torch.stack([numbers for _, numbers in found])
        return torch.stack([logits for logits, _ in found])

    def keep(self, paths: Sequence[Sequence[int]]) -> None:
        rows = zip(self._told, self._new, paths, strict=True)
        self._told = [told + tuple(new[node] for node in path) for told, new, path in rows]

    def select(self, rows: Sequence[int]) -> None:
        self._told = [self._told[row] for row in rows]

    def end(self) -> None:
        pass


class PooledJoint(JointDistribution):
    """A joint of batch 1 that samples `POOL` independent chains at once and hands them out one by one.

    Args:
        joint: of batch 1. many: the same, `POOL` times.
    """

    def __init__(self, joint: JointDistribution, many: JointDistribution) -> None:
        self.horizon, self.vocab_size, self.batch_size = joint.horizon, joint.vocab_size, 1
        self.device = joint.device
        self._joint = joint
        self._many = many
        self._chains: list[Chain] = []

    def start(self) -> Any:
        return self._joint.start()

    def row(self, state: Any, position: int) -> Tensor:
        return self._joint.row(state, position)

    def advance(self, state: Any, position: int, tokens: Tensor) -> Any:
        return self._joint.advance(state, position, tokens)

    def select(self, rows: Tensor) -> JointDistribution:
        return self._joint.select(rows)

    def sample(
        self,
        *,
        generator: torch.Generator | None = None,
        warp: Warp | None = None,
        length: int | None = None,
    ) -> Chain:
        if not self._chains:
            whole = None if warp is None else one_by_one(warp)
            tokens, rows, lengths = self._many.sample(generator=generator, warp=whole)
            assert rows is not None
            assert lengths is None or bool((lengths == tokens.shape[1]).all())  # the warp leaves draft tokens
            self._chains = [Chain(tokens[b : b + 1], rows[b : b + 1]) for b in range(POOL)]
        chain = self._chains.pop()
        return Chain(chain.tokens[:, :length], cast(Tensor, chain.log_rows)[:, :length])


def one_by_one(warp: Warp) -> Warp:
    """`warp`, which takes a batch of one, for many chains of one joint: once for all with the same tokens."""

    def each(tokens: Tensor, rows: Tensor) -> Tensor:
        seen: dict[tuple[int, ...], Tensor] = {}
        chains = [tuple(chain) for chain in tokens.tolist()]
        for b, chain in enumerate(chains):
            if chain not in seen:
                seen[chain] = warp(tokens[b : b + 1], rows[b : b + 1])[0]
        return torch.stack([seen[chain] for chain in chains])

    return each


class RememberedProcessors(LogitsProcessorList):
    """The same processors, run once for every different (prefix, row); they keep no state."""

    def __init__(self, processors: LogitsProcessorList) -> None:
        super().__init__(processors)
        self._seen: dict[tuple[bytes, bytes], Tensor] = {}

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # type: ignore[override]
        key = (input_ids.numpy().tobytes(), scores.numpy().tobytes())
        if key not in self._seen:
            self._seen[key] = super().__call__(cast(Any, input_ids), cast(Any, scores.clone()))
        return self._seen[key]


class TableHead:
    """The real head, asked once for every (hidden state, next token).

    Args:
        pooled: sample chains in batches, for speed.
    """

    def __init__(self, head: DraftHead, table: TableModel, *, pooled: bool = True) -> None:
        self._pooled = pooled
        self.config = head.config
        self.draft_ids = head.draft_ids
        self.switch = None
        self._head = head
        self._table = table
        self._joints: dict[tuple[int, int], JointDistribution] = {}

    def __call__(self, hidden: Tensor, next_tokens: Tensor) -> JointDistribution:
        key = (int(hidden.flatten()[-1]), int(next_tokens.flatten()[-1]))
        if key not in self._joints:
            states, after = self._table.context(*key)
            with torch.no_grad():
                joint = self._head(states, after)
                if self._pooled:
                    joint = PooledJoint(joint, self._head(states.repeat(POOL, 1, 1), after.repeat(POOL, 1)))
            self._joints[key] = joint
        return self._joints[key]

    def reader(self, *, rows: int = 1) -> TableReader:
        """What follows a text: every state knows its own past, so it remembers the last one alone."""
        assert rows == 1
        return TableReader(self)


class TableReader:
    """`ContextReader` of one row."""

    def __init__(self, head: TableHead) -> None:
        self._head = head

    def tell(self, hidden: Sequence[Tensor], next_tokens: Sequence[Tensor]) -> None:
        self._last = hidden[0][-1], next_tokens[0][-1]

    def joint(self) -> JointDistribution:
        return self._head(*self._last)


def prepared_processors(model: PreTrainedModel, prompt: Tensor, **options: Any) -> LogitsProcessorList:
    """The processors that `model.generate(prompt, do_sample=True, **options)` hands to a decoding method."""
    seen: list[LogitsProcessorList] = []

    def keep(model: Any, input_ids: Tensor, logits_processor: LogitsProcessorList, **rest: Any) -> Tensor:
        seen.append(logits_processor)
        return input_ids

    cast(Any, model).generate(prompt, do_sample=True, max_new_tokens=1, custom_generate=keep, **options)
    return RememberedProcessors(seen[0])


def enumerated(table: TableModel, processors: LogitsProcessorList) -> Array:
    """Plain sampling's exact probability of every continuation of `LENGTH` tokens; (V^LENGTH,), float64."""
    whole = np.ones(1)
    for length in range(LENGTH):
        rows = []
        for tokens in itertools.product(range(table.vocab_size), repeat=length):
            ids = torch.cat([table.prompt, torch.tensor([tokens], dtype=torch.long)], dim=-1)
            scores = processors(cast(Any, ids), cast(Any, table.logits[tokens][None].clone()))
            rows.append(scores[0].double().softmax(-1).numpy())
        whole = (whole[:, None] * np.stack(rows)).ravel()
    return whole


class WatchedEngine(Engine):
    """The engine, counting its verifications.

    Attributes:
        seen: (drafts given, drafts accepted) -> steps.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.seen: Counter[tuple[int, int]] = Counter()

    def verify(self, row: Row, draft: Draft, logits: Tensor, *rest: Any) -> Kept:
        kept = super().verify(row, draft, logits, *rest)
        self.seen[len(draft.tokens), len(kept.path)] += 1
        return kept


@torch.inference_mode()
def generated(table: TableModel, engine: Engine, criteria: StoppingCriteriaList) -> list[int]:
    """The new tokens of one run of the decoding loop."""
    row = Row(table.prompt, criteria)
    run(engine, [row], [table.prompt[0]], TableTrunk(table))
    new: list[int] = row.ids[0, table.prompt.shape[1] :].tolist()
    return new


def drawn(table: TableModel, engine: Engine, *, draws: int) -> Array:
    """How often each continuation of `LENGTH` tokens came up in `draws` generations; (V^LENGTH,)."""
    criteria = StoppingCriteriaList([Enough(table.prompt)])
    counts = np.zeros((table.vocab_size,) * LENGTH)
    for _ in range(draws):
        counts[tuple(generated(table, engine, criteria))] += 1
    return counts.ravel()
