"""From `TrainOptions` to the arguments of the transformers Trainer."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from transformers import TrainingArguments
from transformers.integrations.integration_utils import get_available_reporting_integrations

from polydraft.errors import InputError
from polydraft.ranks import world_size
from polydraft.training.options import TrainOptions


def trainer_arguments(options: TrainOptions, out: Path, *, on_cpu: bool) -> TrainingArguments:
    """Arguments of the Trainer.

    The head trains in float32, its products with U' in the base's dtype; mixed precision is autocast over
    the head, and over a trained trunk.
    """
    sharded: Any = {"fsdp": True, "fsdp_config": {"version": 2, "state_dict_type": "FULL_STATE_DICT"}}
    return TrainingArguments(
        output_dir=str(out / "checkpoints"),
        max_steps=options.steps,
        per_device_train_batch_size=options.batch_size,
        per_device_eval_batch_size=options.batch_size,
        gradient_accumulation_steps=options.accumulate,
        learning_rate=options.learning_rate,
        lr_scheduler_type=options.scheduler,
        warmup_steps=min(options.warmup, options.steps // 2),
        weight_decay=options.weight_decay,
        bf16=options.mixed_precision == "bf16",
        fp16=options.mixed_precision == "fp16",
        logging_steps=min(20, options.every),
        logging_nan_inf_filter=False,
        eval_strategy="steps",
        eval_steps=options.every,
        save_steps=options.every,
        save_total_limit=2,
        remove_unused_columns=False,
        disable_tqdm=True,
        report_to=list(options.report_to) or "none",
        seed=options.seed,
        use_cpu=on_cpu,
        average_tokens_across_devices=True,
        ddp_find_unused_parameters=options.trunk != "frozen",
        **(sharded if options.fsdp else {}),
    )


def check_arguments(options: TrainOptions, *, on_cpu: bool) -> None:
    """What only the machine and its packages can tell.

    Raises:
        InputError: an integration of `report_to` that is unknown or not installed, float16 on a CPU, or
            sharding over one process.
    """
    found = sorted(get_available_reporting_integrations())
    for name in options.report_to:
        if name not in found:
            listed = ", ".join(found) or "none"
            raise InputError(f"--report-to {name}: not known or not installed; installed are: {listed}")
    if options.mixed_precision == "fp16" and on_cpu:
        raise InputError("--mixed-precision fp16 needs a GPU: on a CPU use bf16 or no")
    if options.fsdp and world_size() == 1:
        raise InputError("--fsdp shards over processes, and there is one: start it with torchrun")
    if not options.fsdp and os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        raise InputError("accelerate asks for FSDP: say so to polydraft too, with --fsdp")
