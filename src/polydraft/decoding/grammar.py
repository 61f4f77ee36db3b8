"""Grammars of xgrammar: a matcher that can go back makes a mask that is a function of the text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor

from polydraft.errors import InputError, PolydraftError

XGRAMMAR = "xgrammar.contrib.hf"
"""Where xgrammar's processor for transformers is defined."""


class GrammarMask(LogitsProcessor):
    """-inf for every token that the grammar does not take next, for one text.

    xgrammar's own processor takes in the last token of the text at each call, so that it cannot be asked
    about drafts. This one compares the text with what its matcher has taken in, goes back to where both
    agree, and takes in the rest. It gives what xgrammar's own gives: after the end of the grammar, the last
    mask again.

    Args:
        grammar: an `xgrammar.CompiledGrammar`. prompt_length: tokens before the grammar begins.
    """

    stateless = True

    def __init__(self, grammar: Any, *, prompt_length: int) -> None:
        import xgrammar

        self._apply = xgrammar.apply_token_bitmask_inplace
        self._matcher = xgrammar.GrammarMatcher(grammar)
        self._mask: Tensor = xgrammar.allocate_token_bitmask(1, grammar.tokenizer_info.vocab_size)
        self._prompt_length = prompt_length
        self._taken: list[int] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """scores (1, V) after the text input_ids (1, L), padding included.

        Raises:
            PolydraftError: the grammar does not take the text so far.
        """
        self._take(input_ids[0, self._prompt_length :].tolist())
        self._matcher.fill_next_token_bitmask(self._mask)
        device = scores.device if scores.device.type in ("cpu", "cuda") else "cpu"  # as xgrammar itself
        masked = scores.to(device, torch.float32, copy=True)  # the only dtype that xgrammar masks
        self._apply(masked, self._mask.to(device))
        return masked.to(scores)

    def _take(self, tokens: Sequence[int]) -> None:
        """Bring the matcher to the end of `tokens`, or before the token that ends the grammar."""
        agreed = 0
        for told, token in zip(self._taken, tokens, strict=False):
            if told != token:
                break
            agreed += 1
        if agreed < len(self._taken):
            self._matcher.rollback(len(self._taken) - agreed)
            del self._taken[agreed:]
        for token in tokens[agreed:]:
            if not self._matcher.accept_token(token):
                raise PolydraftError(
                    f"the grammar does not take token {token}: another processor, or the model, forces it"
                )
            if self._matcher.is_terminated():
                self._matcher.rollback(1)
                return
            self._taken.append(token)


def as_mask(processor: Any, row: int, *, prompt_length: int) -> GrammarMask | None:
    """xgrammar's processor for transformers as a `GrammarMask` of one row of a batch; None for any other."""
    if not is_grammar(processor):
        return None
    grammars = processor.compiled_grammars
    return GrammarMask(grammars[row if len(grammars) > 1 else 0], prompt_length=prompt_length)


def is_grammar(processor: Any) -> bool:
    """Whether it is xgrammar's processor for transformers, and of no subclass."""
    kind = type(processor)
    return kind.__module__ == XGRAMMAR and kind.__name__ == "LogitsProcessor"


def check_grammars(processors: Iterable[Any], *, rows: int) -> None:
    """Refuse another number of grammars than of texts.

    Raises:
        InputError: says both.
    """
    for processor in processors:
        count = len(processor.compiled_grammars) if is_grammar(processor) else 1
        if count not in (1, rows):
            raise InputError(f"{count} grammars for {rows} texts: give one for all, or one for each")
