"""Samplers: pure functions from a model, a process and explicit generators to clean states."""

from xdistill.samplers.flow import Plan, ode, sde
from xdistill.samplers.mask import TokenDraw, ancestral, grid
from xdistill.samplers.renoise import renoise, renoised_input

__all__ = ["Plan", "TokenDraw", "ancestral", "grid", "ode", "renoise", "renoised_input", "sde"]
