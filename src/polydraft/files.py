"""Atomic writes: a reader sees the old file or the whole new one, never a part."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from polydraft.errors import InputError, PolydraftError, first_line

TORCH_WRITERS = ("inline_container", "PytorchStreamWriter")
"""What torch's errors name when a file could not be written whole."""


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write `content` beside `path`, flush it to disk, then rename it into place.

    Raises:
        InputError: something lies at `path` that is no file; a device would be replaced.
        OSError: the folder is missing, not writable or full; `path` is then left as it was.
    """
    check_file(path)
    data = content.encode() if isinstance(content, str) else content
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        error.filename = str(path)  # a full disk names no file
        raise
    finally:
        temporary.unlink(missing_ok=True)


def check_file(path: Path) -> None:
    """Refuse to write in the place of a folder, a device or a pipe.

    Raises:
        InputError: there is one.
    """
    if path.exists() and not path.is_file():
        kind = "a folder" if path.is_dir() else "a device or a pipe, no file"
        raise InputError(f"{path} is {kind}: give a file name")


@contextmanager
def saving(path: Path) -> Iterator[None]:
    """Around what safetensors and torch write at `path`: their errors for a full disk become one clear line.

    Raises:
        PolydraftError: it could not be written.
    """
    try:
        yield
    except (SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not any(name in str(error) for name in TORCH_WRITERS):
            raise
        raise PolydraftError(
            f"cannot write {path}: {first_line(error)}; make room on the disk and run the same again, with "
            "--resume where a training was under way"
        ) from error


@contextmanager
def write_folder(path: Path) -> Iterator[Path]:
    """A new folder beside `path` to write into, renamed to `path` at the end; an older one is replaced.

    Raises:
        OSError: the parent is missing, not writable or full; `path` is then left as it was.
    """
    partial = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        partial.chmod(0o755)
        yield partial
        shutil.rmtree(path, ignore_errors=True)
        partial.replace(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
