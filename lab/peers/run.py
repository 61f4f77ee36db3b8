"""Many ways to decode, side by side: the same prompts and seeds of torch, one round after the other.

In a round every contestant decodes the same prompts; who begins rotates from turn to turn, so that a machine
that slows down meanwhile does it to all. A round is kept when it is whole,

    OUT/settings.json   what the rounds are made with; other settings are refused
    OUT/rounds/*.json   a file each

and is not run again.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lab.grid.store import claim, read_json, write_json
from lab.peers.contestants import PLAIN, Contestant
from lab.peers.rounds import Round, Setting
from polydraft.bench.benchmark import WARM_UP_TOKENS
from polydraft.bench.prompts import Prompt
from polydraft.bench.runs import Sampling, clock
from polydraft.errors import InputError

ALONE = "takes one sequence at a time"


@dataclass(frozen=True, kw_only=True)
class PeerRun:
    """What one contestant gave in one round.

    Attributes:
        tokens: the new ones of every row, up to its end. seconds: wall clock, prompts included.
        cpu_seconds: as of `Run`. tokens_per_step: per forward of the base model and row.
    """

    tokens: list[list[int]]
    seconds: float
    cpu_seconds: float | None
    tokens_per_step: float


class Peers:
    """A comparison of `contestants`, the first of which is plain decoding, kept in the folder `out`.

    Args:
        sampling: for all; temperature and torch's seed are those of the round.
        settings: what else the figures depend on, recorded with them.

    Raises:
        InputError: two contestants of one name, or the folder holds rounds made with other settings.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        contestants: Sequence[Contestant],
        prompts: Sequence[Prompt],
        sampling: Sampling,
        *,
        out: Path,
        settings: dict[str, Any],
    ) -> None:
        names = [contestant.name for contestant in contestants]
        if len(set(names)) < len(names) or names[0] != PLAIN:
            raise InputError(f"contestants need names of their own, got {', '.join(names)}")
        self.model = model
        self.contestants = contestants
        self.ids = [prompt.encode(tokenizer) for prompt in prompts]
        self.sampling = sampling
        self.out = out
        self.settings = settings | {
            "contestants": [[contestant.name, contestant.about] for contestant in contestants],
            "own": [contestant.name for contestant in contestants if contestant.own],
            "like": {one.name: one.like for one in contestants if one.like != PLAIN},
            "prompts": hashlib.sha256(json.dumps(self.ids).encode()).hexdigest()[:16],
            "sampling": {key: value for key, value in asdict(sampling).items() if key != "temperature"},
        }
        claim(out / "settings.json", self.settings, what="the comparison", remove=str(out))
        self._padding = tokenizer.pad_token_id or 0
        self._left_out: dict[Setting, dict[str, str]] = {}

    def path(self, one: Round) -> Path:
        """Where a round is kept."""
        return self.out / "rounds" / f"{one.name}.json"

    def run(
        self,
        rounds: Sequence[Round],
        *,
        budget_seconds: float | None = None,
        on_round: Callable[[Round], None] | None = None,
        on_note: Callable[[str], None] | None = None,
    ) -> list[dict[str, Any]]:
        """Run what is lacking; all rounds that are there, in order.

        Args:
            budget_seconds: no round begins later; the same call goes on with the rest.
            on_round: called after each, found or run. on_note: called with a line about what cannot be had.
        """
        note = on_note or (lambda line: None)
        began, found = time.monotonic(), []
        for number, one in enumerate(rounds):
            content = read_json(self.path(one))
            if content is None:
                if budget_seconds is not None and time.monotonic() - began > budget_seconds:
                    note(f"the budget is spent after {number} of {len(rounds)} rounds")
                    break
                content = self._round(one, note)
                write_json(self.path(one), content)
            found.append(content)
            if on_round is not None:
                on_round(one)
        return found

    def decode(self, contestant: Contestant, rows: Sequence[list[int]], sampling: Sampling) -> PeerRun:
        """Let one contestant continue `rows`, padded on the left to one length."""
        length = max(map(len, rows))
        padded = [[self._padding] * (length - len(row)) + row for row in rows]
        mask = [[0] * (length - len(row)) + [1] * len(row) for row in rows]
        device = self.model.device
        inputs = {
            "input_ids": torch.tensor(padded, device=device),
            "attention_mask": torch.tensor(mask, device=device),
        }
        began = clock(self.model, seed=sampling.torch_seed)
        out = contestant.continues(inputs, sampling)
        seconds, cpu_seconds = began.until(clock(self.model))
        tokens = [self._up_to_end(row) for row in out.sequences[:, length:].tolist()]
        return PeerRun(
            tokens=tokens, seconds=seconds, cpu_seconds=cpu_seconds, tokens_per_step=out.tokens_per_step
        )

    def _up_to_end(self, tokens: list[int]) -> list[int]:
        config = self.model.generation_config
        ends = config.eos_token_id if config is not None else None
        wanted = set(ends if isinstance(ends, list) else [ends])
        return tokens[: next((i + 1 for i, token in enumerate(tokens) if token in wanted), len(tokens))]

    def _round(self, one: Round, note: Callable[[str], None]) -> dict[str, Any]:
        rows = [self.ids[index] for index in one.prompts]
        if one.setting not in self._left_out:
            self._left_out[one.setting] = self._warm_up(one.setting, rows, note)
        left_out = self._left_out[one.setting]
        able = [contestant for contestant in self.contestants if contestant.name not in left_out]
        first = one.turn % len(able)
        sampling = replace(
            self.sampling,
            temperature=one.setting.temperature,
            torch_seed=self.sampling.torch_seed + one.prompts[0] + one.turn,
        )
        runs = {c.name: asdict(self.decode(c, rows, sampling)) for c in able[first:] + able[:first]}
        return asdict(one) | {"runs": runs, "left_out": left_out}

    def _warm_up(
        self, setting: Setting, rows: Sequence[list[int]], note: Callable[[str], None]
    ) -> dict[str, str]:
        """Let every contestant decode a few tokens, compiling included; who cannot is left out, and why."""
        few = min(self.sampling.max_new_tokens, WARM_UP_TOKENS)
        sampling = replace(self.sampling, temperature=setting.temperature, max_new_tokens=few)
        left_out = {}
        for contestant in self.contestants:
            if contestant.alone and setting.batch > 1:
                left_out[contestant.name] = ALONE
                continue
            try:
                self.decode(contestant, rows, sampling)
            except InputError as error:
                left_out[contestant.name] = str(error)
        for name, reason in left_out.items():
            note(f"{setting}: without {name}: {reason}")
        return left_out
