"""A diagnosis in plain words: what speed-up to expect, and why."""

from __future__ import annotations

from polydraft.evaluation.doctor import Diagnosis

CHEAP = 0.5
"""Of a forward: what a first draft may cost in verification before that is named as the reason."""
LITTLE = 1.03
"""Speed-ups below this are hardly any."""


def advice(found: Diagnosis) -> list[str]:
    """The verdict, then the reasons, a sentence or two each."""
    return [verdict(found), limit(found), verification(found), drafts(found)]


def verdict(found: Diagnosis) -> str:
    """What to expect."""
    plain, ratio, best = found.rows / found.plain_seconds, found.ratios[found.best], found.best
    if best == 0:
        return (
            f"Drafting does not pay here: a single draft a step has to be kept in {found.cost(1) - 1:.0%} of "
            f"the steps to be worth its time, and {found.acceptance[0]:.0%} are. {remedy(found)}"
        )
    speeds = f"{plain:.1f} tokens/s become {plain * ratio:.1f}, with {best} draft{'s' * (best > 1)} a step"
    if ratio < LITTLE:
        return f"Drafting hardly pays here: expect {ratio:.2f}x ({speeds}). {remedy(found)}"
    return f"Expect about {ratio:.2f}x the speed of plain decoding: {speeds}."


def remedy(found: Diagnosis) -> str:
    """What stands most in the way, and what to do about it."""
    checking = found.costs.forward_seconds(found.rows, 2) / found.plain_seconds - 1
    drafting = found.costs.drafting_seconds(found.rows, 1) / found.plain_seconds
    if max(checking, drafting) <= CHEAP and found.acceptance[0] < CHEAP:
        return (
            "The head guesses right too seldom: train one on text that the model writes itself "
            "(polydraft collect, polydraft train), of this kind and at this temperature."
        )
    if checking >= drafting:
        return f"Checking is dear: a second token adds {checking:.0%} to a forward. Try a smaller batch."
    return (
        f"Drafting is dear: one draft takes {drafting:.0%} of a forward. Try a head with fewer components "
        "(--components) or a smaller draft vocabulary."
    )


def limit(found: Diagnosis) -> str:
    """How far plain decoding is from what memory allows."""
    least, plain = 1e3 * found.limit_seconds, 1e3 * found.plain_seconds
    busy = " Other work kept this machine busy: ask again when it is quiet." if least > plain else ""
    return (
        f"A plain step reads {found.weight_bytes / 1e6:,.1f} MB of weights, {least:.3g} ms at the "
        f"{found.bandwidth / 1e9:.3g} GB/s of this machine's memory, and takes {plain:.3g} ms: "
        f"{least / plain:.0%} of the speed that memory allows.{busy}"
    )


def verification(found: Diagnosis) -> str:
    """What checking and drafting cost."""
    most = found.horizon
    ratio = found.costs.forward_seconds(found.rows, most + 1) / found.plain_seconds
    making = found.costs.drafting_seconds(found.rows, most) / found.plain_seconds
    return (
        f"Checking {most} drafts makes a forward {ratio:.2f} times as long as a plain one; "
        f"making them takes {making:.0%} of one."
    )


def drafts(found: Diagnosis) -> str:
    """How good they are."""
    kept = ", ".join(f"{chance:.0%}" for chance in found.acceptance)
    how = "greedy" if found.temperature == 0 else f"T = {found.temperature:g}"
    return (
        f"Of the drafts at each position, {kept} are kept where those before were: with {found.horizon} a "
        f"step, {found.tokens_per_step(found.horizon):.2f} tokens ({found.prompts} "
        f"prompt{'s' * (found.prompts > 1)}, {found.new_tokens} tokens, {how})."
    )
