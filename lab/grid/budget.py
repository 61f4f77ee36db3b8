"""The time that a call may take."""

from __future__ import annotations

import time


class Budget:
    """Minutes from now on; None is without end."""

    def __init__(self, minutes: float | None) -> None:
        self._end = None if minutes is None else time.monotonic() + 60 * minutes

    @property
    def spent(self) -> bool:
        """Whether they are over."""
        return self._end is not None and time.monotonic() >= self._end
