"""Configuration of an F5-TTS network: the switches of the official configuration files, and the published sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from xdistill.errors import UsageError
from xdistill.registry import nearest

MEL_KINDS = ("vocos", "bigvgan")
TOKENIZERS = ("char", "pinyin", "byte", "phones")
SECOND_TIMES = ("none", "added", "mixer")
CONV_GROUPS = 16  # of the convolutional position embedding


@dataclass(frozen=True)
class F5Config:
    """Sizes and switches of the network (arXiv:2410.06885), under official names (F5-TTS v0 and v1).

    vocab_size: V of the vocabulary; the embedding has V + 1 rows, row 0 is the filler.
    pe_attn_head: heads that the rotary embedding turns, None for all. qk_norm: None or `rms_norm`.
    attn_mask_enabled: hide padded keys; official networks attend to them.

    Not in official networks: `aligned` takes phone ids at frame rate with position-in-phone features, and padding then
    never changes results; `second_time` (`added` or `mixer`; True is `added`) tells a student the interval t - r, and
    `guidance_input` the guidance scale that it imitates (its value where it is told none, 0: no such input); both
    without effect at initialisation.
    mel_mean, mel_std: of the natural-log mel, which the network takes as (mel - mean) / std (official: as it is).
    time_scale: of the sinusoids' argument; the second time and the guidance have scale 1.
    """

    mel_dim: int = 100
    dim: int = 1024
    depth: int = 22
    heads: int = 16
    dim_head: int = 64
    dropout: float = 0.1
    ff_mult: float = 2
    text_dim: int = 512
    conv_layers: int = 4
    text_mask_padding: bool = True
    pe_attn_head: int | None = None
    qk_norm: str | None = None
    attn_mask_enabled: bool = False
    long_skip: bool = False
    vocab_size: int = 2545
    tokenizer: str = "pinyin"
    mel_spec_type: str = "vocos"
    mel_mean: float = 0.0
    mel_std: float = 1.0
    aligned: bool = False
    time_scale: float = 1000.0
    second_time: str | bool = "none"
    guidance_input: float = 0.0

    def __post_init__(self) -> None:
        if isinstance(self.second_time, bool):
            object.__setattr__(self, "second_time", "added" if self.second_time else "none")
        for name, known in (("second_time", SECOND_TIMES), ("mel_spec_type", MEL_KINDS), ("tokenizer", TOKENIZERS)):
            value = str(getattr(self, name))
            if value not in known:
                raise UsageError(f"unknown {name} '{value}'{nearest(value, known)}; expected one of {', '.join(known)}")
        if self.qk_norm not in (None, "rms_norm"):
            raise UsageError(f"unknown qk_norm '{self.qk_norm}'; expected none or rms_norm")
        if self.dim % CONV_GROUPS or self.dim_head % 2:
            raise UsageError(f"dim={self.dim}, dim_head={self.dim_head}: expected multiples of {CONV_GROUPS} and of 2")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> F5Config:
        """From plain values; raises UsageError for an unknown key."""
        known = [f.name for f in fields(cls)]
        for key in values:
            if key not in known:
                raise UsageError(f"unknown key '{key}' of an F5 network{nearest(key, known)}")
        return cls(**values)

    @classmethod
    def preset(cls, name: str, **changes: Any) -> F5Config:
        """A named size with `changes`; raises UsageError for an unknown name."""
        if name not in PRESETS:
            raise UsageError(f"unknown F5 network '{name}'{nearest(name, PRESETS)}")
        return replace(PRESETS[name], **changes)


_SMALL: dict[str, int] = {"dim": 768, "depth": 18, "heads": 12}

#: The published networks (speech spec 1.3), and `mini`, a frame-aligned one that trains on a CPU.
PRESETS: dict[str, F5Config] = {
    "F5TTS_Base": F5Config(text_mask_padding=False, pe_attn_head=1),
    "F5TTS_v1_Base": F5Config(),
    "F5TTS_Small": F5Config(**_SMALL, text_mask_padding=False, pe_attn_head=1),  # type: ignore[arg-type]
    "F5TTS_v1_Small": F5Config(**_SMALL, tokenizer="char"),  # type: ignore[arg-type]
    "mini": F5Config(
        dim=192,
        depth=8,
        heads=3,
        dropout=0.0,
        text_dim=128,
        vocab_size=64,
        tokenizer="phones",
        aligned=True,
        mel_mean=-1.85,
        mel_std=2.8,
    ),
}
