"""The results as markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lab.grid.tables import table, with_interval
from lab.overhead.rounds import MODES

TITLES = {"greedy": "greedy", "sampled": "T = 1"}
MIB = 2**20


def markdown(content: dict[str, Any]) -> str:
    """What a cycle costs, where its time goes, training, memory, the trunk's curve."""
    machine, sizes = content["machine"], content["sizes"]
    parts = [
        f"# {content['model']}: what heads cost\n",
        f"`{content['command']}`\n",
        f"{machine['device']}, {machine['threads']} threads, {machine['dtype']}; "
        f"{machine['bandwidth'] / 1e9:.1f} GB/s and {machine['flops'] / 1e9:,.0f} GFLOP/s as measured. "
        f"Medians over {content['rounds']} rounds, in brackets 95% intervals by bootstrap over rounds; "
        f"ratios are taken within rounds. {content['context']} tokens of context. Untrained heads, draft "
        f"vocabulary {sizes['draft_vocab_size']}, map rank {sizes['map_rank']}: hardly one is kept, so of "
        "the drafts of a cycle the first alone is judged.\n",
    ]
    for mode in MODES:
        parts += [f"## A cycle, {TITLES[mode]}\n", cycle_table(content, mode)]
    parts += ["## Size, training and memory\n", size_table(content)]
    parts += ["## The trunk\n", forward_table(content["trunk"])]
    return "\n".join(parts)


def milliseconds(found: dict[str, Any]) -> str:
    """A median in ms."""
    return f"{1e3 * found['median']:.1f}"


def cycle_table(content: dict[str, Any], mode: str) -> str:
    """The cycle in plain steps, the share of drafting, and the parts in ms."""
    plain = content["trunk"][mode]["step"]
    rows: list[Sequence[str]] = []
    for cell in content["cells"]:
        found = cell[mode]
        share = found["drafting_share"]["median"]
        parts = [milliseconds(found[name]) for name in ("draft", "forward", "verify", "keep")]
        cost = with_interval(found["cost"]["median"], found["cost"]["interval"])
        rows.append([cell["name"], cost, f"{share:.1%}", milliseconds(found["cycle"]), *parts])
    headings = ["head", "plain steps", "drafting", "cycle ms", "draft", "forward 1+n", "verify", "keep"]
    return table(headings, rows) + f"\nA plain step: {milliseconds(plain)} ms.\n"


def size_table(content: dict[str, Any]) -> str:
    """Parameters, the time of a training step, peak memory."""
    rows: list[Sequence[str]] = []
    for cell in content["cells"]:
        training, memory = cell["training"], cell["memory"]
        over = training["over_trunk"]
        rows.append(
            [
                cell["name"],
                f"{cell['parameters'] / 1e6:.2f}M",
                f"{cell['share_of_trunk']:.1%}",
                f"{training['step']['median']:.3f}",
                f"{training['positions_per_second']['median']:,.0f}",
                with_interval(over["median"], over["interval"]),
                *[f"{memory[name] / MIB:,.0f}" if memory else "-" for name in ("training", "drafting")],
            ]
        )
    headings = ["head", "parameters", "of the trunk's", "step s", "positions/s", "trunk forwards"]
    trunk = content["trunk"]
    return table([*headings, "training MiB", "drafting MiB"], rows) + (
        f"\nA step: loss, gradients and AdamW in float32 on {content['positions']} positions of given hidden "
        f"states; in forwards of the trunk over them ({trunk['training_forward']['median']:.3f} s). Trunk: "
        f"{trunk['parameters'] / 1e6:.1f}M parameters, {trunk['bytes'] / MIB:,.0f} MiB. Memory: peaks in a "
        "process of its own, over the loaded trunk: of a training step with weights, gradients and AdamW's "
        "state; of drafted decoding over plain decoding, the head's weights included.\n"
    )


def forward_table(trunk: dict[str, Any]) -> str:
    """Forwards by new tokens."""
    first = next(iter(trunk["forward"].values()))["median"]
    rows = [
        [width, milliseconds(found), f"{found['median'] / first:.2f}"]
        for width, found in trunk["forward"].items()
    ]
    return table(["new tokens", "forward ms", "of the first"], [[str(x) for x in row] for row in rows])
