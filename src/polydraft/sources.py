"""Where models and heads lie, by name: what comes with the package, folders, and the hub."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from polydraft.embedded import EMBEDDED
from polydraft.errors import InputError, first_line
from polydraft.resources import shipped

HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?(@\w[\w./-]*)?")
MAIN = "main"
"""The revision that is meant where none is named."""
ADAPTER = "adapter"
"""Folder of a LoRA adapter, below that of the head trained with it."""


def head_source(name: str) -> str:
    """Folder or hub id of a head; the shipped one under the embedded model's name.

    Raises:
        InputError: neither.
    """
    return str(shipped("heads", EMBEDDED)) if name == EMBEDDED else resolve(name, what="head")


def adapter_folder(name: str) -> Path:
    """Folder of a LoRA adapter: `name` itself, or `adapter` below the head of that folder or hub id.

    Raises:
        InputError: neither a folder nor on the hub.
    """
    local = Path(name)
    found = local if local.is_dir() else head_folder(name, only=(f"{ADAPTER}/*",), what="adapter")
    return found / ADAPTER if (found / ADAPTER).is_dir() else found


def head_folder(name: str, *, only: Sequence[str] | None = None, what: str = "head") -> Path:
    """The folder of a head as `load_head` takes it; of a hub id, where its files lie in the hub's cache.

    Args:
        only: patterns of the files to fetch from a hub; None for all.

    Raises:
        InputError: there is none.
    """
    source, revision = pinned(head_source(name) if what == "head" else resolve(name, what=what))
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import snapshot_download

    with one_line_errors(name, what=what):
        return Path(snapshot_download(source, revision=revision, allow_patterns=list(only) if only else None))


def pinned(source: str) -> tuple[str, str]:
    """Folder or hub id, and the revision that `owner/name@revision` names: a branch, tag or commit."""
    if Path(source).is_dir():
        return source, MAIN
    name, _, revision = source.partition("@")
    return name, revision or MAIN


def commit(source: str, revision: str) -> str | None:
    """The commit that a model was loaded from, as the hub's cache has it; None for a folder."""
    if Path(source).is_dir():
        return None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(source, "config.json", revision=revision)
    return Path(found).parent.name if isinstance(found, str) else None


def resolve(name: str, *, what: str) -> str:
    """`name` if it is a transformers folder or could be a hub id.

    What starts like a path, or lies in a folder that exists, is a path and never looked up on a hub.

    Raises:
        InputError: a path at which there is no such folder.
    """
    path = Path(name)
    if name and path.is_dir():
        if not (path / "config.json").is_file():
            raise InputError(f"{name!r} is no {what} folder: it has no config.json")
        return str(path)
    if path.is_file():
        kind = "GGUF weights are not read" if path.suffix == ".gguf" else "a file is no model"
        raise InputError(
            f"no {what} folder at {name!r}: {kind}: give a folder with config.json, weights and tokenizer, a "
            f"hub id (owner/name), or {EMBEDDED!r}"
        )
    if path.exists() or not HUB_ID.fullmatch(name) or ("/" in name and path.parent.is_dir()):
        raise InputError(
            f"no {what} folder at {name!r}: give a folder, a hub id (owner/name), or {EMBEDDED!r}"
        )
    return name


@contextmanager
def one_line_errors(name: str, *, what: str) -> Iterator[None]:
    """Turn what transformers, safetensors and the hub raise into one `InputError` line."""
    from safetensors import SafetensorError

    try:
        yield
    except InputError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError, ImportError) as error:
        reason = hub_reason(error) or first_line(error)
        raise InputError(f"cannot load the {what} {name!r}: {reason}") from error


def hub_reason(error: BaseException | None) -> str | None:
    """Why the hub did not give a file, and what to do; None if it had no part in `error` or its causes."""
    from huggingface_hub import errors

    while error is not None:
        if isinstance(error, errors.GatedRepoError):
            return (
                "the hub gives it to those alone who were let in: ask on its page, then run `hf auth login`"
            )
        if isinstance(error, errors.RepositoryNotFoundError):
            return (
                "the hub has no such repository, or hides it: check the name; for a private one run "
                "`hf auth login` or set HF_TOKEN"
            )
        if isinstance(error, errors.RevisionNotFoundError):
            return "the repository has no such revision: give a branch, a tag or a commit"
        if isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
            return "it is not in the cache, and the hub is out of reach, or HF_HUB_OFFLINE is set"
        error = error.__cause__ or error.__context__
    return None
