"""Figures for Prometheus, under vLLM's names where it has them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from polydraft.decoding.statistics import DecodingStatistics
from polydraft.serving.requests import Choice, Job

FIRST_TOKEN = (0.001, 0.005, 0.01, 0.02, 0.04, 0.08, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 640)
STEP = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
WHOLE = (0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960)
"""Bounds of the histograms, in seconds."""
TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000)
MODEL = ("model_name",)


@dataclass
class _Counted:
    """What of a row's statistics is already in the counters, and when it last grew."""

    drafted: int = 0
    accepted: int = 0
    histogram: list[int] = field(default_factory=list)
    grew: float | None = None


class Metrics:
    """The figures of one server, in a registry of their own.

    Args:
        model: what requests call the model.
        running, waiting: say how many requests do so now.
    """

    def __init__(self, model: str, *, running: Callable[[], float], waiting: Callable[[], float]) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._model = model
        self._counted: dict[Choice, _Counted] = {}
        self._gauge("num_requests_running", "Requests with a row in the batch.", running)
        self._gauge("num_requests_waiting", "Requests that wait for a row.", waiting)
        self._prompt_tokens = self._counter("prompt_tokens", "Prompt tokens read.")
        self._generation_tokens = self._counter("generation_tokens", "Tokens generated.")
        self._drafts = self._counter(
            "spec_decode_num_drafts", "Cycles of a text in which something was drafted."
        )
        self._draft_tokens = self._counter("spec_decode_num_draft_tokens", "Tokens drafted.")
        self._accepted = self._counter("spec_decode_num_accepted_tokens", "Drafted tokens kept.")
        self._positions = Counter(
            "vllm:spec_decode_num_accepted_tokens_per_pos",
            "Drafted tokens kept, by position from 0.",
            (*MODEL, "position"),
            registry=self.registry,
        )
        self._success = Counter(
            "vllm:request_success",
            "Texts that ended, by reason; abort: the client left, or it took too long.",
            (*MODEL, "finished_reason"),
            registry=self.registry,
        )
        self._first = self._histogram(
            "time_to_first_token_seconds", "From arrival to the first token.", FIRST_TOKEN
        )
        self._between = self._histogram(
            "inter_token_latency_seconds", "Between two growths of a text, by one token or several.", STEP
        )
        self._queued = self._histogram("request_queue_time_seconds", "From arrival to a row.", WHOLE)
        self._reading = self._histogram(
            "request_prefill_time_seconds", "From a row to the first token.", WHOLE
        )
        self._saying = self._histogram(
            "request_decode_time_seconds", "From the first token to the last.", WHOLE
        )
        self._whole = self._histogram("e2e_request_latency_seconds", "From arrival to the last token.", WHOLE)
        self._prompts = self._histogram("request_prompt_tokens", "Prompt tokens of a request.", TOKENS)
        self._generated = self._histogram("request_generation_tokens", "Tokens said to a request.", TOKENS)

    def admitted(self, job: Job) -> None:
        """A request has got its first row."""
        assert job.admitted is not None
        self._queued.observe(job.admitted - job.arrived)
        self._prompts.observe(job.prompt_tokens)
        self._prompt_tokens.inc(job.prompt_tokens)

    def spoke(self, job: Job) -> None:
        """A request has its first token."""
        assert job.spoke is not None and job.admitted is not None
        self._first.observe(job.spoke - job.arrived)
        self._reading.observe(job.spoke - job.admitted)

    def grew(self, choice: Choice, tokens: int) -> None:
        """Count the tokens that a text has grown by, in one cycle or at its prompt."""
        self._generation_tokens.inc(tokens)
        before, now = self._counted.setdefault(choice, _Counted()), choice.row.statistics
        moment = time.perf_counter()
        if before.grew is not None:
            self._between.observe(moment - before.grew)
        drafted = now.drafted_tokens - before.drafted
        self._drafts.inc(drafted > 0)
        self._draft_tokens.inc(drafted)
        self._accepted.inc(now.accepted_tokens - before.accepted)
        self._count_positions(before.histogram, now)
        self._counted[choice] = _Counted(
            now.drafted_tokens, now.accepted_tokens, list(now.acceptance_histogram), moment
        )

    def _count_positions(self, before: list[int], now: DecodingStatistics) -> None:
        """Position s counts the cycles that kept more than s drafts."""
        for position in range(len(now.acceptance_histogram) - 1):
            kept = sum(now.acceptance_histogram[position + 1 :]) - sum(before[position + 1 :])
            self._positions.labels(self._model, str(position)).inc(kept)

    def ended(self, choice: Choice, reason: str) -> None:
        """A text has ended."""
        self._counted.pop(choice, None)
        self._success.labels(self._model, reason).inc()

    def finished(self, job: Job) -> None:
        """All texts of a request have ended by themselves."""
        assert job.finished is not None and job.spoke is not None
        self._whole.observe(job.finished - job.arrived)
        self._saying.observe(job.finished - job.spoke)
        self._generated.observe(job.completion_tokens)

    def _gauge(self, name: str, text: str, value: Callable[[], float]) -> None:
        gauge = Gauge(f"vllm:{name}", text, MODEL, registry=self.registry)
        gauge.labels(self._model).set_function(value)

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(f"vllm:{name}", text, MODEL, registry=self.registry).labels(self._model)

    def _histogram(self, name: str, text: str, bounds: tuple[float, ...]) -> Histogram:
        histogram = Histogram(f"vllm:{name}", text, MODEL, registry=self.registry, buckets=bounds)
        return histogram.labels(self._model)
