"""How a head drafts for a model: the choices of a caller, and what follows from them on this machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from transformers import PreTrainedModel

from polydraft.decoding.acceptance import LIKELY_COPY, ChainExpectation, TreeExpectation
from polydraft.decoding.compiled import warm_up
from polydraft.decoding.costs import Costs
from polydraft.decoding.measuring import MOST_NODES, machine_costs
from polydraft.decoding.policy import Fixed, Measured, Policy
from polydraft.decoding.refusals import takes_trees
from polydraft.decoding.trunk import EagerTrunk, Trunk
from polydraft.heads import DraftHead
from polydraft.modes import DRAFTING, VERIFICATION, asked_length, check_modes


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The choices, as `polydraft.decoder` explains them.

    Raises:
        InputError: an unknown choice.
    """

    verification: str = VERIFICATION
    drafting: str = DRAFTING
    draft_length: int | None = None
    prompt_lookup_num_tokens: int | None = None
    compiled: bool = False

    def __post_init__(self) -> None:
        given: dict[str, Any] = asdict(self)
        del given["compiled"]
        check_modes(**given)

    def drafts(self, model: PreTrainedModel, *, do_sample: bool) -> str:
        """What is drafted where that was left open."""
        if self.drafting != "auto":
            return self.drafting
        chains = do_sample and self.verification == "block"
        return "tree" if takes_trees(model) and not chains else "chain"

    def opener(self, model: PreTrainedModel, head: DraftHead, *, rows: int) -> Callable[..., Trunk]:
        """What makes a trunk, for up to `rows` rows; compiles where that was asked for.

        Raises:
            InputError, PolydraftError: what cannot be compiled.
        """
        if not self.compiled:
            return partial(EagerTrunk, model)
        return warm_up(model, head, rows=rows).trunk

    def policies(
        self, model: PreTrainedModel, head: DraftHead, drafting: str, *, rows: int
    ) -> tuple[Policy, Policy | None]:
        """How many drafts the head makes, and how many are copied from the text; None for none ever.

        Args:
            drafting: as `drafts` gives it.
        """
        length, most = asked_length(self.draft_length), self.prompt_lookup_num_tokens
        if length is not None:
            return Fixed(length), None if most is None else Fixed(most)
        costs = self._costs(model, head, drafting, rows=rows)
        tree = drafting == "tree"
        own = TreeExpectation(MOST_NODES) if tree else ChainExpectation(head.config.horizon)
        if most is None:
            return Measured(costs, own), None
        copies = ChainExpectation(most, likely=LIKELY_COPY)
        return Measured(costs, own), Measured(costs.copying(), copies)

    def _costs(self, model: PreTrainedModel, head: DraftHead, drafting: str, *, rows: int) -> Costs:
        return machine_costs(
            model,
            head,
            rows=rows,
            tree=drafting == "tree",
            path="compiled" if self.compiled else "eager",
            open_trunk=lambda count: self.opener(model, head, rows=rows)(taps=head.config.taps, rows=count),
        )
