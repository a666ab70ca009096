"""How long each phone of a new text lasts: a small convolutional network that learned from the embedded voice."""

import json
from collections.abc import Sequence
from functools import cache
from itertools import accumulate
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from xdistill.domains.speech.phones import MARKS, PHONES, SILENCE, VOWELS, Phones
from xdistill.errors import UsageError, XDistillError

SHIPPED = Path(__file__).parent / "assets" / "durations.safetensors"
SLOWEST, FASTEST = 0.25, 4.0
_SCALARS = 12
_LONG = 12


def features(phones: Phones) -> tuple[Tensor, Tensor]:
    """(ids [N, 2] int64: phone and mark; scalars [N, 12]): place in the word and in the phrase between two silences."""
    marks, starts, ends = phones.mark_ids(), phones.starts(), phones.ends()
    ids = torch.tensor([phones.ids(), marks]).T
    silent = [name == SILENCE for name in phones.phones]
    silences = [0, *accumulate(silent)]
    in_word = _runs(phones.words)
    in_phrase = _runs([2 * silences[i] + flag for i, flag in enumerate(silent)])
    ahead: list[int] = list(accumulate(reversed(marks), lambda later, mark: mark or later))[::-1]
    last = len(phones) - 1
    rows = [
        [
            *(float(flag) for flag in (silent[i], phones.phones[i] in VOWELS, i == 0, i == last, starts[i], ends[i])),
            *(min(value, _LONG) / _LONG for value in (*in_word[i], *in_phrase[i])),
            float(ahead[i] == MARKS.index(",")),
            float(ahead[i] == MARKS.index("?")),
        ]
        for i in range(len(phones))
    ]
    return ids, torch.tensor(rows)


def _runs(labels: Sequence[int]) -> list[tuple[int, int]]:
    """For each entry, how many equal neighbours stand before it and after it."""
    before = [0] * len(labels)
    after = [0] * len(labels)
    for i in range(1, len(labels)):
        before[i] = before[i - 1] + 1 if labels[i] == labels[i - 1] else 0
    for i in range(len(labels) - 2, -1, -1):
        after[i] = after[i + 1] + 1 if labels[i] == labels[i + 1] else 0
    return list(zip(before, after, strict=True))


class DurationNet(nn.Module):
    """Natural log of frames per phone [B, N] from `features`; two convolutions see five phones on each side."""

    def __init__(self, width: int = 64, kernel: int = 5, dropout: float = 0.3) -> None:
        super().__init__()
        self.phone = nn.Embedding(len(PHONES), 32)
        self.mark = nn.Embedding(len(MARKS), 8)
        self.first = nn.Conv1d(32 + 8 + _SCALARS, width, kernel, padding=kernel // 2)
        self.second = nn.Conv1d(width, width, kernel, padding=kernel // 2)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(width, 1)

    def forward(self, ids: Tensor, scalars: Tensor, mask: Tensor) -> Tensor:
        """ids [B, N, 2], scalars [B, N, 12], mask [B, N] of real phones -> [B, N], zero where masked."""
        keep = mask[..., None].to(scalars.dtype)
        hidden = torch.cat([self.phone(ids[..., 0]), self.mark(ids[..., 1]), scalars], -1) * keep
        for convolution, norm in zip((self.first, self.second), self.norms, strict=True):
            hidden = norm(torch.relu(convolution(hidden.mT).mT))
            hidden = self.dropout(hidden) * keep
        return self.out(hidden)[..., 0] * mask


@cache
def shipped() -> DurationNet:
    """The network of the assets, in eval mode."""
    model = DurationNet().eval()
    with safe_open(SHIPPED, "pt") as file:
        model.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    return model


def facts() -> dict[str, dict[str, float]]:
    """What the shipped network and the mean length of each phone measured on held-out clips, see the training tool."""
    with safe_open(SHIPPED, "pt") as file:
        return json.loads(file.metadata()["measured"])


def predict(phones: Phones, speed: float = 1.0, model: DurationNet | None = None) -> list[int]:
    """Frames (93.75 a second) of each phone, at least one; `speed` 2 is twice as fast. Deterministic.

    Raises UsageError for a speed outside 0.25 to 4, XDistillError for no phones.
    """
    if not SLOWEST <= speed <= FASTEST:
        raise UsageError(f"speed={speed:g}: expected {SLOWEST:g} (slow) to {FASTEST:g} (fast); 1 is as recorded")
    if not len(phones):
        raise XDistillError("no phones to give durations to: give a text with words")
    ids, scalars = features(phones)
    with torch.no_grad():
        logs = (model or shipped())(ids[None], scalars[None], torch.ones(1, len(phones), dtype=torch.bool))[0]
    return rounded((logs.double().exp() / speed).tolist())


def rounded(lengths: Sequence[float]) -> list[int]:
    """Whole frames, at least one each, whose running sum stays as close to the wished one as that allows."""
    frames: list[int] = []
    wished = given = 0.0
    for length in lengths:
        wished += length
        frames.append(max(1, round(wished - given)))
        given += frames[-1]
    return frames
