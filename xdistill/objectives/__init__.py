"""Distillation objectives: one file a method, each with the loss, its paper and its differences from it."""

from xdistill.objectives.base import LossOut, Needs, Objective, Phase, Setting

__all__ = ["LossOut", "Needs", "Objective", "Phase", "Setting"]
