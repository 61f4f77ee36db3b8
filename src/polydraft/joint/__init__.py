"""Joint distributions over the next n tokens: pure tensor maths, knows no model."""

from polydraft.joint.canonical import Canonical
from polydraft.joint.distribution import Chain, JointDistribution, Warp

__all__ = ["Canonical", "Chain", "JointDistribution", "Warp"]
