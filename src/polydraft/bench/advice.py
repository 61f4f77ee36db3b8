"""A diagnosis in plain words: what speed-up to expect, and why."""

from __future__ import annotations

from polydraft.bench.diagnosis import Diagnosis

CHEAP = 0.5
"""The part of a forward that verifying a first draft may cost before it is named as the reason."""
LITTLE = 1.03
"""Speed-ups below this are hardly any."""


def advice(found: Diagnosis) -> list[str]:
    """The verdict, then the reasons, a sentence or two each."""
    reasons = [limit(found), verification(found), drafts(found)]
    if found.compiling is None:
        return [verdict(found), *reasons]
    return [verdict(found), compiling(found, found.compiling), *reasons]


def verdict(found: Diagnosis) -> str:
    """What to expect."""
    if found.best == 0:
        return f"Drafting does not pay here: {needed(found)} {remedy(found)}"
    plain, ratio = found.plain_tokens_per_second, found.speed_up
    against = "plain decoding" if found.compiling is None else "plain decoding, compiled too"
    speeds = f"{plain:.1f} tokens/s become {plain * ratio:.1f}, with {way(found, found.best)} a step"
    if ratio < LITTLE:
        return f"Drafting hardly pays here: expect {ratio:.2f}x {against} ({speeds}). {remedy(found)}"
    return f"Expect about {ratio:.2f}x the speed of {against}: {speeds}."


def way(found: Diagnosis, drafts: int) -> str:
    """`drafts` in words."""
    if found.trees:
        return f"a tree of {drafts} node{'s' * (drafts > 1)}"
    return f"{drafts} draft{'s' * (drafts > 1)}"


def needed(found: Diagnosis) -> str:
    """How good drafts would have to be to pay, and how good they are."""
    if not found.trees:
        return (
            f"a single draft a step has to be kept in {found.cost(1) - 1:.0%} of the steps to be worth its "
            f"time, and {found.acceptance[0]:.0%} are."
        )
    size = found.best_drafted
    return (
        f"{way(found, size)} a step has to give {found.cost(size):.2f} tokens to be worth its time, and "
        f"gives {found.tokens[size]:.2f}."
    )


def remedy(found: Diagnosis) -> str:
    """What stands most in the way, and what to do about it."""
    checking = found.costs.forward_seconds(found.rows, 2) / found.plain_seconds - 1
    drafting = found.costs.drafting_seconds(found.rows, 1) / found.plain_seconds
    if max(checking, drafting) <= CHEAP and found.tokens[1] - 1 < CHEAP:
        return (
            "The head guesses right too seldom: train one on text that the model writes itself "
            "(polydraft collect, polydraft train), of this kind and at this temperature."
        )
    if checking >= drafting:
        instead = " Try a smaller batch." if found.rows > 1 else ""
        share = f"each extra token adds {checking:.0%} to a forward pass"
        return f"Verification is expensive here: {share}.{instead}"
    return (
        f"Drafting is expensive here: one draft takes {drafting:.0%} of a forward pass. "
        "Try a head with fewer components (--components) or a smaller draft vocabulary."
    )


def compiling(found: Diagnosis, gain: float) -> str:
    """What it brings without drafts, and together with them."""
    eager, compiled = (f"{milliseconds(s)} ms" for s in (found.eager_seconds, found.plain_seconds))
    if gain < 1:
        return (
            f"Compiling does not pay here: a plain step takes {compiled} compiled, {eager} otherwise. "
            "Leave it out."
        )
    alone = f"Compiling alone makes plain decoding {gain:.2f}x as fast: a step takes {compiled}, not {eager}."
    if found.best == 0:
        return alone
    both = found.eager_ratios[found.best]
    return (
        f"{alone} Compiling and drafting give {both:.2f}x the speed of plain decoding that is not compiled."
    )


def limit(found: Diagnosis) -> str:
    """How far plain decoding is from what memory allows."""
    least, plain = found.limit_seconds, found.plain_seconds
    busy = " Other work kept this machine busy: ask again when it is quiet." if least > plain else ""
    step = "A plain step" if found.compiling is None else "A plain step, compiled,"
    return (
        f"{step} reads {found.weight_bytes / 1e6:,.1f} MB of weights, {milliseconds(least)} ms at the "
        f"{found.bandwidth / 1e9:.3g} GB/s of this machine's memory, and takes {milliseconds(plain)} ms: "
        f"{least / plain:.0%} of the speed that memory allows.{busy}"
    )


def verification(found: Diagnosis) -> str:
    """What checking and drafting cost."""
    ratio = found.costs.forward_seconds(found.rows, found.tried + 1) / found.plain_seconds
    making = found.costs.drafting_seconds(found.rows, found.tried) / found.plain_seconds
    return (
        f"Checking {way(found, found.tried)} makes a forward {ratio:.2f} times as long as a plain one; "
        f"making {'it' if found.trees or found.tried == 1 else 'them'} takes {making:.0%} of one."
    )


def drafts(found: Diagnosis) -> str:
    """How good they are."""
    how = "greedy" if found.temperature == 0 else f"T = {found.temperature:g}"
    seen = f"({found.prompts} prompt{'s' * (found.prompts > 1)}, {found.new_tokens} tokens, {how})"
    given = found.tokens[found.tried]
    if found.trees:
        return (
            f"Trees of {found.tried} nodes give {given:.2f} tokens a step {seen}; what other sizes give is "
            "reckoned from that."
        )
    kept = ", ".join(f"{chance:.0%}" for chance in found.acceptance)
    return (
        f"Of the drafts at each position, {kept} are kept where those before were: with {found.tried} a "
        f"step, {given:.2f} tokens {seen}."
    )


def milliseconds(seconds: float) -> str:
    """Three digits, or as many as there are before the point."""
    return f"{1e3 * seconds:.3g}" if seconds < 0.9995 else f"{1e3 * seconds:,.0f}"
