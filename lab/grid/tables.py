"""The results as markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lab.grid.figures import ALL

TITLES = {
    "greedy": "Greedy: tokens per step",
    "components": "Greedy, chain of the best components: tokens per step",
    "sampled": "T = 1: tokens per step",
}


def markdown(content: dict[str, Any]) -> str:
    """Acceptance by mode, conditional acceptance by position, then what each cell costs."""
    parts = [
        f"# {content['title']}\n",
        f"`{content['command']}`\n",
        f"{content['dtype']}; tokens per step over {content['max_new_tokens']} new tokens of the prompts "
        f"`{content['prompts']}`, at T = 1 over {content['samples']} texts each. Brackets: 95% intervals by "
        f"bootstrap over prompts ({content['draws']} draws), paired for ratios. Ratios: to the cell of "
        "the same horizon that has none.\n",
    ]
    if len(content["cells"]) < content["asked"]:
        parts.append(f"{len(content['cells'])} of {content['asked']} cells are done.\n")
    for asked in content["tables"].values():
        parts += [f"## {asked['title']}\n", table(asked["headings"], asked["rows"]), f"{asked['note']}\n"]
    for mode, title in TITLES.items():
        rows = [cell for cell in content["cells"] if mode in cell["acceptance"]]
        if rows:
            parts += [f"## {title}\n", acceptance_table(rows, mode=mode, kinds=content["kinds"])]
    for mode in ("greedy", "sampled"):
        rows = [cell for cell in content["cells"] if mode in cell["conditional"]]
        if rows:
            title = "greedy" if mode == "greedy" else "T = 1"
            parts += [f"## Share of drafts accepted, by position, {title}\n", position_table(rows, mode=mode)]
    parts += ["## Cost and wall clock\n", cost_table(content["cells"])]
    block = [cell for cell in content["cells"] if against_token(cell)]
    if block:
        parts += ["## Block verification against token-wise, T = 1, as decoded\n", block_table(block)]
    return "\n".join(parts)


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """One markdown table, the first column left, the others right."""
    lines = [headings, ["---", *["---:"] * (len(headings) - 1)], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def acceptance_table(rows: Sequence[dict[str, Any]], *, mode: str, kinds: Sequence[str]) -> str:
    """Mean acceptance length: all with its interval, by kind, and the ratio to the reference."""
    named = [kind for kind in kinds if kind != ALL]
    out = []
    for cell in rows:
        groups = cell["acceptance"][mode]
        whole = groups[ALL]
        ratio = with_interval(whole["ratio"], whole["ratio_interval"]) if "ratio" in whole else "-"
        by_kind = [f"{groups[kind]['length']:.2f}" if kind in groups else "-" for kind in named]
        length = with_interval(whole["length"], whole["interval"])
        out.append([cell["name"], str(cell["horizon"]), length, *by_kind, ratio])
    return table(["cell", "n", ALL, *named, "ratio"], out)


def position_table(rows: Sequence[dict[str, Any]], *, mode: str) -> str:
    """P(draft s accepted | those before it were)."""
    longest = max(len(cell["conditional"][mode]) for cell in rows)
    out = []
    for cell in rows:
        shares = [f"{share:.0%}" for share in cell["conditional"][mode]]
        out.append([cell["name"], *shares, *[""] * (longest - len(shares))])
    return table(["cell", *map(str, range(1, longest + 1))], out)


def cost_table(rows: Sequence[dict[str, Any]]) -> str:
    """Size, training and speed."""
    headings = ["cell", "parameters", "training min", "positions/s", "greedy ratio", "T = 1 ratio"]
    out = []
    for cell in rows:
        rate = cell["positions_per_second"]
        out.append(
            [
                cell["name"],
                f"{cell['parameters'] / 1e6:.1f}M",
                f"{cell['training_minutes']:.1f}",
                "-" if rate is None else f"{rate:,.0f}",
                *[speed_words(cell["speed"].get(mode)) for mode in ("greedy", "sampled")],
                *[part_words(cell["speed"], name) for name in ("drafting_share", "cycle_cost")],
                " / ".join(projected_words(cell["projected"].get(m)) for m in ("greedy", "sampled")),
            ]
        )
    return table([*headings, "drafting share", "cycle cost", "projected ratio"], out) + (
        "\nRatios: tokens/s, drafted over plain, the median over prompts of each one's; in brackets its 95% "
        "interval. Cycle cost: time of one drafted step in plain tokens. Projected ratio: "
        "tokens per step as replayed over all texts, divided by the cycle cost; the timed texts are fewer.\n"
    )


def projected_words(ratio: float | None) -> str:
    """ "1.17", or a dash."""
    return "-" if ratio is None else f"{ratio:.2f}"


def block_table(rows: Sequence[dict[str, Any]]) -> str:
    """Tokens per step, and their ratio to token-wise verification of the same head on the same prompts."""
    out = []
    for cell in rows:
        found = against_token(cell)
        ratio = with_interval(found["ratio"], found["ratio_interval"])
        out.append([cell["name"], with_interval(found["length"], found["interval"]), ratio])
    return table(["cell", "tokens per step", "ratio"], out)


def against_token(cell: dict[str, Any]) -> Any:
    """Its comparison with token-wise verification; None without one."""
    return cell["speed"].get("sampled", {}).get("against_token")


def with_interval(value: float, bounds: Sequence[float]) -> str:
    """ "1.85 [1.71, 2.01]"."""
    return f"{value:.3f} [{bounds[0]:.3f}, {bounds[1]:.3f}]"


def speed_words(found: dict[str, Any] | None) -> str:
    """The median ratio over prompts, and its interval."""
    if found is None:
        return "-"
    low, high = found["interval"]
    return f"{found['median_ratio']:.2f} [{low:.2f}, {high:.2f}]"


def part_words(speed: dict[str, Any], name: str) -> str:
    """A figure at both temperatures, "greedy / T = 1"."""
    form = "{:.0%}" if name == "drafting_share" else "{:.2f}"
    shown = [form.format(speed[mode][name]) if mode in speed else "-" for mode in ("greedy", "sampled")]
    return " / ".join(shown)
