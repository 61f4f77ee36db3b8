"""What a table or a picture can show of a row of the results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lab.grid.figures import ALL
from polydraft.errors import InputError

Row = Mapping[str, Any]
Bounds = Sequence[float] | None


@dataclass(frozen=True)
class Metric:
    """A number of a row.

    Attributes:
        title: for headings and axes. find: (row) -> its value and 95% interval, None where the row has none.
        form: how the value is written. scale: what it is multiplied by for show.
    """

    title: str
    find: Callable[[Row], tuple[float, Bounds] | None]
    form: str = "{:.3f}"
    scale: float = 1.0

    def value(self, row: Row) -> tuple[float, Bounds] | None:
        """Value and interval, scaled."""
        found = self.find(row)
        if found is None:
            return None
        value, bounds = found
        return value * self.scale, None if bounds is None else [self.scale * bound for bound in bounds]


def _path(*names: str, interval: str = "") -> Callable[[Row], tuple[float, Bounds] | None]:
    """Follow `names` into the row; the interval lies beside the last one."""

    def find(row: Row) -> tuple[float, Bounds] | None:
        within: Any = row
        for name in names[:-1]:
            within = within.get(name)
            if within is None:
                return None
        value = within.get(names[-1])
        return None if value is None else (value, within.get(interval) if interval else None)

    return find


def _acceptance(mode: str, name: str) -> Callable[[Row], tuple[float, Bounds] | None]:
    return _path(
        "acceptance", mode, ALL, name, interval="interval" if name == "length" else f"{name}_interval"
    )


METRICS: dict[str, Metric] = {
    "greedy": Metric("tokens/step, greedy", _acceptance("greedy", "length")),
    "sampled": Metric("tokens/step, T = 1", _acceptance("sampled", "length")),
    "greedy_ratio": Metric("greedy, ratio to reference", _acceptance("greedy", "ratio")),
    "sampled_ratio": Metric("T = 1, ratio to reference", _acceptance("sampled", "ratio")),
    "joint_loss": Metric("joint loss, nats per n tokens", _path("loss", "joint", interval="joint_interval")),
    "joint_ratio": Metric(
        "joint loss minus the reference's, nats", _path("loss", "difference", interval="difference_interval")
    ),
    "first_loss": Metric("first token, nats", _path("loss", "language", interval="language_interval")),
    "draft_loss": Metric("first draft, nats", _path("loss", "first_draft")),
    "parameters": Metric("head, M", _path("parameters"), "{:.2f}", 1e-6),
    "trunk_parameters": Metric("model, M", _path("trunk_parameters"), "{:.2f}", 1e-6),
    "step_ms": Metric("training step, ms", _path("step_seconds"), "{:.0f}", 1e3),
    "steps": Metric("training steps", _path("steps"), "{:.0f}"),
    "minutes": Metric("training, min", _path("training_minutes"), "{:.1f}"),
    "wall_greedy": Metric(
        "wall clock, greedy", _path("speed", "greedy", "median_ratio", interval="interval"), "{:.2f}"
    ),
    "wall_sampled": Metric(
        "wall clock, T = 1", _path("speed", "sampled", "median_ratio", interval="interval"), "{:.2f}"
    ),
    "token_ms_greedy": Metric("ms/token, greedy", _path("speed", "greedy", "token_ms"), "{:.2f}"),
    "token_ms_sampled": Metric("ms/token, T = 1", _path("speed", "sampled", "token_ms"), "{:.2f}"),
    "plain_ms_greedy": Metric("plain, ms/token", _path("speed", "greedy", "plain_token_ms"), "{:.2f}"),
    "cycle_cost": Metric("cycle, plain tokens", _path("speed", "greedy", "cycle_cost"), "{:.2f}"),
    "drafting_share": Metric("drafting, share of time", _path("speed", "greedy", "drafting_share"), "{:.0%}"),
    "used": Metric("components used", _path("use", "effective"), "{:.2f}"),
    "busiest": Metric("largest share", _path("use", "largest"), "{:.2f}"),
    "loss_before": Metric("model before, nats", _path("base_loss", "before")),
    "loss_after": Metric("model after, nats", _path("base_loss", "after")),
}


def metric(name: str) -> Metric:
    """The metric called `name`.

    Raises:
        InputError: there is none; names those there are.
    """
    if name not in METRICS:
        raise InputError(f"unknown column {name!r}: choose from {', '.join(METRICS)}")
    return METRICS[name]
