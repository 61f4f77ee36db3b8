"""Costs of a cycle as `python -m lab overhead` has measured them, for heads between those measured.

Ratios between figures of one round carry over to another day; seconds of a busy machine do not. So all is
taken in units of the plain step measured beside it.
"""

from __future__ import annotations

from statistics import median
from typing import Any

from polydraft.decoding.costs import between, line
from polydraft.errors import InputError
from polydraft.joint import MEMBERS

MODES = ("greedy", "sampled")
SINGLE = ("cp", "independent")
"""Joints whose heads are measured by rank."""


class MeasuredCosts:
    """What a cycle costs, in plain steps.

        cost = (drafting + forward(1 + n) + rest) / plain step

    forward: the trunk's measured curve, between its widths by straight lines, in forwards over one token,
    times the forward within a plain step. drafting: that of the measured cycles, bilinear in rank and
    horizon; a member with a bias from the token before adds what `markov` costs over rank 1, a block what
    `block` does; the processes hmm and tree cost as cp does. rest: verification and cache, by horizon.

    Args:
        content: of an overhead run's results.json.

    Raises:
        InputError: no head of rank 1 is in it.
    """

    def __init__(self, content: dict[str, Any]) -> None:
        self.content = content
        self.context = int(content["context"])
        trunk = content["trunk"]
        self._widths = {int(width): found["median"] for width, found in trunk["forward"].items()}
        self._trunk = trunk
        ranks = [c for c in content["cells"] if c["joint"] in SINGLE and c["features"] == "fused"]
        self._by_rank = {(int(c["horizon"]), int(c["rank"])): c for c in ranks}
        self._extra = {
            name: {(int(c["horizon"]), 1): c for c in content["cells"] if self._is(c, name)}
            for name in ("markov", "block")
        }
        if not any(rank == 1 for _, rank in self._by_rank):
            raise InputError("the overhead run has no head of rank 1: measure it with --joint cp --rank 1")

    @staticmethod
    def _is(cell: dict[str, Any], name: str) -> bool:
        kind = (cell["joint"], cell["features"], cell["rank"])
        return kind in {"markov": [("markov", "fused", 1)], "block": [(j, "block", 1) for j in SINGLE]}[name]

    def plain(self, mode: str, part: str = "step") -> float:
        """Seconds of a plain step, of the forward in it, or of the prompt's forward."""
        return float(self._trunk[mode][part]["median"])

    def forward(self, width: int, mode: str) -> float:
        """Seconds of a forward over `width` new tokens inside the loop.

        Between those of plain steps and of the cells, 1 + n tokens (medians over a horizon's cells); beyond
        these by the trunk's curve.
        """
        inside = {1: [self.plain(mode, "forward")]}
        for cell in self.content["cells"]:
            inside.setdefault(1 + int(cell["horizon"]), []).append(cell[mode]["forward"]["median"])
        known = {k: median(values) for k, values in inside.items()}
        if width <= max(known):
            return line(known, width)
        return known[max(known)] * line(self._widths, width) / line(self._widths, max(known))

    @staticmethod
    def knows(joint: str, features: str) -> bool:
        """Whether the drafting of such heads can be put together from what an overhead run measures."""
        return joint in MEMBERS and not MEMBERS[joint].steps and features != "hidden"

    def drafting(self, joint: str, components: int, horizon: int, *, mode: str, features: str) -> float:
        """Seconds of drafting.

        Raises:
            InputError: the head has a part that the run did not measure.
        """
        if not self.knows(joint, features):
            raise InputError(f"costs of a head {joint!r} with features {features!r} are not predicted")
        base = self._draft(self._by_rank, horizon, components, mode)
        for name, there in (("markov", MEMBERS[joint].markov), ("block", features == "block")):
            if there:
                if not self._extra[name]:
                    raise InputError(f"the overhead run has no {name} head: measure it with --extra {name}")
                with_it = self._draft(self._extra[name], horizon, 1, mode)
                base += with_it - self._draft(self._by_rank, horizon, 1, mode)
        return base

    def _draft(self, cells: dict[tuple[int, int], Any], horizon: int, rank: int, mode: str) -> float:
        return between({at: c[mode]["draft"]["median"] for at, c in cells.items()}, horizon, rank)

    def rest(self, horizon: int, mode: str) -> float:
        """Seconds of verification and cache, the median over heads."""
        found: dict[int, list[float]] = {}
        for cell in self.content["cells"]:
            seconds = cell[mode]["verify"]["median"] + cell[mode]["keep"]["median"]
            found.setdefault(int(cell["horizon"]), []).append(seconds)
        return line({n: median(values) for n, values in found.items()}, horizon)

    def cost(self, joint: str, components: int, horizon: int, *, mode: str, features: str = "fused") -> float:
        """A cycle in plain steps.

        Raises:
            InputError: as of `drafting`.
        """
        drafting = self.drafting(joint, components, horizon, mode=mode, features=features)
        cycle = drafting + self.forward(1 + horizon, mode) + self.rest(horizon, mode)
        return cycle / self.plain(mode)

    def run_ratio(
        self, *, tokens: float, cost: float, new_tokens: int, prompt_tokens: int, mode: str
    ) -> tuple[float, float]:
        """Speed of a whole generation against plain, and its cycle cost as a grid counts it.

            plain = P + (T - 1) p,   drafted = P + (T - 1) / E cost p
            cycle cost = drafted / ((T - 1) / E + 1) / (plain / T)

        with P the prompt's forward (in proportion to its tokens), p a plain step, T new tokens, E a cycle.

        Args:
            tokens: E. cost: of a cycle in plain steps. new_tokens: T.
        """
        p = self.plain(mode)
        prompt = self.plain(mode, "prompt") * prompt_tokens / self.context
        plain = prompt + (new_tokens - 1) * p
        cycles = (new_tokens - 1) / tokens
        drafted = prompt + cycles * cost * p
        return plain / drafted, drafted / (cycles + 1) / (plain / new_tokens)
