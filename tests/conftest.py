"""What every test starts from: one thread, no network, fixed seeds."""

from __future__ import annotations

import os
import random
from collections.abc import Iterable
from importlib import import_module, metadata

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if os.environ.get("ATEN_CPU_CAPABILITY") in ("default", "avx2"):
    # torch asks oneDNN whether the CPU multiplies bfloat16 in tiles (AMX): an older CPU has neither
    os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX2")

import pytest
import torch
from hypothesis import settings
from packaging.version import Version
from transformers.integrations import peft

from polydraft import modes

settings.register_profile("fixed", derandomize=True, deadline=None)
settings.load_profile("fixed")
torch.set_num_threads(1)


def pytest_collection_modifyitems(items: Iterable[pytest.Item]) -> None:
    """Without the PEFT that this transformers asks for there are no adapters."""
    least, have = peft.MIN_PEFT_VERSION, metadata.version("peft")
    if Version(have) < Version(least):
        for item in items:
            if item.get_closest_marker("adapters"):
                item.add_marker(pytest.mark.skip(reason=f"peft {have}: transformers asks for {least}"))


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _whole_chains(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drafts do not pay with tiny models: whole chains all the same, unless a test asks otherwise."""
    monkeypatch.setattr(modes, "DRAFT_LENGTH", 1_000)
    monkeypatch.setattr(import_module("polydraft.decoding.plan"), "takes_trees", lambda model: False)
