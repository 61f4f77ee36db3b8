"""How a drafted generation drafts and verifies: the choices, by name."""

from __future__ import annotations

from polydraft.errors import InputError

VERIFICATIONS = ("token", "block")
DRAFTINGS = ("auto", "tree", "chain")
VERIFIERS = ("trained", "base")
VERIFICATION = "token"
"""The verification unless another is asked for."""
DRAFTING = "auto"
"""The drafting unless another is asked for: trees where the model takes them, else chains."""
DRAFT_LENGTH: int | None = None
"""Drafts of a cycle unless another number is given; None picks the fastest number for this machine."""
VERIFIER = "trained"
"""The verifier of a model with an adapter, unless another is chosen."""


def asked_length(draft_length: int | None) -> int | None:
    """Drafts of a cycle as asked for, else `DRAFT_LENGTH`."""
    return DRAFT_LENGTH if draft_length is None else draft_length


def check_modes(
    *,
    verification: str,
    drafting: str,
    do_sample: bool = False,
    draft_length: int | None = None,
    prompt_lookup_num_tokens: int | None = None,
) -> None:
    """Refuse what is no choice, or none for sampling.

    Raises:
        InputError: names the choice and those there are.
    """
    for name, value, choices in (
        ("verification", verification, VERIFICATIONS),
        ("drafting", drafting, DRAFTINGS),
    ):
        if value not in choices:
            raise InputError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
    if draft_length is not None and draft_length < 0:
        raise InputError(f"draft_length must be 0 (plain decoding) or more, got {draft_length}")
    if prompt_lookup_num_tokens is not None and prompt_lookup_num_tokens < 1:
        raise InputError(f"prompt_lookup_num_tokens must be 1 or more, got {prompt_lookup_num_tokens}")
    if do_sample and drafting == "tree" and verification == "block":
        raise InputError("verification block judges chains: use drafting chain, or verification token")


def check_verifier(verifier: str, *, adapter: bool) -> None:
    """Refuse what is no verifier, or none without an adapter.

    Raises:
        InputError: names what there is.
    """
    if verifier not in VERIFIERS:
        raise InputError(f"verifier must be {' or '.join(VERIFIERS)}, got {verifier!r}")
    if verifier == "base" and not adapter:
        raise InputError("verifier 'base' needs an adapter, which drafts: give it with --adapter")
