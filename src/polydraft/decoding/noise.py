"""Sampling noise that belongs to a position of a text: a seeded text is the same however it is drafted.

A token drawn from p is the argmax of log p + g, g independent standard Gumbel noise (the Gumbel-max trick).
Here g is a function of the seed, the prompt, the choice and the position alone. Added to the processed rows
of the base model it makes sampling a search for the largest entry, and added to those of the draft head it
makes drafts that are likely to be it: both look at the same noise. So drafting, verification and their tests
are those of greedy decoding; which drafts were made, how many, and who else is in the batch leave no trace in
the text.

After Daliri, Musco and Suresh 2024, "Coupling without Communication and Drafter-Invariant Speculative
Decoding" (arXiv 2408.07978); trees of drafts and positions as keys are ours. A single draft is kept with
probability at least (1 - d) / (1 + d), d the total variation between q and p.

The numbers are those of SplitMix64, the counter-based generator of Steele, Lea and Flood 2014, "Fast
splittable pseudorandom number generators" (OOPSLA, doi 10.1145/2660193.2660195), with the constants of its
reference implementation (https://prng.di.unimi.it/splitmix64.c): number i of the stream from s is
mix(s + (i + 1) gamma). A position has a stream of its own, the token id is i, and s is a BLAKE2b hash (RFC
7693) of seed, choice, prompt and position. All of it is integer arithmetic, the same on every device; so is
the noise, up to how a device rounds a logarithm.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import blake2b
from struct import pack

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor

from polydraft.errors import InputError
from polydraft.modes import VERIFICATION

BITS = 52
"""Bits of a uniform number. With 23 of them one of 160 sets of 50,000 would have a 1, which wins whatever its
probability; of 53 the largest would round to 1."""
GAMMA = 0x9E3779B97F4A7C15
ROUNDS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1))
"""(bits, factor): a number is combined with itself shifted right by those bits, and multiplied."""


class GumbelNoise(LogitsProcessor):
    """scores (B, V) + g, the same g for every row; comes last, after temperature and all that shapes p.

    Args:
        seed: any number of 64 bits, -2^63 to 2^63 - 1.
        prompt: the token ids of the whole text before the first drawn token, without padding.
        choice: 0, 1, .. for texts drawn independently from one seed and prompt; see `choices_of`.
        padding: how many tokens of padding come before the text in the `input_ids` of a call.

    Raises:
        InputError: no such seed.
    """

    stateless = True

    def __init__(self, seed: int, *, prompt: Sequence[int], choice: int = 0, padding: int = 0) -> None:
        check_seed(seed)
        self._key = blake2b(pack(f"<{2 + len(prompt)}q", seed, choice, *prompt)).digest()
        self._padding = padding

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """After the text input_ids (B, L), padding included."""
        return scores + self.noise(input_ids.shape[-1], scores.shape[-1], device=scores.device)

    def noise(self, length: int, size: int, *, device: torch.device | None = None) -> Tensor:
        """g of the token ids 0 to `size` - 1 after `length` tokens, padding included; (size,) float32."""
        return gumbel([self.start(length)], torch.arange(size, device=device))[0]

    def start(self, length: int) -> int:
        """Where the stream of the position after `length` tokens, padding included, begins; of int64."""
        position = pack("<q", length - self._padding)
        digest = blake2b(position, key=self._key, digest_size=8).digest()
        return int.from_bytes(digest, "little", signed=True)


def gumbel(starts: Sequence[int], tokens: Tensor) -> Tensor:
    """Standard Gumbel noise g = -log(-log u), u uniform on (0, 1); see the module.

    Args:
        starts: R streams, by where they start, of int64. tokens: (V,) int64, which of their numbers.

    Returns:
        (R, V) float32, rounded from double precision, on the device of `tokens`.
    """
    device = tokens.device
    where = torch.device("cpu") if device.type == "mps" else device  # which has no double precision
    mix = mixed_by_numpy if where.type == "cpu" else mixed
    uniform = mix(torch.tensor(starts, device=where), tokens.to(where)).double().add_(0.5).mul_(2.0**-BITS)
    return uniform.log_().neg_().log_().neg_().to(device, torch.float32)


def mixed(starts: Tensor, tokens: Tensor) -> Tensor:
    """Return numbers of `BITS` bits (R, V), by `tokens` (V,), of the streams that start at `starts` (R,)."""
    out = starts[:, None] + (tokens + 1) * signed(GAMMA)
    for by, factor in ROUNDS:
        out = out.bitwise_xor_(_right(out, by)).mul_(signed(factor))
    return _right(out, 64 - BITS)


def mixed_by_numpy(starts: Tensor, tokens: Tensor) -> Tensor:
    """Return the same numbers in half the time, on a CPU: numpy knows unsigned ones."""
    first, which = (numbers.numpy().view(np.uint64) for numbers in (starts, tokens))
    out = first[:, None] + (which + np.uint64(1)) * np.uint64(GAMMA)
    shifted = np.empty_like(out)
    for by, factor in ROUNDS:
        np.right_shift(out, np.uint64(by), out=shifted)
        out ^= shifted
        if factor > 1:
            out *= np.uint64(factor)
    out >>= np.uint64(64 - BITS)
    return torch.from_numpy(out.view(np.int64))


def _right(numbers: Tensor, by: int) -> Tensor:
    """Shifted right as unsigned numbers."""
    return (numbers >> by).bitwise_and_(2 ** (64 - by) - 1)


def signed(number: int) -> int:
    """An unsigned number of 64 bits as int64 holds it."""
    return number - 2**64 if number >= 2**63 else number


def check_seed(seed: int, *, verification: str | None = None) -> None:
    """Refuse a number that is no seed, and a seed where drafts are not verified by a search for the largest.

    Args:
        verification: of sampled drafts; None where nothing is sampled.

    Raises:
        InputError: says why.
    """
    if not -(2**63) <= seed < 2**63:
        raise InputError(f"seed must be between -2^63 and 2^63 - 1, got {seed}")
    if verification not in (None, VERIFICATION):
        raise InputError("a seed couples the draws, which are not verified by block: leave one out")


def choices_of(prompts: Iterable[Sequence[int]]) -> list[int]:
    """The choice of each text of a batch or request: how many of the same prompt came before it."""
    seen: dict[tuple[int, ...], int] = {}
    out = []
    for prompt in map(tuple, prompts):
        out.append(seen.get(prompt, 0))
        seen[prompt] = out[-1] + 1
    return out
