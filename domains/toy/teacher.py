"""Networks of the toy domain: exact denoisers in closed form, and a small MLP that trains in seconds."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xdistill.models import Cond
from xdistill.process import GaussianProcess, Kind
from xdistill.state import Field, Layout, Padded, Ragged, lerp


@dataclass(frozen=True)
class Label:
    """The mode a sample comes from: `ids [B]` int64, -1 where it is not told."""

    ids: Tensor

    def drop(self) -> Label:
        return Label(torch.full_like(self.ids, -1))

    def to(self, device: torch.device | str) -> Label:
        return Label(self.ids.to(device))


def labels(cond: Cond, batch: int, device: torch.device) -> Tensor:
    """Mode labels [B] of any conditioning; -1 everywhere when it carries none."""
    return cond.ids if isinstance(cond, Label) else torch.full((batch,), -1, device=device)


class MixtureTeacher(nn.Module):
    """The exact network of x0 ~ sum_k w_k N(m_k, std^2 I), on any Gaussian path and for any layout.

    means [K, D], weights [K] (uniform by default). Every element of a sample comes from the same component, so
    a sample of several elements is a coherent set. One component is a Gaussian. It has no parameters.
    With V = (alpha std)^2 + sigma^2 and M the posterior mean of m_k: E[x0|x_t] = M + (alpha std^2 / V)(x_t - alpha M)
    and E[e|x_t] = (sigma / V)(x_t - alpha M), finite at t = 0 and t = 1.
    """

    means: Tensor
    log_weights: Tensor

    def __init__(
        self,
        process: GaussianProcess,
        means: Tensor,
        std: float,
        *,
        weights: Tensor | None = None,
        kind: Kind = Kind.VELOCITY,
    ) -> None:
        super().__init__()
        self.process, self.std, self.kind = process, std, kind
        weights = torch.ones(len(means)) if weights is None else weights
        self.register_buffer("means", means.double())
        self.register_buffer("log_weights", (weights.double() / weights.sum()).log())

    def forward(self, x_t: Field, t: Tensor, cond: Cond) -> Field:
        c = self.process.coeffs(t)
        variance = (c.alpha * self.std) ** 2 + c.sigma**2
        means = [Field(m.to(x_t.value).expand_as(x_t.value), x_t.layout).project() for m in self.means]
        # log N(x_t; alpha m, V) up to a term without m; |m|^2 counts the sample's elements
        fit = torch.stack([x_t.dot(m) for m in means], 1) * c.alpha[:, None]
        fit = fit - torch.stack([m.dot(m) for m in means], 1) * (c.alpha**2)[:, None] / 2
        logits = self.log_weights + fit / variance[:, None]
        share = torch.where(self._told(cond, x_t), logits, -torch.inf).softmax(1)
        mean = lerp([(share[:, k], m) for k, m in enumerate(means)])
        offset = x_t - mean.scale(c.alpha)
        u, w = c.basis(self.kind)
        slope = (u * c.alpha * self.std**2 + w * c.sigma) / variance
        return lerp([(u, mean), (slope, offset)]).project()

    def _told(self, cond: Cond, x_t: Field) -> Tensor:
        """[B, K] components that the conditioning leaves possible."""
        ids = labels(cond, x_t.batch, x_t.value.device)[:, None]
        return (ids < 0) | (ids == torch.arange(len(self.means), device=ids.device))


def spread(per_sample: Tensor, layout: Layout) -> Tensor:
    """[B, W] -> one row an element, broadcastable against `value`."""
    match layout:
        case Padded():
            return per_sample[:, None]
        case Ragged():
            return per_sample[layout.index]
    return per_sample


def pool(rows: Tensor, layout: Layout) -> Tensor:
    """Mean of the rows of each sample's valid elements, [B, W]."""
    match layout:
        case Padded():
            kept = rows.masked_fill(~layout.mask[..., None], 0)
            return kept.sum(1) / layout.lengths.clamp(min=1)[:, None]
        case Ragged():
            total = rows.new_zeros(layout.batch, rows.shape[1]).index_add(0, layout.index, rows)
            return total / layout.elements(rows).clamp(min=1)[:, None]
    return rows


