"""Degradations of training images: batched, on their device, seeded per sample."""

from .registry import CDD11, NAMES, RANGES, degrade

__all__ = ["CDD11", "NAMES", "RANGES", "degrade"]
