"""A short soak: generations of random form leave nothing behind and say what plain decoding says."""

from __future__ import annotations

import pytest
import torch

from lab.benchmarks import soak


@pytest.mark.slow
def test_a_short_soak() -> None:
    torch.manual_seed(0)
    model = soak.small_model()
    sizes = {"longest": 40, "new": 20, "rows": 5}
    heads = soak.small_heads(model)
    *_, counts = soak.soak(model, heads, generations=60, seed=1, check=1.0, every=12, **sizes)
    assert counts.generations == 60 and counts.rows > 120
    assert counts.checked >= 20 and counts.wrong == 0
    assert counts.faults >= 1
    first, *rest = counts.samples
    assert [sample["tensors"] for sample in rest] == [first["tensors"]] * 4
    assert rest[-1]["memory"] - rest[0]["memory"] < 2  # MiB; one cache of its longest text is 0.2


def test_the_slope_is_that_of_the_second_half() -> None:
    memory = [500.0, 100.0, 90.0, 10.0, 12.0, 14.0]
    samples = [{"generations": 50 * at, "memory": found} for at, found in enumerate(memory, start=1)]
    assert soak.Counts(samples=samples).slope == pytest.approx(40.0)  # 2 MiB in 50 generations
