"""Samples in files: deterministic by (seed, index), resumable, with a manifest."""

from xdistill.generation.local import generate

__all__ = ["generate"]
