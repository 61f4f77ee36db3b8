"""What to expect of a head on this machine: what forwards and drafts cost, and how many drafts are kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from polydraft.bench.bandwidth import forward_bytes, memory_bandwidth
from polydraft.bench.diagnosis import Diagnosis
from polydraft.bench.prompts import Prompt, spread
from polydraft.bench.runs import Sampling, run_drafted
from polydraft.decoding.acceptance import TreeExpectation
from polydraft.decoding.compiled import warm_up
from polydraft.decoding.costs import load_costs, machine_key, save_costs
from polydraft.decoding.measuring import MOST_NODES, OpenTrunk, measure, policy_widths
from polydraft.decoding.plan import Plan
from polydraft.decoding.refusals import refuse_batch
from polydraft.decoding.statistics import DecodingStatistics
from polydraft.heads import DraftHead

WIDTHS = (1, 2, 3, 4, 5, 6, 8, 12, 16)
"""New tokens of the forwards that are timed for chains."""
TREE_NODES = 8
"""The nodes of the trees that are drafted to see how many are kept."""
TURNS = 2
"""Turns of compiled and of eager forwards, which show what compiling brings."""

OnStage = Callable[[str], None]


def examine(
    model: PreTrainedModel,
    head: DraftHead,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    *,
    rows: int = 1,
    on_stage: OnStage = lambda line: None,
) -> Diagnosis:
    """Decode `prompts`, with as many drafts as the head can make or trees of `TREE_NODES`, and measure here.

    All of it the way in which generation with `sampling` drafts and runs the model. What generation
    remembers of the costs of that way is renewed.

    Args:
        rows: texts to be decoded at once, at least 1. on_stage: called with a line before each of `stages`.

    Raises:
        InputError: a prompt cannot be encoded, or the model or head cannot generate in this way.
        PolydraftError: as of `Compiled`.
        OSError: the user's cache cannot be written.
    """
    ids = [prompt.encode(tokenizer, model=model) for prompt in prompts]
    drafting = Plan(**sampling.modes).drafts(model, do_sample=not sampling.greedy)
    tree = drafting == "tree"
    if tree or rows > 1:
        refuse_batch(model)
    tried = TREE_NODES if tree else head.config.horizon
    open_trunk = None
    if sampling.compiled:
        on_stage("compiling")
        open_trunk = compiled_trunks(model, head, rows=rows)
    runs = []
    for number, prompt in enumerate(ids, start=1):
        on_stage(f"acceptance, prompt {number} of {len(ids)}")
        always = replace(
            sampling, torch_seed=sampling.torch_seed + number - 1, drafting=drafting, draft_length=tried
        )
        runs.append(run_drafted(model, head, tokenizer, prompt, always))
    on_stage("memory bandwidth")
    bandwidth = memory_bandwidth(model.device)
    sizes = TreeExpectation(MOST_NODES).sizes if tree else range(head.config.horizon + 1)
    costs = measure(
        model,
        head,
        rows=sorted({1, rows}),
        tree=tree,
        widths=[size + 1 for size in sizes] if tree else sorted({*WIDTHS, *policy_widths(sizes[-1])}),
        lengths=sizes[1:],
        open_trunk=open_trunk,
        on_rows=lambda count: on_stage(f"forwards and drafts, batch {count}"),
    )
    key = machine_key(model, head, path="compiled" if sampling.compiled else "eager", tree=tree)
    known = load_costs(key)
    save_costs(key, costs if known is None else known.updated(costs))
    compiling = None
    if open_trunk is not None:
        on_stage("forwards compiled and not, in turn")
        compiling = compiling_gain(model, head, open_trunk, rows=rows)
    bandwidth = max(bandwidth, memory_bandwidth(model.device))  # other work may have come between
    return Diagnosis(
        rows=rows,
        horizon=head.config.horizon,
        drafting=drafting,
        compiling=compiling,
        bandwidth=bandwidth,
        weight_bytes=forward_bytes(model),
        costs=costs,
        statistics=DecodingStatistics.merged(run.statistics for run in runs if run.statistics is not None),
        tried=tried,
        prompts=len(ids),
        new_tokens=sum(len(run.tokens) for run in runs),
        temperature=sampling.temperature,
    )


def stages(*, rows: int, prompts: int, compiled: bool) -> int:
    """How many lines `examine` says."""
    return 1 + len({1, rows}) + prompts + 2 * compiled


def compiled_trunks(model: PreTrainedModel, head: DraftHead, *, rows: int) -> OpenTrunk:
    """Compile `model` for up to `rows` texts, and say how to open trunks of it."""
    compiled = warm_up(model, head, rows=rows)
    return lambda count: compiled.trunk(taps=head.config.taps, rows=count)


def compiling_gain(model: PreTrainedModel, head: DraftHead, open_trunk: OpenTrunk, *, rows: int) -> float:
    """Seconds of a plain forward over those of one in the trunks of `open_trunk`; timed in turn."""
    eager: list[float] = []
    compiled: list[float] = []
    for _ in range(TURNS):
        for way, seconds in ((None, eager), (open_trunk, compiled)):
            costs = measure(model, head, rows=[rows], widths=[1], lengths=[1], open_trunk=way)
            seconds.append(costs.forward_seconds(rows, 1))
    return min(eager) / min(compiled)


def some_of_each_kind(prompts: Sequence[Prompt], count: int) -> list[Prompt]:
    """The first `count` prompts, one of each kind in turn."""
    return [prompts[index] for index in spread([prompt.kind for prompt in prompts])[:count]]
