"""The compiled path against the model's own forward: the same numbers, and few programs.

Most tests run what the compiler traces as it is, which takes no C++; one compiles all the way.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from polydraft.decoding.compiled import Compiled
from polydraft.decoding.compiled_attention import grouped_attention
from polydraft.decoding.trunk import EagerTrunk, Trunk
from polydraft.errors import InputError
from polydraft.forwards import turn
from polydraft.slots import SlotCache
from tests.tiny import tiny_model

KINDS = (
    *("llama", "gemma2"),
    *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("gpt2", "cohere2", "falcon", "qwen2_moe")),
)
TREE = [-1, 0, 0, 1, 2]


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs are traced and run as they are."""
    torch._dynamo.reset()
    counters.clear()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))


def programs() -> int:
    """How many have been made."""
    return int(counters["stats"]["unique_graphs"])


def prompts_of(rows: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(rows)
    return [torch.randint(1, 64, (9 + 4 * row,), generator=generator) for row in range(rows)]


def play(trunk: Trunk, prompts: Sequence[Tensor]) -> list[Tensor]:
    """Logits of a prefill, and of forwards of several widths and a tree; rows keep different numbers."""
    rows = len(prompts)
    out = [trunk.prefill(prompts)]
    generator = torch.Generator().manual_seed(1)
    for width, parents in ((3, None), (1, None), (5, [TREE] * rows), (4, None)):
        tokens = torch.randint(1, 64, (rows, width), generator=generator)
        out.append(trunk.forward(tokens, parents=parents))
        out.append(trunk.hidden)
        trunk.keep([[0, 2, 4] if parents else range(min(width, 1 + row)) for row in range(rows)])
    if rows > 1:
        trunk.select([2, 0])
        out.append(trunk.forward(torch.ones(2, 2, dtype=torch.long)))
        trunk.keep([[0], [0, 1]])
        trunk.select([1])
        out.append(trunk.forward(torch.ones(1, 2, dtype=torch.long)))
    return out


def played(model: PreTrainedModel, compiled: Compiled, rows: int, **taps: Any) -> list[tuple[Tensor, Tensor]]:
    """The same played by the model's own forward and by what is compiled."""
    with torch.no_grad(), EagerTrunk(model, taps=taps, rows=rows) as trunk:
        plain = play(trunk, prompts_of(rows))
    with torch.no_grad(), compiled.trunk(taps=taps, rows=rows) as trunk:
        return list(zip(plain, play(trunk, prompts_of(rows)), strict=True))


def same(pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    for plain, found in pairs:
        torch.testing.assert_close(found, plain, atol=1e-4, rtol=1e-4)


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("kind", KINDS)
def test_rows_trees_and_states_are_those_of_the_model(kind: str) -> None:
    model = tiny_model(kind)
    compiled = Compiled(model, rows=3)
    made = programs()
    for rows in (1, 3):
        same(played(model, compiled, rows))
    assert programs() == made


@pytest.mark.usefixtures("traced")
def test_other_threads_wait_until_the_model_is_as_it_was() -> None:
    model, free = tiny_model("llama"), list[bool]()
    compiled = Compiled(model)

    def look() -> None:
        free.append(turn(model).acquire(blocking=False))
        if free[-1]:
            turn(model).release()

    def elsewhere() -> None:
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()

    with torch.no_grad(), compiled.trunk(taps={}, rows=1) as trunk:
        trunk.prefill(prompts_of(1))
        elsewhere()  # between two forwards too
    elsewhere()
    assert free == [False, True]


@pytest.mark.usefixtures("traced")
def test_further_layers_are_tapped() -> None:
    model = tiny_model("llama")
    same(played(model, Compiled(model), 1, layers=[1], every=True))


@pytest.mark.usefixtures("traced")
def test_two_programs_serve_all_layers_widths_and_contexts() -> None:
    model = tiny_model("llama", num_hidden_layers=6)
    compiled = Compiled(model)
    assert programs() == 2
    with torch.no_grad(), compiled.trunk(taps={}, rows=1) as trunk:
        trunk.prefill(prompts_of(1))
        for width in (1, 2, 3, 8, 16, 5, 300, 1):  # 300: the slots grow on the way
            trunk.forward(torch.ones(1, width, dtype=torch.long))
            trunk.keep([range(width)])
    assert programs() == 2


@pytest.mark.usefixtures("traced")
def test_outside_a_trunk_the_model_is_as_it_was() -> None:
    model = tiny_model("llama")
    layers = cast(Any, model).model.layers
    compiled = Compiled(model)
    trunk = compiled.trunk(taps={}, rows=1)
    with torch.no_grad(), trunk:
        trunk.prefill(prompts_of(1))
        assert model.config._attn_implementation != "sdpa"
        with pytest.raises(IndexError):
            trunk.forward(torch.full((1, 2), 10_000))
    assert model.config._attn_implementation == "sdpa"
    assert all("forward" not in layer.__dict__ for layer in layers)


@pytest.mark.usefixtures("traced")
def test_each_stage_is_told() -> None:
    said: list[str] = []
    Compiled(tiny_model("llama"), rows=2, on_progress=said.append)
    assert len(said) == 5


def test_layers_that_share_states_are_refused() -> None:
    with pytest.raises(InputError, match="share keys and values"):
        Compiled(tiny_model("gemma3n"))


def test_a_model_that_takes_no_masks_is_refused() -> None:
    model = tiny_model("llama")
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(InputError, match="takes no masks"):
        Compiled(model)


@pytest.mark.parametrize(("heads", "groups"), [(4, 2), (6, 2), (4, 4), (4, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_grouped_queries_see_what_they_saw(heads: int, groups: int, dtype: torch.dtype) -> None:
    torch.manual_seed(heads)
    query = torch.randn(2, heads, 5, 16, dtype=dtype)
    key, value = (torch.randn(2, groups, 40, 16, dtype=dtype) for _ in range(2))
    mask = torch.rand(2, 1, 5, 40) < 0.5
    mask[..., 0] = True
    module = torch.nn.Module()
    cast(Any, module).num_key_value_groups = heads // groups
    plain, _ = sdpa_attention_forward(module, query, key, value, mask, scaling=0.3)
    found, _ = grouped_attention(module, query, key, value, mask, scaling=0.3)
    torch.testing.assert_close(found, plain)


@pytest.mark.slow
def test_compiled_all_the_way_greedy_text_is_that_of_generate() -> None:
    torch._dynamo.reset()
    model = tiny_model("llama")
    compiled = Compiled(model)
    same(played(model, compiled, 1))
    prompt = prompts_of(1)[0]
    with torch.no_grad(), compiled.trunk(taps={}, rows=1) as trunk:
        text = [int(trunk.prefill([prompt]).argmax())]
        while len(text) < 24:
            text.append(int(trunk.forward(torch.tensor([[text[-1]]])).argmax()))
            trunk.keep([[0]])
    out = cast(Any, model).generate(prompt[None], max_new_tokens=24, do_sample=False)
    assert text == out[0, len(prompt) :].tolist()


def test_slots_are_never_all_in_use() -> None:
    """Programs are made for fewer slots read than there are; the other case would be compiled anew."""
    for width in (1, 255, 256, 257, 511, 512):
        cache = SlotCache([None], rows=1)
        assert cache.reserve(width) < cache.capacity
