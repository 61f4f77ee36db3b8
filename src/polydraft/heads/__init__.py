"""Draft heads: modules that turn a base model's hidden state into a joint distribution."""

from polydraft.heads.config import DraftConfig
from polydraft.heads.draft_head import DraftHead

__all__ = ["DraftConfig", "DraftHead"]
