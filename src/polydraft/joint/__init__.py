"""Joint distributions over the next n tokens: pure tensor maths, knows no model.

Every member is a hidden process over components (`Latent`) under one `LatentMixture`, or goes step by step
(`StepwiseJoint`); see `registry`.
"""

from polydraft.joint import markov as markov
from polydraft.joint.binary_tree import BinaryTree
from polydraft.joint.canonical import Canonical
from polydraft.joint.distribution import Chain, JointDistribution, Warp, drawable
from polydraft.joint.gate import Gate
from polydraft.joint.hidden_markov import HiddenMarkov
from polydraft.joint.independent import Independent
from polydraft.joint.latent import Latent, select_state
from polydraft.joint.mixture import LatentMixture
from polydraft.joint.registry import MEMBERS, Member, member, register
from polydraft.joint.stepwise import Step, Stepper, StepwiseJoint, unrolled

__all__ = [
    "MEMBERS",
    "BinaryTree",
    "Canonical",
    "Chain",
    "Gate",
    "HiddenMarkov",
    "Independent",
    "JointDistribution",
    "Latent",
    "LatentMixture",
    "Member",
    "Step",
    "Stepper",
    "StepwiseJoint",
    "Warp",
    "drawable",
    "member",
    "register",
    "select_state",
    "unrolled",
]
