"""One training run, from paths to a head folder: data, head, trainer, checkpoints, curves."""

from __future__ import annotations

import json
import math
import resource
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_utils import get_last_checkpoint

from polydraft.errors import InputError
from polydraft.files import write_atomic
from polydraft.heads import DraftConfig, DraftHead
from polydraft.heads.fingerprint import check_base
from polydraft.training.cache import cache_bytes, load_or_cache
from polydraft.training.data import Document, data_hash, read_documents, split, windows
from polydraft.training.options import TrainOptions
from polydraft.training.start import new_head
from polydraft.training.trainer import DraftTrainer
from polydraft.versions import versions

OnNote = Callable[[str], None]


def train(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    data: Sequence[Path],
    out: Path,
    *,
    options: TrainOptions,
    init_from: DraftHead | None = None,
    resume: bool = False,
    cache: Path | None = None,
    command: str = "",
    callbacks: Sequence[TrainerCallback] = (),
    on_note: OnNote = lambda line: None,
) -> DraftHead:
    """Train a head and write it to `out`, with `training.json` (options, curves) beside it.

    `cache`: a folder for the base model's hidden states; None computes them on the fly.

    Checkpoints lie in `out/checkpoints` until the run is complete. The same options, data and seed
    after a kill and `resume` end in the same weights as an undisturbed run.

    Raises:
        InputError: bad data, options, or an `out` that holds something else.
    """
    documents = read_documents(data, tokenizer)
    training, held_out = split(documents, held_out=options.held_out, seed=options.seed)
    training, held_out = (windows(part, max_length=options.max_length) for part in (training, held_out))
    if not training or not held_out:
        raise InputError("the data is too short: no document has three tokens to learn from")
    identity = {"options": asdict(options), "data": data_hash(documents), "init_from": init_from is not None}
    checkpoint = check_folder(out, identity, resume=resume)
    set_seed(options.seed)
    head = new_head(head_config(options, model), model, tokenizer, training, init_from=init_from)
    if checkpoint is not None:
        check_base(DraftConfig.from_pretrained(checkpoint).base_model or {}, model, tokenizer)
    on_note(describe(training, held_out))
    if cache is not None:
        size = cache_bytes(model, [*training, *held_out])
        on_note(f"hidden states in {cache}: {size / 2**20:,.0f} MiB")
        training, held_out = (
            load_or_cache(cache, model, part, on_progress=_tenths(on_note)) for part in (training, held_out)
        )
    (out / "checkpoints").mkdir(parents=True, exist_ok=True)
    write_atomic(out / "run.json", json.dumps(identity, indent=1) + "\n")
    trainer = DraftTrainer(
        model=model,
        head=head,
        training=training,
        held_out=held_out,
        weights=options.weights,
        anchors_per_window=options.anchors_per_window,
        arguments=trainer_arguments(options, out, on_cpu=model.device.type == "cpu"),
    )
    trainer.remove_callback(PrinterCallback)
    for callback in callbacks:
        trainer.add_callback(callback)
    trainer.train(resume_from_checkpoint=checkpoint)
    finish(trainer, out, identity=identity, command=command)
    return head


def head_config(options: TrainOptions, model: PreTrainedModel) -> DraftConfig:
    """The head's configuration for this base model."""
    base = model.config.get_text_config()
    names = (
        "joint", "rank", "horizon", "features", "feature_size", "map_rank", "markov_rank", "components",
        "own_unembedding",
    )  # fmt: skip
    return DraftConfig(
        hidden_size=base.hidden_size,
        vocab_size=base.vocab_size,
        draft_vocab_size=min(options.draft_vocab_size, base.vocab_size),
        **{name: getattr(options, name) for name in names},
    )


