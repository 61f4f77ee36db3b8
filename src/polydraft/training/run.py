"""One training run, from paths to a head folder: data, head, trainer, checkpoints, curves."""

from __future__ import annotations

import json
import math
import resource
import shutil
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    set_seed,
)
from transformers.trainer_callback import PrinterCallback

from polydraft.errors import InputError
from polydraft.files import saving, write_atomic
from polydraft.heads import DraftConfig, DraftHead
from polydraft.heads.block import block_sizes
from polydraft.heads.fingerprint import check_base, describe_base
from polydraft.limits import check_positions
from polydraft.ranks import rank
from polydraft.training import distributed, guards
from polydraft.training.arguments import check_arguments, trainer_arguments
from polydraft.training.cache import cache_bytes, load_or_cache
from polydraft.training.data import Document, split, take_documents, windows
from polydraft.training.folder import check_folder, run_identity
from polydraft.training.objective import Objective
from polydraft.training.online import Online, check_online
from polydraft.training.options import TrainOptions
from polydraft.training.order import DocumentDataset
from polydraft.training.packing import PackedDataset, check_packing
from polydraft.training.rounds import OnlineDataset, Writer
from polydraft.training.start import new_head
from polydraft.training.trainer import DraftTrainer
from polydraft.training.trunk import check_trunk, make_trunk
from polydraft.training.validation import by_temperature, choose, missing_figures
from polydraft.versions import versions

OnNote = Callable[[str], None]
GUESS = (
    "held-out text of unknown origin: its acceptance lengths are those of decoding only where this model "
    "wrote the text (polydraft collect)"
)


def _unheard(line: str) -> None:
    """For processes that do not speak."""


def train(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    data: Sequence[Path] | Sequence[Document] | Online,
    out: Path,
    *,
    options: TrainOptions,
    init_from: DraftHead | None = None,
    resume: bool = False,
    cache: Path | None = None,
    command: str = "",
    callbacks: Sequence[TrainerCallback] = (),
    on_note: OnNote = _unheard,
    peer_timeout: int = distributed.PEER_TIMEOUT,
) -> DraftHead:
    """Train a head and write it to `out`, with `training.json` (options, curves) beside it.

    `data`: text, by its paths or read before, or prompts that the base model continues as training goes on.
    `cache`: a folder for the base model's hidden states; None computes them on the fly.
    `peer_timeout`: seconds that one of several processes waits for another before the run ends.

    Checkpoints lie in `out/checkpoints` until the run is complete. The same options, data and seed
    after a kill and `resume` end in the same weights as an undisturbed run.

    Raises:
        InputError: bad data, options, or an `out` that holds something else.
        PolydraftError: the loss is not finite, or another process of the run is gone.
    """
    distributed.start(timeout=peer_timeout)
    on_cpu = model.device.type == "cpu"
    if rank() > 0:
        on_note = _unheard
    with distributed.together():
        check_arguments(options, on_cpu=on_cpu)
        check_window(options, model)
        check_trunk(options, cached=cache is not None, online=isinstance(data, Online))
        if options.packing:
            check_packing(model)
        if isinstance(data, Online):
            check_online(options, cached=cache is not None)
            writer = Writer(model, tokenizer, data, options)
            identity = run_identity(options, writer.documents, model, init_from) | {"online": data.identity}
        else:
            writer, documents = None, take_documents(data, model, tokenizer)
            training, held_out = windows_of(documents, options)
            identity = run_identity(options, documents, model, init_from)
        checkpoint = check_folder(out, identity, resume=resume) if rank() == 0 else None
    checkpoint = distributed.from_first(checkpoint)
    if writer is not None:
        with distributed.together():
            written = (writer.vocabulary(checkpoint), writer.held_out()) if rank() == 0 else None
        training, held_out = distributed.from_first(written) or ([], [])
    set_seed(options.seed)
    with distributed.together():
        trunk = make_trunk(model, options, held_out=held_out)
        head = new_head(
            head_config(options, model),
            model,
            tokenizer,
            training,
            init_from=init_from,
            block_start=options.block_start,
            draft_vocab=options.draft_vocab,
        )
        if checkpoint is not None:
            check_base(DraftConfig.from_pretrained(checkpoint).base_model or {}, model, tokenizer)
    on_note(describe(training, held_out) if writer is None else writer.describe(held_out))
    text = {"training_tokens": tokens_of(training)} if writer is None else {}
    for line in missing_figures(held_out):
        on_note(line)
    if any(window.temperature is None for window in held_out):
        on_note(GUESS)
    if cache is not None:
        size = cache_bytes(model, [*training, *held_out], layers=options.layers)
        on_note(f"hidden states in {cache}: {size / 2**20:,.0f} MiB")
        training, held_out = (
            distributed.first_alone(
                partial(
                    load_or_cache, cache, model, part, layers=options.layers, on_progress=_tenths(on_note)
                )
            )
            for part in (training, held_out)
        )
    if rank() == 0:
        (out / "checkpoints").mkdir(parents=True, exist_ok=True)
        write_atomic(out / "run.json", json.dumps(identity, indent=1) + "\n")
    objective = Objective(
        head,
        model,
        weights=options.weights,
        anchors_per_window=options.anchors_per_window,
        trunk=trunk,
    )
    if checkpoint is not None:
        objective.load(checkpoint)
    rows = DocumentDataset(training) if writer is None else OnlineDataset(writer, options)
    if options.packing:
        rows = PackedDataset(training, size=options.max_length)
    trainer = DraftTrainer(
        objective=objective,
        training=rows,
        held_out=held_out,
        arguments=trainer_arguments(options, out, on_cpu=on_cpu),
    )
    trainer.remove_callback(PrinterCallback)
    warmup = trainer.args.warmup_steps
    for callback in (*callbacks, guards.ComponentGuard(on_note, rank=head.config.rank, warmup=int(warmup))):
        trainer.add_callback(callback)
    with distributed.lost_peers_in_one_line(), saving(out):
        trainer.train(resume_from_checkpoint=checkpoint)
        found = settle(trainer, out, tokenizer, on_note=on_note)
        found |= text | guards.dead_record(trainer.state.log_history, warmup=int(warmup))
        return finish(trainer, out, identity=identity, command=command, report=found)


