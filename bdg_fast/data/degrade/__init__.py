"""Degradations of training images: batched, on their device, seeded per sample."""

from .chain import ORDERS, STATES, ChainOrder, two_order_chain
from .common import sent
from .registry import CDD11, CLEAN, NAMES, RANGES, degrade

__all__ = ["CDD11", "CLEAN", "NAMES", "ORDERS", "RANGES", "STATES", "ChainOrder", "degrade", "sent", "two_order_chain"]
