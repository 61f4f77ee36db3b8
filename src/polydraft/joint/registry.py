"""The members of the family, by name."""

from __future__ import annotations

from dataclasses import dataclass

from polydraft.joint.gate import Gate


@dataclass(frozen=True, kw_only=True)
class Member:
    """One way to model the joint.

    Attributes:
        name: as in `DraftConfig.joint` and `polydraft train --joint`.
        gate: module from features to the hidden process.
        markov: whether a bias from the token before is added to each row.
        steps: whether a module of `heads.steps` runs once per draft and makes its row (`stepwise`); such a
            member has no maps.
        single: whether it has one component only.
    """

    name: str
    gate: type[Gate]
    markov: bool = False
    steps: bool = False
    single: bool = False


MEMBERS: dict[str, Member] = {}


def register(member: Member) -> None:
    """Make `member` known under its name.

    Raises:
        ValueError: another member has that name.
    """
    if MEMBERS.get(member.name, member) != member:
        raise ValueError(f"a member named {member.name!r} is registered already")
    MEMBERS[member.name] = member


def member(name: str) -> Member:
    """The member of that name.

    Raises:
        ValueError: there is none; names those there are.
    """
    if name not in MEMBERS:
        raise ValueError(f"joint must be one of {', '.join(MEMBERS)}, got {name!r}")
    return MEMBERS[name]
