"""How a drafted generation drafts and verifies: the choices, by name."""

from __future__ import annotations

from polydraft.errors import InputError

VERIFICATIONS = ("token", "block")
DRAFTINGS = ("chain", "components")
VERIFIERS = ("trained", "base")
VERIFICATION = "token"
"""The verification unless another is asked for."""
DRAFTING = "chain"
"""The greedy drafting unless another is asked for."""
VERIFIER = "trained"
"""Of a model with an adapter."""


def check_modes(*, verification: str, drafting: str, do_sample: bool = False) -> None:
    """Refuse what is no choice, or none for sampling.

    Raises:
        InputError: names the choice and those there are.
    """
    for name, value, choices in (
        ("verification", verification, VERIFICATIONS),
        ("drafting", drafting, DRAFTINGS),
    ):
        if value not in choices:
            raise InputError(f"{name} must be {' or '.join(choices)}, got {value!r}")
    if do_sample and drafting == "components":
        raise InputError("drafting components is for greedy decoding alone: sample with drafting chain")


def check_verifier(verifier: str, *, adapter: bool) -> None:
    """Refuse what is no verifier, or none without an adapter.

    Raises:
        InputError: names what there is.
    """
    if verifier not in VERIFIERS:
        raise InputError(f"verifier must be {' or '.join(VERIFIERS)}, got {verifier!r}")
    if verifier == "base" and not adapter:
        raise InputError("verifier 'base' needs an adapter, which drafts: give it with --adapter")
