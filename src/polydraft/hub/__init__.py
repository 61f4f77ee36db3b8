"""Sharing heads: the card of a head's folder, and putting the folder on a hub."""

from polydraft.hub.card import CARD, write_card
from polydraft.hub.push import push_head

__all__ = ["CARD", "push_head", "write_card"]
