"""A head's folder, put on a hub as it is: weights, configuration, card, record of its training, adapter."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from polydraft.bench.describe import describe_head
from polydraft.errors import InputError, PolydraftError, first_line
from polydraft.hub.card import CARD, write_card
from polydraft.hub.history import RECORD
from polydraft.sources import ADAPTER, MAIN

FILES = (CARD, "config.json", "model.safetensors", RECORD, "training.png")
REPO = re.compile(r"\w[\w.-]*/\w[\w.-]*")
UNAUTHORIZED = (401, 403)


def pushed_files(folder: Path) -> list[Path]:
    """The files of a head's folder that go to a hub; checkpoints and a trained base model do not.

    Raises:
        InputError: no head is there.
    """
    describe_head(str(folder))
    found = [folder / name for name in FILES] + sorted((folder / ADAPTER).glob("*"))
    return [path for path in found if path.is_file()]


def push_head(folder: Path, repo: str, *, private: bool = False, revision: str = MAIN) -> str:
    """Upload the head in `folder` in one commit; a repository, branch or card that is missing is made first.

    Args:
        repo: owner/name. private: of a repository that is made. revision: the branch.

    Returns:
        the address of the commit.

    Raises:
        InputError: no head is there, or `repo` is no such name.
        PolydraftError: the hub refuses or cannot be reached.
    """
    check_repo(repo)
    pushed_files(folder)
    from huggingface_hub import HfApi

    if not (folder / CARD).exists():
        write_card(folder, name=repo)
    names = [path.relative_to(folder).as_posix() for path in pushed_files(folder)]
    api = HfApi(library_name="polydraft")
    with one_line_refusals(repo):
        api.create_repo(repo, private=private, exist_ok=True)
        if revision != MAIN:
            api.create_branch(repo, branch=revision, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            allow_patterns=names,
            revision=revision,
            commit_message="Upload a draft head",
        )
    return commit.commit_url


def check_repo(repo: str) -> None:
    """Refuse what is not owner/name.

    Raises:
        InputError: it is not.
    """
    if not REPO.fullmatch(repo):
        raise InputError(f"{repo!r} is no name of a repository: give owner/name")


@contextmanager
def one_line_refusals(repo: str) -> Iterator[None]:
    """Turn what a hub answers into one line.

    Raises:
        InputError, PolydraftError: in place of its exceptions.
    """
    from huggingface_hub import errors

    unreachable: Any = vars(errors)["HTTPError"]  # of httpx or httpx2, as the version has it
    try:
        yield
    except errors.HFValidationError as error:
        raise InputError(f"{repo!r} is no name of a repository: {first_line(error)}") from error
    except errors.OfflineModeIsEnabled as error:
        raise PolydraftError("HF_HUB_OFFLINE is set: unset it to push") from error
    except errors.LocalTokenNotFoundError as error:
        raise PolydraftError("no token for the hub: run `hf auth login`, or set HF_TOKEN") from error
    except errors.HfHubHTTPError as error:
        if error.response.status_code in UNAUTHORIZED:
            raise PolydraftError(
                f"the hub does not let you write to {repo}: run `hf auth login`, or set HF_TOKEN to a token "
                "that may write there"
            ) from error
        reason = error.server_message or f"status {error.response.status_code}"
        raise PolydraftError(f"the hub refuses {repo}: {reason}") from error
    except unreachable as error:
        raise PolydraftError(f"cannot reach the hub: {error}") from error
