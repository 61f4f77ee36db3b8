"""Atomic writes: a reader sees the old file or the whole new one, never a part."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from polydraft.errors import PolydraftError


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write `content` beside `path`, flush it to disk, then rename it into place.

    Raises:
        OSError: the folder is missing, not writable or full; `path` is then left as it was.
    """
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


@contextmanager
def saving(path: Path) -> Iterator[None]:
    """Around what writes safetensors at `path`: their own error for a full disk becomes one clear line.

    Raises:
        PolydraftError: it could not be written.
    """
    try:
        yield
    except SafetensorError as error:
        raise PolydraftError(
            f"cannot write {path}: {error}; make room on the disk and run the same again, with --resume "
            "where a training was under way"
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
