"""What a drafted generation reports, under the names vLLM gives these figures."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any


@dataclass(kw_only=True)
class DecodingStatistics:
    """Counts over the verification steps of one or more generations.

    A step is one forward of the base model over the pending token and its drafts; the prefill of the
    prompt is not one. Tokens cut off after an end token or the length limit are not counted.

    Attributes:
        steps: verification forwards.
        drafted_tokens: tokens proposed. accepted_tokens: those kept.
        acceptance_histogram: entry k counts the steps that accepted exactly k drafts, k = 0..n.
        drafting_seconds: wall clock spent in the head. seconds: wall clock of the whole, prefill included.
    """

    steps: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    acceptance_histogram: list[int] = field(default_factory=list)
    drafting_seconds: float = 0.0
    seconds: float = 0.0

    def count(self, *, drafted: int, accepted: int, depth: int | None = None) -> None:
        """Add one step; `depth`: how far ahead its drafts reached, where they were no chain."""
        self.steps += 1
        self.drafted_tokens += drafted
        self.accepted_tokens += accepted
        reach = max(drafted if depth is None else depth, accepted)
        self.acceptance_histogram += [0] * (reach + 1 - len(self.acceptance_histogram))
        self.acceptance_histogram[accepted] += 1

    @property
    def mean_acceptance_length(self) -> float:
        """Tokens per step: 1 + accepted_tokens / steps; 1.0 before the first step."""
        return 1.0 + self.accepted_tokens / self.steps if self.steps else 1.0

    @property
    def draft_acceptance_rate(self) -> float:
        """accepted_tokens / drafted_tokens; 0.0 when nothing was drafted."""
        return self.accepted_tokens / self.drafted_tokens if self.drafted_tokens else 0.0

    @property
    def drafting_share(self) -> float:
        """Share of the wall clock spent drafting."""
        return self.drafting_seconds / self.seconds if self.seconds else 0.0

    @property
    def acceptance_per_position(self) -> list[float]:
        """Entry s - 1 is the share of the steps that accepted the draft at position s."""
        tail = [sum(self.acceptance_histogram[s:]) for s in range(1, len(self.acceptance_histogram))]
        return [count / self.steps for count in tail]

    @classmethod
    def merged(cls, parts: Iterable[DecodingStatistics]) -> DecodingStatistics:
        """The statistics of several generations together."""
        out = cls()
        for part in parts:
            out.steps += part.steps
            out.drafted_tokens += part.drafted_tokens
            out.accepted_tokens += part.accepted_tokens
            out.drafting_seconds += part.drafting_seconds
            out.seconds += part.seconds
            out.acceptance_histogram += [0] * (len(part.acceptance_histogram) - len(out.acceptance_histogram))
            for k, count in enumerate(part.acceptance_histogram):
                out.acceptance_histogram[k] += count
        return out

    def to_dict(self) -> dict[str, Any]:
        """Counts and figures, ready for JSON."""
        return {
            "steps": self.steps,
            "drafted_tokens": self.drafted_tokens,
            "accepted_tokens": self.accepted_tokens,
            "mean_acceptance_length": self.mean_acceptance_length,
            "draft_acceptance_rate": self.draft_acceptance_rate,
            "acceptance_histogram": self.acceptance_histogram,
            "acceptance_per_position": self.acceptance_per_position,
            "drafting_share": self.drafting_share,
        }
