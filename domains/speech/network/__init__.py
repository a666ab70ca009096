"""The F5-TTS network in plain torch: native time (0 noise, 1 data) in, native velocity out."""

from xdistill.domains.speech.network.config import PRESETS, F5Config
from xdistill.domains.speech.network.dit import F5Net

__all__ = ["PRESETS", "F5Config", "F5Net"]