def check_window(options: TrainOptions, model: PreTrainedModel) -> None:
    """Refuse windows that are longer than the model has positions.

    Raises:
        InputError: says how long they may be.
    """
    check_positions(model, options.max_length, what=f"a --max-length of {options.max_length} is too long")


def windows_of(documents: Sequence[Document], options: TrainOptions) -> tuple[list[Document], list[Document]]:
    """Windows to train on, and held-out ones.

    Raises:
        InputError: there are none.
    """
    training, held_out = split(documents, held_out=options.held_out, seed=options.seed)
    training = windows(training, max_length=options.max_length)
    held_out = choose(
        held_out, max_length=options.max_length, most=options.validation_windows, seed=options.seed
    )
    if not training or not held_out:
        raise InputError("the data is too short: no document has three tokens to learn from")
    return training, held_out


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
        layers=list(options.layers),
        block=block_sizes(base) if options.features == "block" else {},
        **{name: getattr(options, name) for name in names},
    )


def settle(
    trainer: DraftTrainer, out: Path, tokenizer: PreTrainedTokenizerBase, *, on_note: OnNote
) -> dict[str, Any]:
    """End the training of a trunk, write it, and make the head that of the trained model.

    Returns:
        `base_loss`: held-out nats per token of the base model before and after; nothing for a frozen one.
    """
    trunk, head = trainer.objective.trunk, trainer.objective.head
    if trunk is None:
        return {}
    trunk.settle()
    after = trunk.own_loss()
    if rank() == 0:
        trunk.publish(out, tokenizer)
    head.config.base_model = describe_base(trunk.model, tokenizer)
    head.refresh()
    on_note(f"base model on held-out text: {trunk.before:.4f} nats per token before, {after:.4f} after")
    on_note(f"trained {trunk.folder} in {out / trunk.folder}")
    return {"base_loss": {"before": trunk.before, "after": after}}


def finish(
    trainer: DraftTrainer, out: Path, *, identity: dict[str, Any], command: str, report: dict[str, Any]
) -> DraftHead:
    """Write the head, in the base model's dtype, with its provenance and curves; drop the checkpoints.

    Args:
        report: further figures, for both.

    Returns:
        the head as it is written.
    """
    history = trainer.state.log_history
    last = next((row for row in reversed(history) if "eval_nll" in row), None)
    if last is None or last["step"] != trainer.state.global_step:
        trainer.evaluate()
        last = history[-1]
    figures = {k.removeprefix("eval_"): round(v, 4) for k, v in last.items() if k.startswith("eval_")}
    head = trainer.whole_head()
    nn.Module.to(head, trainer.objective.base.dtype)
    if rank() == 0:
        head.config.provenance = {
            "command": command,
            "data": identity["data"],
            "versions": versions(),
            "held_out": {k: v for k, v in figures.items() if math.isfinite(v)},
            "peak_memory_mib": peak_memory_mib(),
            **report,
        }
        record = identity | report | {"history": history}
        write_atomic(out / "training.json", json.dumps(record, indent=1) + "\n")
        with saving(out):
            head.save_pretrained(out / "checkpoints" / "final")
        for name in ("model.safetensors", "config.json"):  # the config last: with it the folder is a head
            (out / "checkpoints" / "final" / name).replace(out / name)
        shutil.rmtree(out / "checkpoints")
    distributed.wait()
    return head


def peak_memory_mib() -> int:
    """Peak resident memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10))


def describe(training: Sequence[Document], held_out: Sequence[Document]) -> str:
    """One line about the data."""
    tokens, shares = tokens_of(training), by_temperature(held_out)
    return (
        f"{len(training):,} windows with {tokens:,} tokens to learn from; {len(held_out):,} windows held out"
        + (f" ({shares})" if shares else "")
    )


def tokens_of(documents: Sequence[Document]) -> int:
    """How many tokens there are to learn from."""
    return sum(len(document.input_ids) - document.learn_from for document in documents)


def _tenths(on_note: OnNote) -> Callable[[int, int], None]:
    """Report progress ten times in all."""
    shown = 0

    def report(done: int, total: int) -> None:
        nonlocal shown
        if done * 10 // total > shown:
            shown = done * 10 // total
            on_note(f"hidden states: {done:,} of {total:,} windows")

    return report
