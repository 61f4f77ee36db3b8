"""Files that come with polydraft: trained heads and prompts.

A wheel carries them in `polydraft/data`; a checkout has them at the root of the repository.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from polydraft.errors import InputError

PACKAGE = Path(__file__).parent
IN_CHECKOUT = {"heads": "heads", "prompts": "prompts"}


def shipped(kind: Literal["heads", "prompts"], name: str) -> Path:
    """The shipped file or folder `name` of a kind.

    Raises:
        InputError: this installation lacks it.
    """
    for folder in (PACKAGE / "data" / kind, PACKAGE.parent.parent / IN_CHECKOUT[kind]):
        if (folder / name).exists():
            return folder / name
    raise InputError(
        f"{name!r} does not come with this installation of polydraft: give the path of your own {kind}"
    )
