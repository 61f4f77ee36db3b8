"""Time to draft n tokens against the forward that verifies them, side by side.

    OMP_WAIT_POLICY=PASSIVE python -m lab.benchmarks.draft_cost --threads 1 --out draft_cost.json

A round is one verification forward of the base model, over the pending token and n drafts with a cache of
`--context` tokens, then one draft by every head and mode, in the same process; the ratio is taken within
the round, by wall time and by processor time. Drafting is what the decoding loop does: `Engine.draft`, from
the hidden state to the tokens. Heads have random weights, in the base model's dtype. Modes: greedy; T = 1
(no processor: the head's own rows); T = 0.7 with top-p 0.9 (both applied to every draft row).
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor
from transformers import LogitsProcessorList, PreTrainedModel, StoppingCriteriaList
from transformers.generation.logits_process import TemperatureLogitsWarper, TopPLogitsWarper

from lab.benchmarks.common import quartiles, random_head, save, table
from polydraft.decoding.engine import Engine
from polydraft.decoding.row import Row
from polydraft.decoding.trunk import EagerTrunk
from polydraft.files import write_atomic
from polydraft.heads import DraftHead
from polydraft.joint import MEMBERS
from polydraft.loading import load_model
from polydraft.training.options import TrainOptions

MODES: dict[str, tuple[Any, ...] | None] = {
    "greedy": None,
    "T=1": (),
    "T=0.7 top-p 0.9": (TemperatureLogitsWarper(0.7), TopPLogitsWarper(0.9)),
}
"""Processors of every mode; None is greedy."""

Timed = Callable[[], object]


class Clocks(NamedTuple):
    """Seconds: of the wall, and of processor time, which other processes stretch less."""

    wall: float
    cpu: float


def timed(action: Timed) -> Clocks:
    """One call."""
    wall, cpu = time.perf_counter(), time.process_time()
    action()
    return Clocks(time.perf_counter() - wall, time.process_time() - cpu)


def shares(drafted: Sequence[Clocks], verified: Sequence[Clocks]) -> dict[str, float]:
    """Medians in milliseconds, and drafting in percent of the forward of the same round with quartiles."""
    out: dict[str, float] = {}
    for clock in Clocks._fields:
        parts, wholes = ([getattr(t, clock) for t in times] for times in (drafted, verified))
        share = quartiles([100 * part / whole for part, whole in zip(parts, wholes, strict=True)])
        out |= {
            f"draft_{clock}_ms": round(1000 * quartiles(parts)["median"], 2),
            f"forward_{clock}_ms": round(1000 * quartiles(wholes)["median"], 2),
            f"{clock}_percent": round(share["median"], 1),
            f"{clock}_percent_q1": round(share["q1"], 1),
            f"{clock}_percent_q3": round(share["q3"], 1),
        }
    return out


def verification(model: PreTrainedModel, *, context: int, horizon: int) -> tuple[Timed, Tensor, Tensor]:
    """The forward to compare with, which keeps nothing; the prefix (1, L) and h_t (1, d)."""
    ids = torch.randint(model.config.get_text_config().vocab_size, (1, context + 1 + horizon))
    trunk = EagerTrunk(model, taps={}, rows=1)
    with trunk:
        trunk.prefill([ids[0, :context]])
        hidden = trunk.hidden[:, -1]

    def forward() -> None:
        with trunk:
            trunk.forward(ids[:, context:])
        trunk.keep([[]])

    return forward, ids[:, : context + 1], hidden


def drafting(head: DraftHead, mode: str, prefix: Tensor, hidden: Tensor) -> Timed:
    """One chain as the loop drafts it."""
    processors, count = MODES[mode], head.config.horizon
    row = Row(prefix, StoppingCriteriaList())
    engine = Engine(
        head,
        processors=LogitsProcessorList(list(processors or ())),
        do_sample=processors is not None,
        generator=None,
    )
    return lambda: engine.draft(head(hidden, prefix[:, -1]), [row], count, count)


def heads(model: PreTrainedModel, options: argparse.Namespace) -> dict[tuple[str, int], DraftHead]:
    """By member and components; members of one component have no choice of components."""
    found = {}
    defaults = TrainOptions()
    for joint in options.members:
        for components in [0] if MEMBERS[joint].single else options.components:
            head = random_head(
                model,
                joint=joint,
                rank=options.rank,
                horizon=options.horizon,
                draft_vocab_size=options.draft_vocab_size,
                components=components,
                feature_size=defaults.feature_size,
                map_rank=defaults.map_rank,
                markov_rank=defaults.markov_rank,
            )
            found[joint, components] = cast(DraftHead, cast(Any, head).to(model.dtype)).eval()
    return found


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Percent of a forward by components, with quartiles; a line per member, a panel per mode."""
    modes = list(dict.fromkeys(row["mode"] for row in rows))
    figure = Figure(figsize=(4.5 * len(modes), 4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(modes), sharey=True, squeeze=False)[0]
    for panel, mode in zip(panels, modes, strict=True):
        for joint in dict.fromkeys(row["joint"] for row in rows):
            points = sorted(
                (row for row in rows if row["joint"] == joint and row["mode"] == mode),
                key=lambda row: row["components"],
            )
            middle = [row["wall_percent"] for row in points]
            spread = [
                [abs(row[f"wall_percent_{end}"] - row["wall_percent"]) for row in points]
                for end in ("q1", "q3")
            ]
            x = [row["components"] for row in points]
            panel.errorbar(x, middle, yerr=spread, marker="o", capsize=3, label=joint)
        panel.axhline(20, color="grey", linestyle="--")
        panel.set_xscale("log", base=2)
        panel.set_xlabel("components evaluated")
        panel.set_title(mode)
    panels[0].set_ylabel("drafting, % of one verification forward")
    panels[0].set_ylim(bottom=0)
    panels[0].legend()
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    write_atomic(path, picture.getvalue())


@torch.no_grad()
def main() -> None:
    """Run all rounds, then print, save and plot the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--horizon", type=int, default=8)
    parser.add_argument("--draft-vocab-size", type=int, default=16384)
    parser.add_argument("--components", type=int, nargs="+", default=[0, 8, 4, 2], help="0 is all")
    parser.add_argument("--members", nargs="+", default=list(MEMBERS))
    parser.add_argument("--modes", nargs="+", default=list(MODES))
    parser.add_argument("--context", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("draft_cost.json"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model, _ = load_model(options.model, dtype=torch.bfloat16)
    forward, prefix, hidden = verification(model, context=options.context, horizon=options.horizon)
    drafts = {
        (*name, mode): drafting(head, mode, prefix, hidden)
        for name, head in heads(model, options).items()
        for mode in options.modes
    }
    for action in (forward, *drafts.values()):
        action()
    verified: list[Clocks] = []
    drafted: dict[tuple[str, int, str], list[Clocks]] = {name: [] for name in drafts}
    for _ in range(options.rounds):
        verified.append(timed(forward))
        for name, action in drafts.items():
            drafted[name].append(timed(action))
    rows = [
        {
            "joint": joint,
            "components": 1 if MEMBERS[joint].single else components or options.rank,
            "mode": mode,
        }
        | shares(times, verified)
        for (joint, components, mode), times in drafted.items()
    ]
    save(options.out, settings=vars(options), rows=rows)
    plot(rows, options.out.with_suffix(".png"))
    print(table(rows))


if __name__ == "__main__":
    main()
