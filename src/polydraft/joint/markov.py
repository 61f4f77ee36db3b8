"""Members whose rows see the token before: a bias on the logits of each position.

    P_a^(s)(. | x_{s-1}) = softmax(logits[s, a] + bias(s, x_{s-1}))

A low-rank bias is the Markov head of DSpark (DeepSeek, 2026). A zero bias leaves the independent head,
or CP for r > 1, where the two kinds of dependence combine.
"""

from __future__ import annotations

from polydraft.joint.canonical import CanonicalGate
from polydraft.joint.independent import IndependentGate
from polydraft.joint.registry import Member, register

register(Member(name="markov", gate=IndependentGate, markov=True, single=True))
register(Member(name="cp-markov", gate=CanonicalGate, markov=True))
