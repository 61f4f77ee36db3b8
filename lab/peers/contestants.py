"""Ways to decode the same prompts with the same base model: transformers' own, and draft heads.

What each takes is `continues(inputs, sampling)`: `inputs` hold (B, T) ids and mask, padded on the left.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

from torch import Tensor
from transformers import CompileConfig, PreTrainedModel

import polydraft
from polydraft.bench.runs import Sampling
from polydraft.errors import InputError
from polydraft.heads import DraftHead

PLAIN = "plain"
OWN = "polydraft"
COMPILED_PLAIN = f"{OWN} compiled, no drafts"


class Continued(NamedTuple):
    """What a contestant gives: (B, T + new) ids, and tokens per forward of the base model and row."""

    sequences: Tensor
    tokens_per_step: float


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """One way to decode.

    Attributes:
        about: says what it is, for those who read the figures.
        continues: decodes a batch. alone: it takes one sequence at a time.
        own: whether it is polydraft's, and no peer.
        like: name of the contestant that decodes alike but for drafts; plain, unless this one is compiled.
    """

    name: str
    about: str
    continues: Callable[[dict[str, Tensor], Sampling], Continued]
    alone: bool = False
    own: bool = False
    like: str = PLAIN


def plain(model: PreTrainedModel) -> Contestant:
    """`model.generate`, which all are compared with."""

    def continues(inputs: dict[str, Tensor], sampling: Sampling) -> Continued:
        return Continued(_generate(model, inputs, sampling), 1.0)

    return Contestant(name=PLAIN, about="model.generate, eager", continues=continues)


def static(model: PreTrainedModel, *, length: int, backend: str = "inductor") -> Contestant:
    """`model.generate` with a static cache of `length` tokens and a compiled forward.

    transformers compiles on accelerators by itself; elsewhere it must be told to. Shapes are static, so each
    batch size is compiled once, and no later prompt compiles again.
    """
    mode = "reduce-overhead" if model.device.type == "cuda" else "default"
    config = CompileConfig(mode=mode, dynamic=False, backend=backend)
    config._compile_all_devices = cast(Any, True)
    options = {"cache_implementation": "static", "max_cache_len": length, "compile_config": config}

    def continues(inputs: dict[str, Tensor], sampling: Sampling) -> Continued:
        return Continued(_generate(model, inputs, sampling, **options), 1.0)

    about = "transformers' static cache and compiled forward"
    return Contestant(name="static + compile", about=about, continues=continues)


def lookup(model: PreTrainedModel, *, tokens: int) -> Contestant:
    """transformers' prompt lookup, `tokens` drafts a step."""
    about = f"transformers' prompt lookup, {tokens} tokens"
    return _assisted(model, name="lookup", about=about, options={"prompt_lookup_num_tokens": tokens})


def assisted(model: PreTrainedModel, draft: PreTrainedModel) -> Contestant:
    """transformers' assisted generation by a small model.

    Raises:
        InputError: the two have different vocabularies.
    """
    sizes = [one.get_input_embeddings().num_embeddings for one in (model, draft)]
    if sizes[0] != sizes[1]:
        raise InputError(
            f"the draft model knows {sizes[1]} tokens, the model {sizes[0]}: give one of the same vocabulary"
        )
    about = f"assisted by {draft.name_or_path}"
    return _assisted(model, name="assisted", about=about, options={"assistant_model": draft})


def drafted(
    model: PreTrainedModel,
    head: DraftHead,
    *,
    name: str,
    about: str,
    options: Mapping[str, Any],
    own: bool = False,
    like: str = PLAIN,
) -> Contestant:
    """`polydraft.generate` with `head`; `options`: some of `drafting_options`, before the sampling's."""

    def continues(inputs: dict[str, Tensor], sampling: Sampling) -> Continued:
        arguments: dict[str, Any] = inputs | _arguments(sampling) | sampling.modes | dict(options)
        out = polydraft.generate(model, head, **arguments)
        assert out.sequences is not None
        assert out.statistics is not None
        return Continued(out.sequences, out.statistics.mean_acceptance_length)

    return Contestant(name=name, about=about, continues=continues, own=own, like=like)


