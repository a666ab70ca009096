"""F5Net as a flow model, or flow map, of the core: one place turns the time axis and the sign."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor, nn

from xdistill.domains.speech.network import F5Net
from xdistill.errors import XDistillError
from xdistill.models import Cond
from xdistill.process import Kind
from xdistill.state import Field, Padded


@dataclass(frozen=True)
class SpeechCond:
    """What a mel is generated from; all tensors begin with the batch axis.

    ids: [B, T] characters, -1 is padding; of aligned networks [B, N] phones from 1, 0 is filler. frames: [B, N, 3]
    position-in-phone features of aligned networks. mel: [B, N, D] prompt, zero where unknown (None: no prompt).
    dropped: [B] bool, samples without text. guidance: [B] scale told to a student (None: its usual one).
    mask: [B, N] bool, frames that the network sees where these are not the state's own (None: they are).
    text, null: [B, N, text_dim] embedded ids, and without ids; of `SpeechFlow.prepare`.
    """

    ids: Tensor
    frames: Tensor | None = None
    mel: Tensor | None = None
    dropped: Tensor | None = None
    guidance: Tensor | None = None
    mask: Tensor | None = None
    text: Tensor | None = None
    null: Tensor | None = None

    def drop(self) -> SpeechCond:
        """Without prompt and text: the null branch of guidance."""
        dropped = torch.ones(len(self.ids), dtype=torch.bool, device=self.ids.device)
        mel = None if self.mel is None else torch.zeros_like(self.mel)
        return replace(self, mel=mel, dropped=dropped, text=self.null)

    def with_guidance(self, scale: Tensor | None) -> SpeechCond:
        """For a student that imitates guidance of this scale [B]."""
        return replace(self, guidance=scale)

    def to(self, device: torch.device | str) -> SpeechCond:
        """On another device."""
        return self._each(lambda x: x.to(device))

    def take(self, rows: Tensor | slice) -> SpeechCond:
        """Some of the samples."""
        return self._each(lambda x: x[rows])

    def repeat(self, n: int) -> SpeechCond:
        """Every sample n times, one after the other."""
        return self._each(lambda x: x.repeat_interleave(n, 0))

    @classmethod
    def cat(cls, parts: list[SpeechCond]) -> SpeechCond:
        """All samples in one; a prompt or drop flag that only some parts have is filled in.

        Raises XDistillError where parts differ in what else they have.
        """
        marked = [p._marked(any(q.mel is not None for q in parts), parts) for p in parts]
        joined: dict[str, Tensor | None] = {}
        for f in fields(cls):
            values = [getattr(p, f.name) for p in marked]
            present = [v for v in values if v is not None]
            if present and len(present) < len(values):
                raise XDistillError(f"conditions with and without '{f.name}' do not fit in one batch")
            joined[f.name] = torch.cat(present) if present else None
        return cls(**joined)  # type: ignore[arg-type]

    def _marked(self, prompted: bool, parts: list[SpeechCond]) -> SpeechCond:
        like = next((p.mel for p in parts if p.mel is not None), None)
        mel, n = self.mel, len(self.ids)
        if prompted and mel is None and like is not None:
            mel = like.new_zeros(n, *like.shape[1:])
        none = torch.zeros(n, dtype=torch.bool, device=self.ids.device)
        return replace(self, mel=mel, dropped=none if self.dropped is None else self.dropped)

    def _each(self, f: Callable[[Tensor], Tensor]) -> SpeechCond:
        return replace(self, **{k: f(v) for k, v in vars(self).items() if v is not None})


class SpeechFlow(nn.Module):
    """Velocity of core time (0 clean, 1 noise) of log-mels [B, N, D], and its average over a jump.

    Official networks see their padding, so samples of unequal lengths go through them one length at a time, without a
    mask, as at inference by the reference; `SpeechCond.mask` asks for the reference's masked batch instead.
    """

    kind = Kind.VELOCITY

    def __init__(self, net: F5Net) -> None:
        super().__init__()
        self.net = net

    @property
    def flow_map(self) -> bool:
        """Whether the network takes the end of a jump."""
        return self.net.config.second_time != "none"

    @property
    def told(self) -> float:
        """The guidance scale that a student takes where its condition tells none; 0 is no input for it."""
        return self.net.config.guidance_input

    @property
    def time_scale(self) -> float:
        """Of the time embedding: derivatives in t grow with it."""
        return self.net.config.time_scale

    def forward(self, x_t: Field, t: Tensor, cond: Cond, *, r: Tensor | None = None) -> Field:
        """v at t [B], or the average velocity from t to r [B] <= t.

        F5 runs from noise at 0 to data at 1, so its velocity has the opposite sign and jumps from 1 - t to 1 - r.
        Raises UsageError for a jump of a network without second time, XDistillError for another kind of state.
        """
        if not isinstance(x_t.layout, Padded) or not isinstance(cond, SpeechCond):
            raise XDistillError("the speech network takes padded mels [b, n, d] and a SpeechCond")
        mask, dtype = x_t.layout.mask, torch.promote_types(x_t.value.dtype, torch.float32)
        s, interval = (1 - t).to(dtype), None if r is None else (t - r).to(dtype)

        def run(rows: Tensor | slice, n: int, seen: Tensor | None) -> Tensor:
            c = cond.take(rows)
            z = x_t.value[rows, :n]
            mel = torch.zeros_like(z) if c.mel is None else c.mel[:, :n]
            text = self._embed(c, n, seen) if c.text is None else c.text[:, :n]
            end = None if interval is None else interval[rows]
            scale = None if c.guidance is None else c.guidance.to(dtype)
            return self.net(z, s[rows], mel, text, seen, interval=end, guidance=scale).to(z)

        return Field(-self._by_length(mask, cond.mask, run), x_t.layout)

    def prepare(self, cond: SpeechCond, layout: Padded, *, null: bool = True) -> SpeechCond:
        """The same condition with its text embedded once for all calls of a sampler; `null`: also the absent text."""

        def run(dropped: Tensor | None, rows: Tensor | slice, n: int, seen: Tensor | None) -> Tensor:
            return self._embed(replace(cond, dropped=dropped).take(rows), n, seen)

        def embedded(dropped: Tensor | None) -> Tensor:
            return self._by_length(layout.mask, cond.mask, lambda rows, n, seen: run(dropped, rows, n, seen))

        none = torch.ones(len(cond.ids), dtype=torch.bool, device=cond.ids.device)
        return replace(cond, text=embedded(cond.dropped), null=embedded(none) if null else None)

    def _embed(self, c: SpeechCond, n: int, seen: Tensor | None) -> Tensor:
        drop: bool | Tensor = False if c.dropped is None else c.dropped
        ids, frames = (c.ids[:, :n], None if c.frames is None else c.frames[:, :n])
        return self.net.embed_text(ids, n if seen is None else seen, drop, frames)

    def _by_length(
        self, mask: Tensor, seen: Tensor | None, run: Callable[[Tensor | slice, int, Tensor | None], Tensor]
    ) -> Tensor:
        """[B, N, ...] of `run(rows, frames, mask)`, which is called once, or once a length."""
        full = slice(None)
        if seen is not None:
            return run(full, mask.shape[1], seen)
        if bool(mask.all()):
            return run(full, mask.shape[1], None)
        if self.net.config.aligned:
            return run(full, mask.shape[1], mask)
        lengths, out = mask.sum(1), None
        for n in lengths.unique().tolist():
            rows = (lengths == n).nonzero()[:, 0]
            part = run(rows, n, None)
            out = part.new_zeros(*mask.shape, part.shape[-1]) if out is None else out
            padded = nn.functional.pad(part, (0, 0, 0, mask.shape[1] - n))
            out = out.index_copy(0, rows, padded)
        assert out is not None, "an empty batch"
        return out
