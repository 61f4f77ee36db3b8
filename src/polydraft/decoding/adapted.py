"""Drafts from a model with an adapter, verified by the same model without it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from polydraft.adapters import AdapterSwitch
from polydraft.compat import has_adapter
from polydraft.decoding.trunk import EagerTrunk
from polydraft.errors import InputError
from polydraft.forwards import turn
from polydraft.heads import DraftHead


def verify_with_base(model: PreTrainedModel, head: DraftHead) -> None:
    """Switch the adapter inside `model` off, but for the forward that `head` drafts from.

    From then on all that is generated, drafted or not, is the base model's.

    Args:
        head: trained with the adapter, and attached.

    Raises:
        InputError: the model has no adapter.
    """
    if not has_adapter(model):
        raise InputError(
            "verifier 'base' needs an adapter, which drafts: give that of the head with --adapter"
        )
    head.switch = AdapterSwitch(model)
    head.switch.set(on=False)


class AdaptedTrunk:
    """Hidden states of texts that grow, from forwards of the adapted model with a cache of its own.

    Every token it reads is one that stays, so nothing is rolled back.

    Args:
        texts: per row (T,) the whole text so far, without padding. longest: as of `EagerTrunk`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        head: DraftHead,
        switch: AdapterSwitch,
        texts: Sequence[Tensor],
        *,
        longest: int | None = None,
    ) -> None:
        self.texts = texts
        self._switch = switch
        self._turn = turn(model)
        self._trunk = EagerTrunk(model, taps=head.config.taps, rows=len(texts), longest=longest)

    def prefill(self) -> Tensor:
        """States of the texts, as `Trunk.prefill` leaves them."""
        with self._turn, self._switch.on(), self._trunk:
            self._trunk.prefill(self.texts)
            return self._trunk.hidden

    def __call__(self, tokens: Sequence[Tensor]) -> list[Tensor]:
        """States (k_b, D) of the next tokens (k_b,) of each row."""
        sizes = [len(row) for row in tokens]
        with self._turn, self._switch.on(), self._trunk:
            self._trunk.forward(pad_sequence(list(tokens), batch_first=True))
            hidden = self._trunk.hidden
        self._trunk.keep([range(size) for size in sizes])
        return [states[:size] for states, size in zip(hidden, sizes, strict=True)]

    def select(self, rows: Sequence[int]) -> None:
        """Go on with `rows` alone."""
        self._trunk.select(rows)