def polydraft_ways(
    model: PreTrainedModel, head: DraftHead, *, source: str, lookup_tokens: int, compiled: bool
) -> list[Contestant]:
    """What polydraft brings with `head`, alone and with copied drafts: eager, and compiled where asked for.

    Compiled drafting is to be compared with the same compiled layers without drafts: a contestant too.

    Args:
        source: the head's name.
    """
    lookup = {"prompt_lookup_num_tokens": lookup_tokens}
    found = []
    for way, like in (("", PLAIN), (" compiled", COMPILED_PLAIN))[: 1 + compiled]:
        options = {"compiled": bool(way)}
        kinds: dict[str, tuple[str, dict[str, Any]]] = {
            "": (f"head {source}{way}", options),
            " + lookup": (f"head {source}{way}, and copied drafts", options | lookup),
        }
        if way:
            none = options | {"draft_length": 0, "prompt_lookup_num_tokens": None}
            about = "the compiled layers without drafts"
            found.append(drafted(model, head, name=COMPILED_PLAIN, about=about, options=none, own=True))
        found += [
            drafted(model, head, name=f"{OWN}{way}{kind}", about=about, options=given, own=True, like=like)
            for kind, (about, given) in kinds.items()
        ]
    return found


def drafting_options() -> list[str]:
    """Names of the options of `polydraft.generate` that say how to draft, not what."""
    given = {"attention_mask", "generation_config", "streamer", "tokenizer", "stopping_criteria"}
    given |= {"generator", "seed"}  # each round sets torch's seeds, the same for all
    parameters = inspect.signature(polydraft.generate).parameters.values()
    return [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in given]


def parse_peer_head(text: str) -> tuple[str, str, dict[str, Any]]:
    """`NAME=HEAD[,OPTION=VALUE...]` -> (name, head, options); numbers, true and false become what they mean.

    Raises:
        InputError: it is not of this form, or an option is none of `drafting_options`.
    """
    first, *rest = text.split(",")
    pairs = [part.partition("=") for part in (first, *rest)]
    if not all(key and equals and value for key, equals, value in pairs):
        raise InputError(f"--peer-head takes NAME=HEAD[,OPTION=VALUE...], got {text!r}")
    (name, _, head), *given = pairs
    for key, _, _ in given:
        if key not in drafting_options():
            raise InputError(f"--peer-head {name}: no option {key!r}, only {', '.join(drafting_options())}")
    return name, head, {key: _value(value) for key, _, value in given}


def _value(text: str) -> str | int | bool:
    if text in ("true", "false"):
        return text == "true"
    return int(text) if text.isdecimal() else text


def _assisted(model: PreTrainedModel, *, name: str, about: str, options: dict[str, Any]) -> Contestant:
    def continues(inputs: dict[str, Tensor], sampling: Sampling) -> Continued:
        with _counting(model) as forwards:
            sequences = _generate(model, inputs, sampling, **options)
        return Continued(sequences, (sequences.shape[1] - inputs["input_ids"].shape[1]) / len(forwards))

    return Contestant(name=name, about=about, continues=continues, alone=True)


@contextmanager
def _counting(model: PreTrainedModel) -> Iterator[list[None]]:
    """A list that grows by one entry with every forward of `model`."""
    forwards: list[None] = []
    hook = model.register_forward_pre_hook(lambda *_: forwards.append(None))
    try:
        yield forwards
    finally:
        hook.remove()


def _generate(
    model: PreTrainedModel, inputs: dict[str, Tensor], sampling: Sampling, **options: Any
) -> Tensor:
    out: Tensor = cast(Any, model).generate(**inputs, **_arguments(sampling), **options)
    return out


def _arguments(sampling: Sampling) -> dict[str, Any]:
    """Of `generate`, but for what stop strings need, which no comparison has."""
    return sampling.arguments(cast(Any, None))
