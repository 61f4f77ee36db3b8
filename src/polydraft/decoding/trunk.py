"""The base model as the decoding loop sees it: rows of different lengths, read and checked together."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache, PreTrainedModel

from polydraft.compat import CACHE, cache_name
from polydraft.forwards import arguments, lean, turn
from polydraft.hidden import HiddenTap
from polydraft.masks import slot_mask, tree_depths
from polydraft.slots import SlotCache, layer_windows


class Trunk(AbstractContextManager["Trunk"], Protocol):
    """B rows of text inside a base model; entered for one generation.

    Attributes:
        hidden: (B, w, D), of the last forward, what the head reads; after `prefill` see there.
    """

    hidden: Tensor

    def prefill(self, prompts: Sequence[Tensor]) -> Tensor:
        """Read each row's prompt (T_b,); logits (B, V) after it.

        `hidden` is then (B, T, D) with T the longest prompt, if the tap keeps every position, else
        (B, 1, D), of the last one of each row.
        """

    def read(self, tokens: Tensor) -> Tensor:
        """Read more tokens (k,) of the only row's prompt, which stay; logits (k, V) after each of them.

        `hidden` is then (1, k, D).
        """

    def forward(self, tokens: Tensor, *, parents: Sequence[Sequence[int]] | None = None) -> Tensor:
        """Logits (B, w, V) of the tokens (B, w) after each row's text; `parents` (B, w) make them trees.

        In the model's dtype, of float64 in float32.
        """

    def keep(self, paths: Sequence[Sequence[int]]) -> None:
        """Per row the indices of the forward's tokens that stay, ascending."""

    def select(self, rows: Sequence[int]) -> None:
        """Go on with `rows` alone."""

    def join(self, other: Trunk) -> None:
        """Take in the rows of another trunk of the same kind and model, which is done with them."""

    def end(self) -> None:
        """The generation is over: leave the text in the caller's cache, if there is one."""


