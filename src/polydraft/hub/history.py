"""How a head was trained, for its card: from the provenance in `config.json` and from `training.json`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from polydraft.textfiles import parse_json

RECORD = "training.json"
FIGURES = {
    "greedy_acceptance_length": "acceptance length, greedy",
    "sampled_acceptance_length": "acceptance length, sampled at T = 1",
    "coverage": "tokens within the draft vocabulary",
    "nll": "-log P of all drafts together, nats",
}


def training(folder: Path, found: dict[str, Any]) -> str:
    """The section on training; empty where nothing is recorded.

    Args:
        found: of `evaluation.describe.describe_head`.
    """
    known = found["provenance"] or {}
    path = folder / RECORD
    record = parse_json(path.read_text(encoding="utf-8"), where=str(path)) if path.is_file() else {}
    parts = [
        f"```\n{known['command']}\n```" if known.get("command") else "",
        table("| | |\n|---|---|", settings(known, record)),
        held_out(known.get("held_out") or {}, horizon=found["horizon"]),
    ]
    said = [part for part in parts if part]
    return "\n\n".join(["## Training", *said]) if said else ""


def settings(known: dict[str, Any], record: dict[str, Any]) -> dict[str, str]:
    """Facts of the run, by name."""
    options = record.get("options") or {}
    seconds = next(
        (row["train_runtime"] for row in record.get("history") or [] if "train_runtime" in row), None
    )
    base_loss = known.get("base_loss")
    rows = {
        "data (hash)": f"`{known['data']}`" if known.get("data") else "",
        "tokens to learn from": f"{known['training_tokens']:,}" if known.get("training_tokens") else "",
        "steps": f"{options['steps']:,} of {rows_a_step(options, record)} texts each" if options else "",
        "tokens a text, at most": f"{options['max_length']:,}" if options else "",
        "loss": ", ".join(loss(options)) if options else "",
        "base model": trunk(options) if options else "",
        "its own loss before and after, nats a token": (
            f"{base_loss['before']:.4f}, {base_loss['after']:.4f}" if base_loss else ""
        ),
        "started from": "another head" if record.get("init_from") else "",
        "time": f"{seconds / 60:.0f} minutes" if seconds else "",
        "peak memory": f"{known['peak_memory_mib']:,} MiB" if known.get("peak_memory_mib") else "",
        "versions": ", ".join(f"{name} {version}" for name, version in (known.get("versions") or {}).items()),
    }
    return {name: value for name, value in rows.items() if value}


def rows_a_step(options: dict[str, Any], record: dict[str, Any]) -> int:
    """Texts that a step learns from, over all processes."""
    return int(options["batch_size"] * options["accumulate"] * record.get("processes", 1))


def loss(options: dict[str, Any]) -> list[str]:
    """The name of the loss and the weights that were given by hand."""
    given = [
        f"{term} weighted {options[term]:g}" for term in ("nll", "kl", "tv") if options.get(term) is not None
    ]
    return [str(options["loss"]), *given]


def trunk(options: dict[str, Any]) -> str:
    """Whether the base model learnt too."""
    kinds = {
        "frozen": "frozen",
        "lora": "adapted (LoRA)",
        "full": "trained too",
        "scratch": "trained from scratch",
    }
    return kinds[options["trunk"]]


def held_out(figures: dict[str, float], *, horizon: int) -> str:
    """Figures on held-out text, as a table."""
    rows = {said: f"{figures[name]:g}" for name, said in FIGURES.items() if name in figures}
    rows |= {
        f"-log P of draft {s}, nats": f"{figures[f'nll_{s}']:g}"
        for s in range(1, horizon + 1)
        if f"nll_{s}" in figures
    }
    return table("| on held-out text | |\n|---|---|", rows)


def table(top: str, rows: dict[str, str]) -> str:
    """Two columns of Markdown; empty without rows."""
    return "\n".join([top, *(f"| {name} | {value} |" for name, value in rows.items())]) if rows else ""
