"""Designs in files by the million: deterministic by (seed, index), resumable, in shards, with a Parquet manifest."""

from xdistill.generation.job import Job
from xdistill.generation.ranks import Rank
from xdistill.generation.run import Engine, Outcome, generate

__all__ = ["Engine", "Job", "Outcome", "Rank", "generate"]
