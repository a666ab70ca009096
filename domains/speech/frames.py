"""From phones with durations to what an aligned network reads at every frame."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from xdistill.domains.speech.phones import INDEX, MARKS, PHONES, SILENCE, Phones
from xdistill.errors import XDistillError

#: Ids of an aligned network: 0 is filler, then the phones; a silence after a punctuation mark has an id of its own.
VOCABULARY = len(PHONES) + len(MARKS) - 1


def phone_ids(phones: Phones) -> list[int]:
    """One id a phone, from 1."""
    marked = zip(phones.phones, phones.mark_ids(), strict=True)
    return [len(PHONES) + mark if name == SILENCE and mark else 1 + INDEX[name] for name, mark in marked]


def frame_rate(phones: Phones, durations: Sequence[int]) -> tuple[Tensor, Tensor]:
    """(ids [N] int64, features [N, 3] float32) with N = sum(durations).

    Features: position in the phone in (0, 1), log of its frames, whether it begins a word.
    Raises XDistillError for another number of durations than of phones, or one below 1.
    """
    if len(durations) != len(phones) or min(durations, default=0) < 1:
        raise XDistillError(
            f"{len(durations)} durations for {len(phones)} phones: expected one of 1 frame or more each"
        )
    repeats = torch.tensor(list(durations))
    ids = torch.tensor(phone_ids(phones)).repeat_interleave(repeats)
    frames = repeats.repeat_interleave(repeats).float()
    start = (repeats.cumsum(0) - repeats).repeat_interleave(repeats)
    position = (torch.arange(len(ids)) - start + 0.5) / frames
    begins = torch.tensor(phones.starts()).repeat_interleave(repeats).float()
    return ids, torch.stack([position, frames.log(), begins], 1)
