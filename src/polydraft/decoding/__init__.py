"""Drafting and verification: exact generation from a base model and a draft head."""

from polydraft.decoding.compiled import warm_up
from polydraft.decoding.generate import decoder, generate
from polydraft.decoding.live import LiveBatch, LiveRow, new_row
from polydraft.decoding.method import Decoder
from polydraft.decoding.noise import GumbelNoise
from polydraft.decoding.output import DraftedOutput
from polydraft.decoding.plan import Plan
from polydraft.decoding.statistics import DecodingStatistics
from polydraft.decoding.trace import TokenTrace

__all__ = [
    "Decoder",
    "DecodingStatistics",
    "DraftedOutput",
    "GumbelNoise",
    "LiveBatch",
    "LiveRow",
    "Plan",
    "TokenTrace",
    "decoder",
    "generate",
    "new_row",
    "warm_up",
]
