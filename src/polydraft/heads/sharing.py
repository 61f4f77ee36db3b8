"""How a head gets to a hub: by its folder, which holds what the head in memory does not."""

from __future__ import annotations

from typing import Any

from polydraft.errors import PolydraftError

BY_FOLDER = (
    "a head goes to the hub by its folder, with its card and the record of its training: save it with "
    "save_pretrained(DIR), then `polydraft push DIR owner/name` or polydraft.hub.push_head(DIR, 'owner/name')"
)


class PushedByFolder:
    """Refuses the ways of `PreTrainedModel` that push a model out of memory."""

    def push_to_hub(self, *args: Any, **kwargs: Any) -> str:
        """Always refused; see `polydraft.hub.push_head`.

        Raises:
            PolydraftError: says what to do.
        """
        raise PolydraftError(BY_FOLDER)

    def save_pretrained(self, *args: Any, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Save as `PreTrainedModel` does, into a folder and nowhere else.

        Raises:
            PolydraftError: `push_to_hub` is on.
        """
        if push_to_hub:
            self.push_to_hub()
        parent: Any = super()
        parent.save_pretrained(*args, **kwargs)