class EagerTrunk:
    """`Trunk` by the model's own forward, as it is.

    Args:
        taps: of `HiddenTap`. rows: B.
        cache: what the only row has been told already; left up to date by `end`, and untouched if the
            generation fails.
        chunk: tokens of a prompt read at a time; None for all.
        longest: tokens that the longest row may grow to; None without a limit.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        taps: dict[str, Any],
        rows: int,
        cache: DynamicCache | None = None,
        chunk: int | None = None,
        longest: int | None = None,
    ) -> None:
        self._model = cast(Any, model)
        self._windows = layer_windows(model.config)
        self._slots = SlotCache(self._windows, rows=rows)
        past = {cache_name(type(model).forward) or CACHE: self._slots, "use_cache": True}
        self._always: dict[str, Any] = past | {"return_dict": True} | lean(model)
        self._numbered = "position_ids" in arguments(model)
        self._turn = turn(model)
        self._cache = cache
        if cache is not None:
            self._slots.take(cache)
        self._tap = HiddenTap(model, **taps)
        self._every = self._tap.every
        self._chunk = chunk
        self._longest = longest
        self._keeps = self._model._supports_logits_to_keep()
        self.hidden = torch.empty(rows, 0, 0)

    def __enter__(self) -> EagerTrunk:
        self._tap.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._tap.__exit__(*error)

    def prefill(self, prompts: Sequence[Tensor]) -> Tensor:
        """See `Trunk`."""
        begun = self._slots.lengths
        last = [len(prompt) - 1 for prompt in prompts]
        tokens = pad_sequence(list(prompts), batch_first=True)
        size = self._chunk or tokens.shape[1]
        logits: list[Tensor | None] = [None] * len(prompts)
        states: list[Tensor] = []
        after: list[Tensor | None] = [None] * len(prompts)
        for start in range(0, tokens.shape[1], size):
            part = tokens[:, start : start + size]
            ends = {place - start for place in last if 0 <= place - start < part.shape[1]}
            wanted = sorted(ends | {part.shape[1] - 1})  # the last column always: the tap compares it
            out = self._read(part, wanted)
            if self._every:
                states.append(self._tap.hidden)
            for row, place in enumerate(last):
                if place - start in ends:
                    at = wanted.index(place - start) if self._keeps else place - start
                    logits[row] = out[row, at]
                    after[row] = self._tap.hidden[row, place - start if self._every else at]
            self._slots.keep([range(part.shape[1])] * len(prompts))
        self._slots.lengths = [have + place + 1 for have, place in zip(begun, last, strict=True)]
        self.hidden = torch.cat(states, 1) if self._every else torch.stack(cast(list[Tensor], after))[:, None]
        return torch.stack(cast(list[Tensor], logits))

    def read(self, tokens: Tensor) -> Tensor:
        """See `Trunk`."""
        logits = self._logits(tokens[None], **self._positions(tokens[None], None))[0]
        self.hidden = self._tap.hidden
        self._slots.keep([range(len(tokens))])
        return logits

    def _read(self, tokens: Tensor, wanted: list[int]) -> Tensor:
        """A forward of a prompt; logits of the columns `wanted` alone where the model can, else of all."""
        keep: dict[str, Any] = {}
        if self._keeps:  # a number takes a view, an index makes rows that lie together
            one = wanted == [tokens.shape[1] - 1] and len(tokens) == 1
            keep["logits_to_keep"] = 1 if one else torch.tensor(wanted, device=tokens.device)
        return self._logits(tokens, **self._positions(tokens, None), **keep)

    def forward(self, tokens: Tensor, *, parents: Sequence[Sequence[int]] | None = None) -> Tensor:
        """See `Trunk`."""
        inputs = self._positions(tokens, parents)
        if parents is not None or self._slots.shared_length is None:
            inputs |= self._masks(tokens, parents)
        logits = self._logits(tokens, **inputs)
        self.hidden = self._tap.hidden
        return logits

    def _logits(self, tokens: Tensor, **inputs: Any) -> Tensor:
        """Return the logits of a forward of the model, with the values that plain decoding chooses by.

        Plain decoding chooses by float32, which holds what narrower numbers hold, and rounds float64.
        """
        with self._turn:
            logits: Tensor = self._model(input_ids=tokens, **self._always, **inputs).logits
        return logits.float() if logits.dtype == torch.float64 else logits

    def _positions(self, tokens: Tensor, parents: Sequence[Sequence[int]] | None) -> dict[str, Any]:
        """Where the tokens lie in their texts; given always, since models that count may count otherwise.

        After an image, for one, some go on to shift the positions of texts without one.
        """
        if not self._numbered:
            return {}
        lengths, width, device = self._slots.lengths, tokens.shape[1], tokens.device
        if parents is None and (start := self._slots.shared_length) is not None:
            places = torch.arange(start, start + width, device=device).repeat(len(lengths), 1)
        else:
            chains = [range(width)] * len(lengths)
            depths = chains if parents is None else [tree_depths(row) for row in parents]
            each = zip(lengths, depths, strict=True)
            places = torch.tensor([[have + depth for depth in row] for have, row in each], device=device)
        if self._longest is not None:  # beyond it lies only what no row has room for
            places = places.clamp(max=self._longest - 1)
        return {"position_ids": places}

    def _masks(self, tokens: Tensor, parents: Sequence[Sequence[int]] | None) -> dict[str, Any]:
        """Masks of rows that differ."""
        lengths, width, device = self._slots.lengths, tokens.shape[1], tokens.device
        masks = {
            window: self._mask(slot_mask(lengths, width, device=device, window=window, parents=parents))
            for window in set(self._windows)
        }
        mask: Any = next(iter(masks.values()))
        if len(masks) > 1:
            kinds = self._model.config.get_text_config(decoder=True).layer_types
            mask = {kind: masks[window] for kind, window in zip(kinds, self._windows, strict=False)}
        return {"attention_mask": mask}

    def _mask(self, seen: Tensor) -> Tensor:
        """Return the mask as the attention takes it: added for "eager", else what is seen."""
        if self._model.config._attn_implementation != "eager":
            return seen
        low = torch.finfo(self._model.dtype).min
        return torch.zeros_like(seen, dtype=self._model.dtype).masked_fill_(~seen, low)

    def keep(self, paths: Sequence[Sequence[int]]) -> None:
        """See `Trunk`."""
        self._slots.keep(paths)

    def select(self, rows: Sequence[int]) -> None:
        """See `Trunk`."""
        self._slots.select(rows)

    def join(self, other: Trunk) -> None:
        """See `Trunk`."""
        assert isinstance(other, EagerTrunk)
        self._slots.join(other._slots)

    def end(self) -> None:
        """See `Trunk`."""
        if self._cache is not None:
            self._slots.give(self._cache)