class Block(nn.Module):
    """Residual two-layer block; elements of one sample see each other through their mean (deep sets, 1703.06114)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.context, self.down = (nn.Linear(width, width) for _ in range(3))
        nn.init.zeros_(self.context.weight)

    def forward(self, h: Tensor, emb: Tensor, layout: Layout) -> Tensor:
        x = self.norm(h) + emb
        return h + self.down(F.silu(self.up(x) + spread(self.context(pool(x, layout)), layout)))


class PointNet(nn.Module):
    """Residual MLP over the elements of a sample; one set of weights serves every Gaussian process and every `kind`.

    Inside, the state is put on the circle: with phi = atan2(sigma, alpha), x' = x_t / sqrt(alpha^2 + sigma^2) lies on
    the trigonometric path (objectives spec 0.3), where the trunk predicts F = cos(phi) e - sin(phi) x0. Then
    x0 = cos x' - sin F and e = sin x' + cos F, and `kind` is a fixed mix of both.
    flow_map: with a second time input, the length t - r of a jump, whose effect starts at zero.
    """

    FREQUENCIES = 6
    time_scale = 1.0

    def __init__(
        self,
        process: GaussianProcess,
        dim: int = 2,
        *,
        kind: Kind = Kind.VELOCITY,
        width: int = 64,
        depth: int = 3,
        modes: int = 8,
        flow_map: bool = False,
    ) -> None:
        super().__init__()
        self.process, self.kind, self.feature_dim, self.flow_map = process, kind, width * depth, flow_map
        self.sizes = {"dim": dim, "width": width, "depth": depth, "modes": modes}
        self.inputs = nn.Linear(dim, width)
        self.time = nn.Linear(2 * self.FREQUENCIES, width)
        self.label = nn.Embedding(modes + 1, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.output = nn.Linear(width, dim)
        if flow_map:
            self.sizes |= {"flow_map": True}
            self.jump = nn.Linear(2 * self.FREQUENCIES, width)
            nn.init.zeros_(self.jump.weight)
            nn.init.zeros_(self.jump.bias)

    def forward(self, x_t: Field, t: Tensor, cond: Cond, *, r: Tensor | None = None) -> Field:
        c = self.process.coeffs(t)
        phi = torch.atan2(c.sigma, c.alpha)
        x = x_t.scale(torch.rsqrt(c.alpha**2 + c.sigma**2)).project()
        jump = torch.zeros_like(t) if r is None else t - r
        trunk = Field(self.output(self._hidden(x, phi, cond, jump)[-1]).to(x.value), x_t.layout)
        u, w = c.basis(self.kind)
        return lerp([(u * phi.cos() + w * phi.sin(), x), (w * phi.cos() - u * phi.sin(), trunk)]).project()

    def features(self, x_t: Field, t: Tensor, cond: Cond) -> Tensor:
        """Hidden layers pooled over valid elements, [B, feature_dim]."""
        c = self.process.coeffs(t)
        x = x_t.scale(torch.rsqrt(c.alpha**2 + c.sigma**2)).project()
        hidden = self._hidden(x, torch.atan2(c.sigma, c.alpha), cond)
        return torch.cat([pool(h, x_t.layout) for h in hidden], 1)

    def _hidden(self, x: Field, phi: Tensor, cond: Cond, jump: Tensor | None = None) -> list[Tensor]:
        dtype = self.inputs.weight.dtype
        ids = labels(cond, x.batch, x.value.device) % self.label.num_embeddings  # -1 is the last row
        emb = self.time(self._waves(phi).to(dtype)) + self.label(ids)
        if self.flow_map and jump is not None:
            emb = emb + self.jump(self._waves(jump).to(dtype))
        h, out = self.inputs(x.value.to(dtype)), []
        for block in self.blocks:
            h = block(h, spread(emb, x.layout), x.layout)
            out.append(h)
        return out

    def _waves(self, angle: Tensor) -> Tensor:
        angle = angle[:, None] * torch.arange(1, self.FREQUENCIES + 1, device=angle.device)
        return torch.cat([angle.cos(), angle.sin()], 1)


def circle(modes: int, radius: float, dim: int = 2) -> Tensor:
    """[modes, dim] float64: equally spaced on a circle in the first two coordinates."""
    angle = 2 * math.pi * torch.arange(modes, dtype=torch.float64) / modes
    means = torch.zeros(modes, dim, dtype=torch.float64)
    means[:, 0], means[:, 1] = radius * angle.cos(), radius * angle.sin()
    return means
