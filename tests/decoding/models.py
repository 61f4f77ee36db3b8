"""What base models are tested with: ragged prompts, their plain texts, and a head that knows them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

import polydraft
from polydraft.decoding import DraftedOutput
from polydraft.hidden import HiddenTap
from polydraft.joint import Independent, JointDistribution, LatentMixture
from tests.decoding.oracle import SURE, OracleHead, oracle
from tests.tiny import EVERY_KIND, KINDS, tiny_model

VOCAB_SIZE, HORIZON, NEW_TOKENS, ROWS = 64, 3, 24, 16
PADDING = 0

CASES = [*EVERY_KIND, "llama-eager", "gpt2-eager", "gemma3-eager", "mixtral-eager"]
"""Every kind with the attention it has by default, some with another."""
DAILY = [*KINDS, "gemma3-eager"]
"""Those that the fast tests run over; the others are marked slow."""


class OracleOfMany(OracleHead):
    """An `OracleHead` of several texts, which finds every row of a batch in one of them.

    Row b of call c is right for `pattern[(b + c) % len(pattern)]` drafts, so rows differ; behind those the
    right token is the second likeliest.
    """

    def know_all(self, texts: Sequence[Tensor], hidden: Sequence[Tensor]) -> OracleOfMany:
        """Learn `texts` (L_b,), and the states (L_b, d) the model has on each."""
        self._all = torch.cat(list(hidden))
        self._rests = [text[place + 2 :] for text in texts for place in range(len(text))]
        return self

    def forward(self, hidden: Tensor, next_tokens: Tensor) -> JointDistribution:
        places = (self._all - hidden[:, None]).square().sum(-1).argmin(-1).tolist()
        logits = torch.zeros(len(places), self.config.horizon, 1, self.config.draft_vocab_size)
        for row, place in enumerate(places):
            right = self._pattern[(row + self._calls) % len(self._pattern)]
            rest = self._rests[place].tolist()[: self.config.horizon]
            for s, token in enumerate(rest):
                index = int(self.draft_index(torch.tensor(token)))
                logits[row, s, 0, index] = SURE
                if s >= right:
                    logits[row, s, 0, index - 1] = SURE + 1
        self._calls += 1
        return LatentMixture(Independent(len(places), self.config.horizon), logits)


class Known(NamedTuple):
    """A model, and what it says to 16 prompts: `texts[b]` (L_b + NEW_TOKENS,) begins with `prompts[b]`."""

    model: PreTrainedModel
    prompts: list[Tensor]
    texts: list[Tensor]

    def new(self, row: int, *, ends: Sequence[int] = ()) -> list[int]:
        """The new tokens of a row, up to the first of `ends`, which is still said."""
        tokens: list[int] = self.texts[row][len(self.prompts[row]) :].tolist()
        stop = next((at for at, token in enumerate(tokens) if token in ends), len(tokens))
        return tokens[: stop + 1]


def case_model(case: str, **options: Any) -> PreTrainedModel:
    """The model of one of `CASES`."""
    kind, _, attention = case.partition("-")
    model = tiny_model(kind, vocab_size=VOCAB_SIZE, **options)
    if attention:
        cast(Any, model).set_attn_implementation(attention)
    return model


def ragged_prompts(count: int = ROWS, *, longest: int = 20) -> list[Tensor]:
    """Random prompts (L_b,) of 1 to `longest` tokens; the second has the fewest, the third the most."""
    generator = torch.Generator().manual_seed(11)
    lengths = torch.randint(1, longest + 1, (count,), generator=generator).tolist()
    lengths[1:3] = [1, longest]
    return [torch.randint(1, VOCAB_SIZE, (length,), generator=generator) for length in lengths[:count]]


@cache
def known(case: str) -> Known:
    """The model of a case and its greedy texts, each by plain `generate` on its own."""
    model, prompts = case_model(case), ragged_prompts()
    texts = [plain(model, prompt[None], max_new_tokens=NEW_TOKENS)[0] for prompt in prompts]
    return Known(model, prompts, texts)


def plain(model: PreTrainedModel, ids: Tensor, **options: Any) -> Tensor:
    """What `model.generate` says, greedily; (1, L)."""
    out: Tensor = cast(Any, model).generate(ids, do_sample=False, **options)
    return out


def drafted(model: PreTrainedModel, head: Any, prompts: Sequence[Tensor], **options: Any) -> DraftedOutput:
    """Greedy drafted generation of ragged prompts, padded on the left."""
    ids, mask = padded(prompts)
    given = {"do_sample": False, "max_new_tokens": NEW_TOKENS, "pad_token_id": PADDING}
    return polydraft.generate(model, head, ids, attention_mask=mask, **(given | options))


def padded(prompts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Prompts (L_b,) as (B, T), padded on the left, and their mask."""
    longest = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), longest), PADDING)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = prompt
        mask[row, longest - len(prompt) :] = 1
    return ids, mask


def new_tokens(out: DraftedOutput, prompts: Sequence[Tensor]) -> list[list[int]]:
    """What was said after the prompts, padding included; the prompts must have come back as they were."""
    assert out.sequences is not None
    ids, _ = padded(prompts)
    assert out.sequences[:, : ids.shape[1]].equal(ids)
    rows: list[list[int]] = out.sequences[:, ids.shape[1] :].tolist()
    return rows


def oracle_of_many(
    model: PreTrainedModel, texts: Sequence[Tensor], *, pattern: Sequence[int] | None = None
) -> OracleOfMany:
    """A head that knows all of `texts` (L_b,); `pattern` as of `oracle`."""
    head = oracle(model, texts[0][None], horizon=HORIZON, pattern=None if pattern is None else list(pattern))
    head.__class__ = OracleOfMany
    states = []
    for text in texts:
        with torch.no_grad(), HiddenTap(model) as tap:
            cast(Any, model)(input_ids=text[None])
            states.append(tap.hidden[0])
    return cast(OracleOfMany, head).know_all(texts, states)
