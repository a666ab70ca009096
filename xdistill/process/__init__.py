"""Corruption laws p_t(x_t | x_0) on one time axis: t = 0 clean, t = 1 prior."""

from xdistill.process.base import Process
from xdistill.process.gaussian import Coeffs, GaussianProcess, Kind
from xdistill.process.mask import MaskProcess
from xdistill.process.schedules import EDM, VP, Linear, Trig

__all__ = ["EDM", "VP", "Coeffs", "GaussianProcess", "Kind", "Linear", "MaskProcess", "Process", "Trig"]
