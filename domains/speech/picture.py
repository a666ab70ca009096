"""A mel as a picture."""

from __future__ import annotations

from typing import Any

import numpy as np

from xdistill.domains.speech.metrics import natural
from xdistill.domains.speech.spoken import Spoken

DARKEST, BRIGHTEST = -8.0, 3.0  # nats, shared by all pictures: loudness can be compared


def draw_mel(ax: Any, sample: Spoken) -> None:
    """Time in seconds to the right, bands upwards, what is said as its label."""
    mel = natural(sample)
    seconds = len(mel) / sample.spec.frame_rate
    ax.imshow(
        mel.T, origin="lower", aspect="auto", cmap="magma", vmin=DARKEST, vmax=BRIGHTEST, interpolation="nearest",
        extent=(0, seconds, 0, mel.shape[1]),
    )  # fmt: skip
    ax.set_yticks([])
    text = sample.text if len(sample.text) < 48 else sample.text[:46] + "…"
    ax.set_xlabel(text, fontsize=6)
    ax.tick_params(labelsize=6)
    ax.set_xticks(np.arange(0, seconds, max(1, round(seconds / 4))))
