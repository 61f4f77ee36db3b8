"""Tokens per step of draft trees against the chain, by replay along texts that the base model wrote.

    python -m lab.benchmarks.tree_acceptance --model smollm2-135m-instruct --head smollm2-135m-instruct \
        --texts runs/family --nodes 3 4 6 8 12 16 --out docs/results/trees.json

`--texts` is the folder of a grid (`python -m lab grid`): its continuations are taken, or written first.
A greedy step keeps what of the text its tree holds. At T = 1 three forms are compared, each with the chance,
given the text, that its tokens are kept: the chain judged token by token, trees of chosen tokens alone, and
trees of `draw_tree`, whose drawn child is the text's token x with probability min(1, q(x) / p(x)).
Siblings of a kept token are drawn without regard to their refusal, which moves nothing but the shape of
what follows them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lab.benchmarks.common import continuations, save, table
from lab.grid.targets import Target
from lab.replay import Text, features_along
from polydraft.decoding.tree import DraftTree, Level, choose_tree
from polydraft.decoding.tree_drawn import draw_children, level_sizes
from polydraft.heads import DraftHead
from polydraft.joint import JointDistribution
from polydraft.loading import load_head, load_model, set_threads
from polydraft.training.paths import along, kept
from polydraft.training.walk import Walk, fitting, walk

AT_ONCE = 64
Survive = Callable[[JointDistribution, Tensor, Tensor], Tensor]
"""joint of B anchors, the draft indices (B, n) that follow each (-1 none), their log p -> survival (B, n)."""


def held(trees: Sequence[DraftTree], targets: Tensor) -> Tensor:
    """Whether each tree holds the first s tokens of its text; (B, n)."""
    out = torch.zeros(targets.shape, dtype=torch.float64)
    for row, tree in enumerate(trees):
        nodes = {key: node for node, key in enumerate(zip(tree.parents, tree.tokens.tolist(), strict=True))}
        at: int | None = -1
        for s, token in enumerate(targets[row].tolist()):
            at = nodes.get((-1 if at is None else at, token))
            if at is None:
                break
            out[row, s] = 1.0
    return out


def chosen(nodes: int) -> Survive:
    """Trees of chosen tokens."""

    def survive(joint: JointDistribution, targets: Tensor, _: Tensor) -> Tensor:
        return held(choose_tree(joint, nodes=nodes, depth=joint.horizon), targets)

    return survive


def drawn(nodes: int) -> Survive:
    """Trees with drawn children; one tree an anchor, its node on the text's path drawn given the text."""

    def survive(joint: JointDistribution, targets: Tensor, log_p: Tensor) -> Tensor:
        batch, anchors = joint.batch_size, torch.arange(joint.batch_size)
        scores, level = torch.zeros(batch, 1), Level.root(joint)
        at, alive = torch.zeros(batch, dtype=torch.long), torch.ones(batch, dtype=torch.bool)
        out = torch.zeros(targets.shape, dtype=torch.float64)
        for s, count in enumerate(level_sizes(nodes, joint.horizon)):
            new = draw_children(level.log_rows(batch, None), scores, count=count)
            wanted, mine = targets[:, s], (new.parents == at[:, None]) & new.alive
            source = torch.full(new.drawn.shape, -1)
            source[new.drawn] = torch.arange(len(new.log_rows))
            slot = (mine & new.drawn).int().argmax(-1)
            number = source[anchors, slot]
            log_q = new.log_rows[number.clamp(min=0), wanted.clamp(min=0)]
            lucky = torch.rand(batch) < (log_q - log_p[:, s]).exp()
            lucky &= (mine & new.drawn).any(-1) & (wanted >= 0)
            new.tokens[anchors[lucky], slot[lucky]] = wanted[lucky]
            unlucky = (mine & new.drawn).any(-1) & ~lucky
            hit = mine & (new.tokens == wanted[:, None])
            hit[anchors[unlucky], slot[unlucky]] = False
            alive &= hit.any(-1)
            at = hit.int().argmax(-1)
            out[:, s] = alive
            level = level.children(new.parents, new.tokens) if s + 1 < joint.horizon else level
            scores = (scores.gather(1, new.parents) + new.log_chance).where(new.alive, -torch.inf)
        return out

    return survive


def chain(joint: JointDistribution, targets: Tensor, _: Tensor) -> Tensor:
    """The argmax chain."""
    return (joint.argmax().tokens == targets).double().cumprod(-1)


def sampled_chain(joint: JointDistribution, targets: Tensor, log_p: Tensor) -> Tensor:
    """The drawn chain, token by token."""
    return kept(along(joint, targets, hits=False).log_q, log_p, targets).cumprod(-1)


def tokens_per_step(head: DraftHead, texts: Sequence[Text], survive: Survive) -> float:
    """Over all texts together."""
    found = walks(head, texts, survive)
    return sum(each.tokens for each in found) / sum(each.cycles for each in found)


@torch.inference_mode()
def walks(head: DraftHead, texts: Sequence[Text], survive: Survive) -> list[Walk]:
    """The expected cycles of each text."""
    out = []
    n = head.config.horizon
    for text in texts:
        fits = fitting(text.anchors, n)
        places = (torch.arange(text.anchors)[:, None] + torch.arange(1, n + 1)).clamp(max=text.anchors)
        targets = torch.where(fits, head.draft_index(text.tokens)[places], -1)
        (features, past), pending = features_along(head, text), text.tokens[: text.anchors]
        found = [
            survive(
                head.joint(features[part], pending[part], None if past is None else past.part(part)),
                targets[part],
                text.log_probs[places[part]],
            )
            for part in torch.arange(text.anchors).split(AT_ONCE)
        ]
        out.append(walk(torch.cat(found) * fits))
    return out


def main() -> None:
    """Replay, print and save the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--head", default="smollm2-135m-instruct")
    parser.add_argument("--texts", type=Path, required=True)
    parser.add_argument("--nodes", type=int, nargs="+", default=[3, 4, 6, 8, 12, 16])
    parser.add_argument("--most", type=int, help="texts of each mode, all if left out")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    set_threads(1)
    torch.manual_seed(0)
    model, tokenizer = load_model(given.model, dtype=torch.bfloat16)
    head = load_head(given.head, model=model, tokenizer=tokenizer)
    texts_of = continuations(given.model, given.texts, Target(model, tokenizer))
    every = texts_of(head.config.layers)
    greedy, sampled = (
        [item.text for item in every if item.sampled == mode][: given.most] for mode in (False, True)
    )
    first: dict[str, Any] = {"nodes": f"chain of {head.config.horizon}"}
    first["greedy"] = tokens_per_step(head, greedy, chain)
    first["T = 1, chosen"] = tokens_per_step(head, sampled, chain)
    first["T = 1, drawn"] = tokens_per_step(head, sampled, sampled_chain)
    rows = [first]
    for nodes in given.nodes:
        row: dict[str, Any] = {"nodes": str(nodes), "greedy": tokens_per_step(head, greedy, chosen(nodes))}
        row["T = 1, chosen"] = tokens_per_step(head, sampled, chosen(nodes))
        row["T = 1, drawn"] = tokens_per_step(head, sampled, drawn(nodes))
        rows.append(row)
    save(given.out, settings=vars(given), rows=rows)
    shown = [{k: v if isinstance(v, str) else f"{v:.3f}" for k, v in row.items()} for row in rows]
    print(table(shown))


if __name__ == "__main__":
    main()
