"""Drafting and verification: exact generation from a base model and a draft head."""

from polydraft.decoding.compiled import warm_up
from polydraft.decoding.generate import decoder, generate
from polydraft.decoding.method import Decoder
from polydraft.decoding.output import DraftedOutput
from polydraft.decoding.statistics import DecodingStatistics

__all__ = ["Decoder", "DecodingStatistics", "DraftedOutput", "decoder", "generate", "warm_up"]
