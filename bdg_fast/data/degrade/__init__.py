"""Degradations of training images: batched, on their device, seeded per sample."""

from .chain import ORDERS, STATES, ChainOrder, two_order_chain
from .registry import CDD11, CLEAN, NAMES, RANGES, degrade

__all__ = ["CDD11", "CLEAN", "NAMES", "ORDERS", "RANGES", "STATES", "ChainOrder", "degrade", "two_order_chain"]
