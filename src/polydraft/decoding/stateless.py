"""Which logits processors are functions of the text: those alone are shown drafts.

Plain decoding calls a processor once for each token, in the order of the text. A processor may count on that:
it may keep a parser, a cache or a counter of its own, which nobody can see from outside. So the rule is:

    A processor that is known to be a function of its arguments shapes the drafts too, position by position.
    Any other is called as plain decoding calls it: once for each token, in the order of the text, and never
    after its end. Drafts are made without it and checked against it, so the text is exact all the same;
    more of them are refused.

Known are those of transformers listed here, our own, xgrammar's (see `grammar`), functions of
lm-format-enforcer, and what says so: an attribute `stateless` that is True.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from transformers import LogitsProcessorList
from transformers.generation import logits_process
from transformers.generation.logits_process import PrefixConstrainedLogitsProcessor

from polydraft.compat import prefix_function
from polydraft.decoding.grammar import is_grammar

logger = logging.getLogger("polydraft.decoding")

POINTWISE = frozenset(
    {
        "TemperatureLogitsWarper", "TopKLogitsWarper", "TopPLogitsWarper", "MinPLogitsWarper",
        "TypicalLogitsWarper", "EpsilonLogitsWarper", "EtaLogitsWarper", "TopHLogitsWarper",
        "LogitNormalization", "InfNanRemoveLogitsProcessor",
    }
)  # fmt: skip
"""Those of transformers that look only at the values of a row: they need neither token ids nor the prefix."""

STATELESS = POINTWISE | {
    "MinLengthLogitsProcessor", "MinNewTokensLengthLogitsProcessor", "RepetitionPenaltyLogitsProcessor",
    "EncoderRepetitionPenaltyLogitsProcessor", "NoRepeatNGramLogitsProcessor",
    "EncoderNoRepeatNGramLogitsProcessor", "SequenceBiasLogitsProcessor", "NoBadWordsLogitsProcessor",
    "ForcedBOSTokenLogitsProcessor", "ForcedEOSTokenLogitsProcessor", "ExponentialDecayLengthPenalty",
    "SuppressTokensAtBeginLogitsProcessor", "SuppressTokensLogitsProcessor", "WatermarkLogitsProcessor",
}  # fmt: skip
"""Those of transformers that are functions of text and row."""

PREFIX_FUNCTIONS = ("lmformatenforcer.",)
"""Where classes of `prefix_allowed_tokens_fn` come from that are functions of the text: caches apart."""


def is_pointwise(processor: Any) -> bool:
    """Whether it looks only at the values of a row."""
    return _is_one_of(processor, POINTWISE)


def is_stateless(processor: Any) -> bool:
    """Whether it is known that the scores it gives depend on its arguments alone."""
    if getattr(processor, "stateless", False) is True or is_grammar(processor):
        return True
    if type(processor) is PrefixConstrainedLogitsProcessor:
        return is_stateless_function(prefix_function(processor))
    return _is_one_of(processor, STATELESS)


def is_stateless_function(allowed: Any) -> bool:
    """The same of a `prefix_allowed_tokens_fn`."""
    known = type(allowed).__module__.startswith(PREFIX_FUNCTIONS)
    return known or getattr(allowed, "stateless", False) is True


def keeping_state(processors: Iterable[Any]) -> list[Any]:
    """Those that may keep a state of their own."""
    return [processor for processor in processors if not is_stateless(processor)]


def for_drafts(processors: LogitsProcessorList) -> LogitsProcessorList:
    """Those that may be shown drafts; the others are named in the log, each class once."""
    for name in {_name(processor) for processor in keeping_state(processors)} - _named:
        _named.add(name)
        logger.warning(
            "%s may keep a state of its own, so drafts are made without it and checked against it: the text "
            "is right, but more drafts are refused. If its scores depend on its arguments alone, set its "
            "attribute stateless = True",
            name,
        )
    return LogitsProcessorList([processor for processor in processors if is_stateless(processor)])


def describe(processor: Any) -> str:
    """A processor's name, with the option of `generate` that makes it."""
    name = _name(processor)
    option = _OPTIONS.get(name)
    return name if option is None else f"{name} ({option})"


def _name(processor: Any) -> str:
    if type(processor) is PrefixConstrainedLogitsProcessor:
        return "prefix_allowed_tokens_fn"
    return type(processor).__name__


def _is_one_of(processor: Any, names: Iterable[str]) -> bool:
    """Whether it is of a class of transformers with one of these names, and of no subclass."""
    kind = type(processor)
    return kind.__name__ in names and getattr(logits_process, kind.__name__, None) is kind


_OPTIONS = {
    "UnbatchedClassifierFreeGuidanceLogitsProcessor": "guidance_scale",
    "SynthIDTextWatermarkLogitsProcessor": "watermarking_config",
}
_named: set[str] = set()
