"""The sixth member of the family is registered while these tests run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.joint.toy import registered


@pytest.fixture(autouse=True)
def _toy() -> Iterator[None]:
    with registered():
        yield
