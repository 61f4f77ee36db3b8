"""The registry, and that the document's example is a member like any other."""

from __future__ import annotations

import pytest

from polydraft.joint import MEMBERS, Member, member, register
from polydraft.joint.canonical import CanonicalGate
from tests.joint.members import NAMES, STEPWISE
from tests.joint.toy import DOCUMENT, TOY, example, registered


def test_names() -> None:
    assert set(MEMBERS) - {TOY} == {
        *("independent", "cp", "hmm", "tree", "markov", "cp-markov"),
        *("sequential", "recurrent"),
    }
    assert set(NAMES) == set(MEMBERS)
    assert all(found.name == name for name, found in MEMBERS.items())


def test_one_component_or_several() -> None:
    assert [name for name in NAMES if member(name).single] == [
        *("independent", "markov", "sequential", "recurrent")
    ]
    assert [name for name in NAMES if member(name).markov] == ["markov", "cp-markov"]
    assert [name for name in NAMES if member(name).steps] == ["sequential", "recurrent"] == [*STEPWISE]


def test_a_name_is_taken_once() -> None:
    register(member("cp"))
    with pytest.raises(ValueError, match="a member named 'cp' is registered already"):
        register(Member(name="cp", gate=CanonicalGate, markov=True))


def test_an_unknown_name_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"joint must be one of .*cp, .*got 'tt'"):
        member("tt")


def test_the_example_of_the_document_is_the_sixth_member() -> None:
    assert member(TOY).gate is example()["SwitchGate"]
    assert "class Switch(Latent)" in DOCUMENT.read_text()


def test_it_is_a_member_for_a_while_only() -> None:
    found = MEMBERS.pop(TOY)
    with registered() as toy:
        assert member(TOY) is toy is found
    assert TOY not in MEMBERS
    register(found)
