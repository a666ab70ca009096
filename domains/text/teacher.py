"""The networks of the text domain: the shipped teacher and student, and what describes a network in a checkpoint."""

from __future__ import annotations

from typing import Any

from xdistill.domains.text.corpus import ASSETS
from xdistill.domains.text.denoiser import TextDenoiser
from xdistill.domains.text.network import TextConfig, TextDiT
from xdistill.process import MaskProcess

SHIPPED_TEACHER = ASSETS / "mini_teacher.safetensors"
SHIPPED_STUDENT = ASSETS / "mini_student"

#: The shipped network: 192 features fit a laptop's cache, and the passage of time is left to the masks.
MINI = {"hidden": 192, "blocks": 6, "heads": 3, "cond": 32, "dropout": 0.0}


def mini(vocabulary: int, process: MaskProcess) -> TextDenoiser:
    """A fresh network of the shipped teacher's size."""
    return TextDenoiser(TextDiT(TextConfig(vocabulary, **MINI)), process)  # type: ignore[arg-type]


def describe(model: TextDenoiser) -> dict[str, Any]:
    """What `from_description` needs, as plain JSON values."""
    process = model.process
    return {
        "config": model.net.config.to_dict(),
        "timed": model.timed,
        "mask_id": process.mask_id,
        "eps": process.eps,
    }


def from_description(d: dict[str, Any]) -> TextDenoiser:
    """An uninitialised network."""
    process = MaskProcess(d["mask_id"], d["eps"])
    return TextDenoiser(TextDiT(TextConfig.from_dict(d["config"])), process, timed=d["timed"])
