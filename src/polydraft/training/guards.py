"""What stops a run, and what it warns of: numbers that are not finite, components that do nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from polydraft.errors import PolydraftError
from polydraft.training import distributed

DEAD = 0.01
"""A component whose load is below this part of a fair share, 1 / r, is dead."""
ROWS = 100
"""Per component: fewer do not tell whether a component is ever the likeliest."""


# -- numbers that are not finite --------------------------------------------------------------------


def check_loss(loss: Tensor, terms: Mapping[str, Tensor], *, step: int, checkpoints: Path) -> None:
    """Stop where the loss of some process is not finite.

    Args:
        loss: scalar. terms: its parts, by name. step: the one under way, from 1.

    Raises:
        PolydraftError: names the step, and the terms that are not finite.
    """
    if bool(distributed.total(loss.detach()).isfinite()):
        return
    found = distributed.total(torch.stack([value.detach().float() for value in terms.values()]))
    bad = [name for name, finite in zip(terms, found.isfinite().tolist(), strict=True) if not finite]
    raise PolydraftError(_stopped(f"loss ({', '.join(bad) or 'sum of its terms'})", step, checkpoints))


def check_gradients(model: nn.Module, *, step: int, checkpoints: Path) -> None:
    """Stop before a gradient that is not finite reaches the weights; call it before gradients are clipped.

    Raises:
        PolydraftError: names the step, and the first parameter.
    """
    own = [(name, _local(p.grad)) for name, p in model.named_parameters() if p.grad is not None]
    if not own or bool(distributed.total(get_total_norm([grad for _, grad in own])).isfinite()):
        return
    finite = torch.stack([grad.isfinite().all() for _, grad in own])
    bad = distributed.total((~finite).long()).tolist()
    names = [name.removeprefix("module.") for (name, _), count in zip(own, bad, strict=True) if count]
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    raise PolydraftError(_stopped(f"gradient of {names[0] if names else 'all'}{more}", step, checkpoints))


def _local(grad: Tensor) -> Tensor:
    """The part of a gradient that this process holds."""
    return grad.to_local() if isinstance(grad, DTensor) else grad


def _stopped(what: str, step: int, checkpoints: Path) -> str:
    """One line: what is not finite, where the last good weights are, and what to do."""
    last = get_last_checkpoint(str(checkpoints)) if checkpoints.exists() else None
    kept = f"; --init-from {last} goes on from the last checkpoint" if last else ""
    return (
        f"step {step}: the {what} is not finite: start again in another --out with a lower "
        f"--learning-rate, or with --dtype float32{kept}"
    )


# -- components that do nothing ---------------------------------------------------------------------


def gate_figures(load: Tensor, likeliest: Tensor, *, rows: float) -> dict[str, float]:
    """For the log: `load_a`, and `likeliest_a` where there are enough rows to tell.

    Args:
        load: (r,) mean gate weight. likeliest: (r,) share of rows where the component has the largest.
    """
    out = {f"load_{a + 1}": round(float(x), 6) for a, x in enumerate(load)}
    if rows >= ROWS * len(load):
        out |= {f"likeliest_{a + 1}": round(float(x), 6) for a, x in enumerate(likeliest)}
    return out


@dataclass(frozen=True, kw_only=True)
class DeadComponent:
    """A component, from 1, with the first step at which it was found dead, and what it had there."""

    component: int
    step: int
    load: float
    likeliest: float | None

    def line(self, rank: int) -> str:
        """For the user."""
        never = f", the likeliest at {self.likeliest:.2%} of positions" if self.likeliest is not None else ""
        return (
            f"step {self.step}: component {self.component} of {rank} is dead: mean weight {self.load:.2%}"
            f"{never}; raise --balance or --gate-noise, or drop it afterwards with polydraft prune"
        )


def dead_components(history: Sequence[Mapping[str, Any]], *, warmup: int) -> list[DeadComponent]:
    """Components with less than `DEAD` of a fair share, of the weight or of the positions they lead.

    Args:
        history: the Trainer's log. warmup: steps that do not count, the gate being as good as even.

    Returns:
        each once, where it was first found so.
    """
    found: dict[int, DeadComponent] = {}
    for row in history:
        rank = sum(key.startswith("load_") for key in row)
        if rank < 2 or row["step"] <= warmup:
            continue
        for a in range(1, rank + 1):
            load, likeliest = row[f"load_{a}"], row.get(f"likeliest_{a}")
            least = load if likeliest is None else min(load, likeliest)
            if a not in found and least < DEAD / rank:
                found[a] = DeadComponent(component=a, step=row["step"], load=load, likeliest=likeliest)
    return [found[a] for a in sorted(found)]


def dead_record(history: Sequence[Mapping[str, Any]], *, warmup: int) -> dict[str, Any]:
    """`dead_components` for training.json; nothing where there are none."""
    found = dead_components(history, warmup=warmup)
    return {"dead_components": [asdict(dead) for dead in found]} if found else {}


class ComponentGuard(TrainerCallback):
    """Says once of every component that it is dead.

    Args:
        say: takes one line. rank: components. warmup: as in `dead_components`.
    """

    def __init__(self, say: Callable[[str], None], *, rank: int, warmup: int) -> None:
        self._say = say
        self._rank = rank
        self._warmup = warmup

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any
    ) -> None:
        """Look at what has just been logged."""
        if not state.log_history or "load_1" not in state.log_history[-1]:
            return
        for dead in dead_components(state.log_history, warmup=self._warmup):
            if dead.step == state.log_history[-1]["step"]:
                self._say(dead.line(self._rank))