def trainer_arguments(options: TrainOptions, out: Path, *, on_cpu: bool) -> TrainingArguments:
    """Arguments of the Trainer; the head trains in float32, its products with U' in the base's dtype."""
    return TrainingArguments(
        output_dir=str(out / "checkpoints"),
        max_steps=options.steps,
        per_device_train_batch_size=options.batch_size,
        per_device_eval_batch_size=options.batch_size,
        gradient_accumulation_steps=options.accumulate,
        learning_rate=options.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=min(options.warmup, options.steps // 2),
        weight_decay=0.0,
        logging_steps=min(20, options.every),
        eval_strategy="steps",
        eval_steps=options.every,
        save_steps=options.every,
        save_total_limit=2,
        remove_unused_columns=False,
        disable_tqdm=True,
        report_to=list(options.report_to) or "none",
        seed=options.seed,
        use_cpu=on_cpu,
    )


def check_folder(out: Path, identity: dict[str, Any], *, resume: bool) -> str | None:
    """Check that `out` is free, or holds the same run; returns the checkpoint to continue from.

    Raises:
        InputError: `out` holds a run and `resume` is off, a finished one, or one of other options or data.
    """
    record = out / "run.json"
    if record.exists():
        if (out / "config.json").exists():
            raise InputError(f"{out} holds a finished run: choose another --out")
        if not resume:
            raise InputError(
                f"{out} already holds a training run: continue it with --resume, or choose another --out"
            )
        if json.loads(record.read_text()) != json.loads(json.dumps(identity)):
            raise InputError(
                f"{out} holds a run of other options or data: give the same ones, or choose another --out"
            )
    elif out.exists() and any(out.iterdir()):
        raise InputError(f"{out} is not empty and holds no training run: choose another --out")
    elif resume:
        raise InputError(f"{out} holds no training run to resume")
    return last_complete_checkpoint(out / "checkpoints")


def last_complete_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that was written to its end; later, broken ones are removed.

    The Trainer writes `trainer_state.json` last, so a folder where it does not parse was cut short.
    """
    while folder.exists():
        found: str | None = get_last_checkpoint(str(folder))
        if found is None:
            break
        try:
            json.loads((Path(found) / "trainer_state.json").read_text())
        except (OSError, json.JSONDecodeError):
            shutil.rmtree(found)
        else:
            return found
    return None


def finish(trainer: DraftTrainer, out: Path, *, identity: dict[str, Any], command: str) -> None:
    """Write the head, in the base model's dtype, with its provenance and curves; drop the checkpoints."""
    history = trainer.state.log_history
    last = next((row for row in reversed(history) if "eval_nll" in row), None)
    if last is None or last["step"] != trainer.state.global_step:
        trainer.evaluate()
        last = history[-1]
    figures = {k.removeprefix("eval_"): round(v, 4) for k, v in last.items() if k.startswith("eval_")}
    head = trainer.head.to(trainer.base.dtype)
    head.config.provenance = {
        "command": command,
        "data": identity["data"],
        "versions": versions(),
        "held_out": {k: v for k, v in figures.items() if math.isfinite(v)},
        "peak_memory_mib": peak_memory_mib(),
    }
    write_atomic(out / "training.json", json.dumps(identity | {"history": history}, indent=1) + "\n")
    head.save_pretrained(out / "checkpoints" / "final")
    for name in ("model.safetensors", "config.json"):  # the config last: with it the folder is a head
        (out / "checkpoints" / "final" / name).replace(out / name)
    shutil.rmtree(out / "checkpoints")


def peak_memory_mib() -> int:
    """Peak resident memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10))


def describe(training: Sequence[Document], held_out: Sequence[Document]) -> str:
    """One line about the data."""
    tokens = sum(len(d.input_ids) - d.learn_from for d in training)
    return (
        f"{len(training):,} windows with {tokens:,} tokens to learn from; {len(held_out):,} windows held out"
    )


def _tenths(on_note: OnNote) -> Callable[[int, int], None]:
    """Report progress ten times in all."""
    shown = 0

    def report(done: int, total: int) -> None:
        nonlocal shown
        if done * 10 // total > shown:
            shown = done * 10 // total
            on_note(f"hidden states: {done:,} of {total:,} windows")

    return report
