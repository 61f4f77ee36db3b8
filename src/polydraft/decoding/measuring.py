"""Measure what drafting and verifying cost here: forwards, drafts, and the rest of a cycle, in turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from polydraft.decoding.adapted import AdaptedTrunk
from polydraft.decoding.costs import Costs, load_costs, machine_key, save_costs
from polydraft.decoding.cycles import cycles
from polydraft.decoding.tree import choose_tree
from polydraft.decoding.trunk import EagerTrunk, Trunk
from polydraft.heads import DraftHead
from polydraft.limits import position_rows

CONTEXT = 128
"""Tokens before those that are timed, where the model has positions for them and `WIDEST` more."""
SPREAD = 32
"""Tokens by which the shortest of the texts decoded together falls short of the longest, at most."""
WIDEST = 32
"""New tokens of a forward that is timed, at most."""
SECONDS = 1.0
"""Seconds of timing per number of rows, unless `LEAST_ROUNDS` take longer."""
LEAST_ROUNDS, MOST_ROUNDS = 4, 20

GROWTH = 2
"""Tokens that a text has grown by when drafts are asked for: one kept, and the next."""
MOST_NODES = 16
"""The nodes of the largest tree that is timed."""

OpenTrunk = Callable[[int], Trunk]
"""Number of rows -> a trunk to run them in."""


def policy_widths(most: int) -> tuple[int, ...]:
    """Tokens of a forward that are worth a measurement before drafting up to `most` of them."""
    return tuple(sorted({1, 2, 1 + (most + 1) // 2, 1 + most}))


def row_counts(rows: int) -> set[int]:
    """Return the numbers of texts to measure before `rows` are decoded together: powers of 2, and `rows`."""
    return {rows} | {2**power for power in range(rows.bit_length()) if 2**power < rows}


def machine_costs(
    model: PreTrainedModel,
    head: DraftHead,
    *,
    rows: int,
    tree: bool = False,
    path: str = "eager",
    open_trunk: OpenTrunk | None = None,
) -> Costs:
    """The costs of this machine for up to `rows` texts: remembered, or measured now (seconds) and remembered.

    Args:
        tree: of drafting trees, not chains. path: name of the way `open_trunk` runs the model.
        open_trunk: the model's own forward if None.

    Raises:
        OSError: the user's cache cannot be written.
    """
    key = machine_key(model, head, path=path, tree=tree)
    known = load_costs(key)
    missing = row_counts(rows) - (known.rows if known is not None else set())
    if not missing and known is not None:
        return known
    found = measure(model, head, rows=sorted(missing), tree=tree, open_trunk=open_trunk)
    costs = found if known is None else known.updated(found)
    save_costs(key, costs)
    return costs


@torch.no_grad()
def measure(
    model: PreTrainedModel,
    head: DraftHead,
    *,
    rows: Sequence[int],
    tree: bool = False,
    widths: Sequence[int] | None = None,
    lengths: Sequence[int] | None = None,
    open_trunk: OpenTrunk | None = None,
    on_rows: Callable[[int], None] | None = None,
) -> Costs:
    """Time forwards and drafts; the shortest of several rounds each, so that other work disturbs little.

    Args:
        head: attached to `model`. rows: numbers of texts. tree: draft trees, not chains.
        widths: new tokens of each text in a forward. lengths: drafts of each.
        on_rows: called with each number of rows before it is timed.
    """
    most = MOST_NODES if tree else head.config.horizon
    costs = Costs({}, {})
    for count in rows:
        if on_rows is not None:
            on_rows(count)
        trunk = (
            EagerTrunk(model, taps=head.config.taps, rows=count) if open_trunk is None else open_trunk(count)
        )
        with trunk:
            texts = Texts(model, head, trunk, rows=count)
            forwards = {width: texts.forward(width, tree=tree) for width in widths or policy_widths(most)}
            drafts = {length: texts.draft(length, tree=tree) for length in lengths or sorted({1, most})}
            cycles = [
                {length: cycle(length) for length in sorted({0, 1, most})}
                for cycle in (texts.cycles(1 + most, tree=tree, sampled=sampled) for sampled in (False, True))
            ]
            found = in_turn([forwards, drafts, *cycles], device=model.device)
        forward, drafting, greedy, sampled = (
            {(count, size): seconds for size, seconds in one.items()} for one in found
        )
        own = Costs(forward, drafting)
        rests = (
            {at: max(s - own.drafting_seconds(*at), 0.0) for at, s in grid.items()}
            for grid in (greedy, sampled)
        )
        costs = costs.updated(Costs(forward, drafting, *rests))
    return costs


class Texts:
    """Texts of about `CONTEXT` tokens inside a trunk, and what the decoding loop does next with them."""

    def __init__(self, model: PreTrainedModel, head: DraftHead, trunk: Trunk, *, rows: int) -> None:
        self._rows, self._head, self._trunk = rows, head, trunk
        self._vocab: int = model.config.get_text_config().vocab_size
        self._device = model.device
        positions = position_rows(model) or CONTEXT + GROWTH + WIDEST
        context = min(CONTEXT, max(positions - GROWTH - WIDEST, 1))
        shorter = [7 * row % min(SPREAD, context) for row in range(rows)]
        self._model = model
        self._prompts = [text[less:] for text, less in zip(self._tokens(context), shorter, strict=True)]
        logits = trunk.prefill(self._prompts)
        hidden, switch = trunk.hidden, head.switch
        self._read = logits, hidden
        self._adapted = None if switch is None else AdaptedTrunk(model, head, switch, self._prompts)
        if self._adapted is not None:
            hidden = self._adapted.prefill()
        self._reader = head.reader(rows=rows)
        sizes = [min(hidden.shape[1], len(prompt)) for prompt in self._prompts]
        self._reader.tell(
            [states[:size] for states, size in zip(hidden, sizes, strict=True)],
            [prompt[len(prompt) - size :] for prompt, size in zip(self._prompts, sizes, strict=True)],
        )
        self._reader.joint()
        trunk.forward(self._tokens(GROWTH))
        self._hidden = trunk.hidden.clone()
        trunk.keep([[]] * rows)

    def _tokens(self, width: int) -> Tensor:
        """(B, width), all over the vocabulary; torch's random state is left alone."""
        count = torch.arange(self._rows * width, device=self._device).view(self._rows, width)
        return count * 7919 % self._vocab

    def forward(self, width: int, *, tree: bool) -> Callable[[], object]:
        """A verification that keeps nothing, so that the next one finds texts of the same length."""
        tokens = self._tokens(width)
        parents = [[(node - 1) // 2 for node in range(width)]] * self._rows if tree and width > 1 else None

        def run() -> None:
            self._trunk.forward(tokens, parents=parents)
            self._trunk.keep([[]] * self._rows)

        return run

    def draft(self, length: int, *, tree: bool) -> Callable[[], object]:
        """Greedy drafts after `GROWTH` new tokens; what drawing adds is part of the rest."""
        tokens = list(self._tokens(GROWTH))

        def run() -> None:
            hidden = list(self._hidden) if self._adapted is None else self._adapted(tokens)
            self._reader.tell(hidden, tokens)
            if tree:
                choose_tree(self._reader.joint(), nodes=length, depth=self._head.config.horizon)
            else:
                self._reader.joint().argmax(length=length)

        return run

    def cycles(self, width: int, *, tree: bool, sampled: bool) -> Callable[[int], Callable[[], object]]:
        """Return `cycles` of these texts, without their forwards, of at most `width` tokens a row."""
        self._trunk.forward(self._tokens(width))
        states = self._trunk.hidden.clone()
        self._trunk.keep([[]] * self._rows)
        return cycles(self._model, self._head, self._prompts, self._read, states, tree=tree, sampled=sampled)


def in_turn(
    parts: Sequence[Mapping[int, Callable[[], object]]], *, device: torch.device
) -> list[dict[int, float]]:
    """Return the seconds of actions by size, all timed in turn; in each part none above a larger size's."""
    seconds = iter(shortest([action for part in parts for action in part.values()], device=device))
    return [rising(part, [next(seconds) for _ in part]) for part in parts]


def shortest(
    actions: Sequence[Callable[[], object]], *, device: torch.device, least: int = LEAST_ROUNDS
) -> list[float]:
    """Seconds of each, the shortest of `least` rounds or more over all of them, after an untimed one."""
    rounds: list[list[float]] = []
    began = 0.0
    for number in range(MOST_ROUNDS + 1):
        if number == 1:
            began = time.perf_counter()
        if number > least and time.perf_counter() - began > SECONDS:
            break
        rounds.append([timed(action, device=device) for action in actions])
    return [min(seconds) for seconds in zip(*rounds[1:], strict=True)]


def rising(sizes: Iterable[int], seconds: Sequence[float]) -> dict[int, float]:
    """Seconds by size, none above those of a larger one: what is measured is never too short."""
    found = dict(zip(sizes, seconds, strict=True))
    return {size: min(s for other, s in found.items() if other >= size) for size in found}


def works_alone(device: torch.device) -> bool:
    """Whether the thread that decodes does all of the work: its CPU time then leaves out what others do."""
    return device.type == "cpu" and torch.get_num_threads() == 1


def timed(action: Callable[[], object], *, device: torch.device) -> float:
    """Seconds until all its work is done; CPU time where this thread does all of it."""
    clock = time.thread_time if works_alone(device) else time.perf_counter
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = clock()
    action()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - began
