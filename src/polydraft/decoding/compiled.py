"""The compiled path: the same model and head, their layers compiled and their weights packed.

`Compiled` is made once, which takes seconds, and opens a trunk for every generation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from polydraft.compat import attention_implementation, has_cpp_compiler, layer_programs
from polydraft.decoding.compiled_attention import GroupedAttention
from polydraft.decoding.compiled_layer import VARIANTS, CompiledLayers, Symbols
from polydraft.decoding.refusals import takes_trees
from polydraft.decoding.trunk import EagerTrunk
from polydraft.errors import InputError, PolydraftError
from polydraft.forwards import turn
from polydraft.heads import DraftHead
from polydraft.hidden import decoder_layers
from polydraft.packed import Packed
from polydraft.slots import layer_windows

OnProgress = Callable[[str], None]
WARM_WIDTHS = (7, 1)
"""Tokens of the forwards of the warm-up: one for all widths, and one for single tokens."""
WARM_CONTEXT, WARM_SLOTS = 53, 71
"""Tokens before them, and room for them; sizes that nothing else in a model is likely to have."""


class Compiled:
    """A model, and a head that drafts for it, made fast for forwards over a few tokens.

    On a CPU the linear layers of a bfloat16 model are packed as well, which takes as much memory as their
    weights again. Weights must keep their shapes and dtypes. The model is changed inside a trunk only.

    Args:
        on_progress: called with a line for each stage; see `warm_up`.

    Raises:
        InputError: the model keeps its layers in no list, they share keys and values, or it takes no masks.
        PolydraftError: no C++ compiler, which torch compiles with on a CPU.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        head: DraftHead | None = None,
        *,
        rows: int = 1,
        on_progress: OnProgress | None = None,
    ) -> None:
        say = on_progress or _ignore
        self.model = model
        count = model.config.get_text_config(decoder=True).num_hidden_layers
        if len(layer_windows(model.config)) < count:
            raise InputError(
                f"the layers of {type(model).__name__} share keys and values, which the compiled path does "
                "not know: leave it out"
            )
        if not takes_trees(model):
            raise InputError(
                f"{type(model).__name__} with attention {attention_implementation(model.config)!r} takes no "
                "masks from outside, which the compiled path gives it: leave it out"
            )
        if model.device.type == "cpu":
            check_compiler()
        say("packing the weights")
        self.packed = Packed(model, *([] if head is None else [head]))
        self.attention = GroupedAttention(model)
        self.layers = CompiledLayers(decoder_layers(model, upto=count))
        self._warm: set[int] = set()
        self.warm_up(rows=rows, on_progress=on_progress)

    def trunk(
        self,
        *,
        taps: dict[str, Any],
        rows: int,
        cache: DynamicCache | None = None,
        chunk: int | None = None,
        longest: int | None = None,
    ) -> CompiledTrunk:
        """A trunk for one generation; arguments as of `EagerTrunk`."""
        return CompiledTrunk(self, taps=taps, rows=rows, cache=cache, chunk=chunk, longest=longest)

    @torch.no_grad()
    def warm_up(self, *, rows: int = 1, on_progress: OnProgress | None = None) -> None:
        """Compile what forwards over up to `rows` texts need; quick where torch's disk cache has it."""
        say = on_progress or _ignore
        prompt = torch.zeros(WARM_CONTEXT, dtype=torch.long, device=self.model.device)
        for count in {1, min(rows, 2)} - self._warm:  # two stand for all numbers but one
            with self.trunk(taps={}, rows=count) as trunk:
                trunk.reserve(WARM_SLOTS)
                trunk.prefill([prompt] * count)
                for width in WARM_WIDTHS:
                    say(f"compiling for {_tokens(width)} of {_texts(count)}")
                    sizes = frozenset((width, WARM_CONTEXT + width, WARM_SLOTS))
                    self.layers.symbols = Symbols(count, sizes)
                    trunk.forward(prompt[:width].expand(count, -1))
                    self.layers.symbols = None
            self._warm.add(count)


def warm_up(
    model: PreTrainedModel, head: DraftHead, *, rows: int = 1, on_progress: OnProgress | None = None
) -> Compiled:
    """Compile `model` for `head`, or find that this has been done; it is kept with the head.

    Generations with `compiled=True` do so by themselves; doing it before says what takes the time.

    Args:
        rows: texts decoded at once. on_progress: called with a line for each stage.

    Raises:
        InputError, PolydraftError: as of `Compiled`.
    """
    if head.switch is not None:
        raise InputError("verifier 'base' switches an adapter on and off and cannot be compiled")
    with turn(model):
        found = head.compiled
        if not isinstance(found, Compiled) or found.model is not model:
            found = head.compiled = Compiled(model, head, rows=rows, on_progress=on_progress)
        found.warm_up(rows=rows, on_progress=on_progress)
    return found


def check_compiler() -> None:
    """Refuse a machine that torch cannot compile for.

    Raises:
        PolydraftError: says what to install.
    """
    if not has_cpp_compiler():
        raise PolydraftError("compiling needs a C++ compiler: install g++, or set CXX")


class CompiledTrunk(EagerTrunk):
    """`EagerTrunk` with what is compiled in place of the layers of the model."""

    def __init__(
        self,
        compiled: Compiled,
        *,
        taps: dict[str, Any],
        rows: int,
        cache: DynamicCache | None = None,
        chunk: int | None = None,
        longest: int | None = None,
    ) -> None:
        super().__init__(compiled.model, taps=taps, rows=rows, cache=cache, chunk=chunk, longest=longest)
        self._compiled = compiled
        self._inside = ExitStack()

    def reserve(self, slots: int) -> None:
        """Begin with so much room; for a trunk that has read nothing."""
        self._slots.capacity = slots

    def __enter__(self) -> CompiledTrunk:
        with ExitStack() as inside:
            inside.enter_context(turn(self._compiled.model))
            inside.enter_context(self._compiled.packed)
            inside.enter_context(self._compiled.attention)
            super().__enter__()
            self._inside = inside.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._inside.__exit__(*error)

    def forward(self, tokens: Tensor, *, parents: Sequence[Sequence[int]] | None = None) -> Tensor:
        """See `Trunk`."""
        inputs = self._positions(tokens, parents) | self._masks(tokens, parents)
        with layer_programs(variants=VARIANTS), self._compiled.layers:
            logits = self._logits(tokens, **inputs)
        self.hidden = self._tap.hidden
        return logits


def _tokens(width: int) -> str:
    return "one token" if width == 1 else "several tokens"


def _texts(rows: int) -> str:
    return "one text" if rows == 1 else "several texts"


def _ignore(line: str) -> None:
    pass
