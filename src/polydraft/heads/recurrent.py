"""The block run once per draft: an autoregressive drafter of one layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor
from torch.nn.functional import pad

from polydraft.heads.past import Past
from polydraft.heads.steps import Steps
from polydraft.joint import Step

if TYPE_CHECKING:
    from polydraft.heads.draft_head import DraftHead


class Recurrent(Steps):
    """u_{t,1} = u_t, u_{t,s+1} = block(fuse(u_{t,s}, E x_s)) at position t + s, and z_s = u_{t,s}.

    The block sees the text up to t, and the chain's own steps; it and the fused features are the head's, so
    there are no further parameters. The draft model of EAGLE (Li et al. 2024, arXiv 2401.15077), trained over
    all steps of a chain as in EAGLE-3 (arXiv 2503.01840). In place of further hidden layers, which a draft
    has none of, zeros are fused.
    """

    def stepper(self, head: DraftHead, features: Tensor, past: Past | None) -> RecurrentStepper:
        """See `Steps`.

        Raises:
            ValueError: no `past`.
        """
        if past is None:
            raise ValueError("a recurrent head needs the past of every chain: see DraftHead.read")
        return RecurrentStepper(head, features, past)


class RecurrentStepper:
    """See `polydraft.joint.Stepper`; what it remembers are the chain's own keys and values."""

    def __init__(self, head: DraftHead, features: Tensor, past: Past) -> None:
        self._head, self._features, self._past = head, features, past
        self.batch_size, self.device = len(features), features.device

    def start(self) -> Step:
        """u_t, which the block has made already."""
        return Step(self._features, ())

    def advance(self, step: Step, position: int, tokens: Tensor) -> Step:
        """The block over what `tokens` say."""
        head = self._head
        assert head.fuse is not None and head.block is not None
        states = pad(step.z, (0, head.config.state_size - head.config.hidden_size))
        fused = head.fuse(states, head.told(tokens))
        places = self._past.positions + position + 1
        return Step(*head.block.step(fused, places, past=self._past, memory=step.memory))

    def select(self, rows: Tensor) -> RecurrentStepper:
        """See `polydraft.joint.Stepper`."""
        return RecurrentStepper(self._head, self._features[rows], self._past.part(rows))
