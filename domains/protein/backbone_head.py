"""A small network that reads, from a CA trace alone, which way every peptide plane is turned.

Unit i joins CA i and CA i+1; its frame comes from CA i-1, i, i+1 and is right-handed for every chain. The network sees
positions in these frames only, so that what it places turns with the chain, and it can tell a chain from its mirror.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, one_hot

from xdistill.domains.protein.peptide import perpendicular, unit_atoms

WINDOW = (-3, -2, -1, 2, 3, 4)  # CA atoms around unit i, which joins 0 and 1
SEPARATION = 4  # neighbours further along the chain than this are told apart no more
REACH = 12.0  # A: neighbours fade out towards it
SCALE = 5.0  # A to network units
RADII = torch.linspace(3.0, 12.0, 7)  # A


@dataclass(frozen=True)
class HeadConfig:
    """width: of a unit's state. message: of what it hears. layers: rounds of that. neighbours: how many it hears."""

    width: int = 96
    message: int = 32
    layers: int = 2
    neighbours: int = 12


@dataclass(frozen=True)
class Planes:
    """What the head predicts for units [b, u].

    frames: [b, u, 3, 3], rows are axes in space. sides: [b, u, 2] towards O in the frame's y-z plane, a list with one
    entry a round, last the best; its length says how sure the head is. ends: [b, u, 3, 3] directions in the
    frame, for a first unit CA-N of its left residue, for a last one CA-C and C-O of its right residue.
    """

    frames: Tensor
    sides: list[Tensor]
    ends: Tensor

    @property
    def towards_o(self) -> Tensor:
        """[b, u, 3] in space."""
        return (self.sides[-1][..., None] * self.frames[..., 1:, :]).sum(-2)


class BackboneHead(nn.Module):
    """Planes of peptide units from CA traces."""

    def __init__(self, config: HeadConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or HeadConfig()
        w = config.width
        self.window = nn.Sequential(nn.Linear(4 * len(WINDOW) + 1, 2 * w), nn.SiLU(), nn.Linear(2 * w, w))
        edge = 3 + 9 + len(RADII) + 2 * SEPARATION + 3
        self.rounds = nn.ModuleList(_Round(w, config.message, edge + 6 * (i > 0)) for i in range(config.layers))
        self.side = nn.ModuleList(nn.Linear(w, 2) for _ in range(config.layers + 1))
        self.end = nn.Sequential(nn.Linear(w, w), nn.SiLU(), nn.Linear(w, 9))

    def forward(self, ca: Tensor, mask: Tensor) -> Planes:
        """ca [b, n, 3] in A, n >= 3, mask [b, n] with padding at the end -> planes of the n - 1 units.

        Padding never changes results: neighbours that are not there have weight 0.
        """
        ca = ca * mask[..., None]
        unit = mask[:, 1:] & mask[:, :-1]
        frames = unit_frames(ca)
        middle = (ca[:, 1:] + ca[:, :-1]) / 2
        h = self.window(_window(ca, mask, frames, middle))
        index, weight = _neighbours(middle, unit, self.config.neighbours)
        edges = _edges(middle, frames, index)
        sides = [self.side[0](h)]
        for i, (layer, side) in enumerate(zip(self.rounds, self.side[1:], strict=True)):  # type: ignore[arg-type]
            guess = [] if i == 0 else [_bonds(ca, frames, middle, sides[-1], index)]
            h = layer(h, torch.cat([edges, *guess], -1), index, weight)
            sides.append(side(h))
        return Planes(frames, sides, self.end(h).unflatten(-1, (3, 3)))


class _Round(nn.Module):
    """Every unit hears its neighbours and updates its state."""

    def __init__(self, width: int, message: int, edge: int) -> None:
        super().__init__()
        self.edge = nn.Linear(edge, message)
        self.mine = nn.Linear(width, message, bias=False)
        self.theirs = nn.Linear(width, message, bias=False)
        inside = width + message
        self.update = nn.Sequential(
            nn.LayerNorm(inside), nn.Linear(inside, 2 * width), nn.SiLU(), nn.Linear(2 * width, width)
        )

    def forward(self, h: Tensor, edges: Tensor, index: Tensor, weight: Tensor) -> Tensor:
        message = self.edge(edges).add_(self.mine(h)[:, :, None]).add_(_gather(self.theirs(h), index))
        heard = torch.einsum("buk,bukw->buw", weight, nn.functional.silu(message))
        return h + self.update(torch.cat([h, heard], -1))


def unit_frames(ca: Tensor) -> Tensor:
    """Right-handed frames [b, n - 1, 3, 3] (rows x, y, z): x along the unit, y towards CA i-1.

    The first unit has no CA i-1: y points away from CA i+2, as if the chain came straight on.
    """
    step = ca[:, 1:] - ca[:, :-1]
    x = normalize(step, dim=-1)
    towards = torch.cat([-step[:, 1:2], -step[:, :-1]], 1)
    y = perpendicular(towards, x)
    return torch.stack([x, y, torch.linalg.cross(x, y)], -2)


def _window(ca: Tensor, mask: Tensor, frames: Tensor, middle: Tensor) -> Tensor:
    """[b, u, 25] positions of the surrounding CA in the unit's frame, whether they exist, the unit's length."""
    n, u = ca.shape[1], ca.shape[1] - 1
    place = torch.arange(u, device=ca.device)[:, None] + torch.tensor(WINDOW, device=ca.device)
    inside = place.clamp(0, n - 1)
    there = mask[:, inside] & (place == inside)
    local = torch.einsum("buij,buwj->buwi", frames, ca[:, inside] - middle[:, :, None]) / SCALE * there[..., None]
    length = (ca[:, 1:] - ca[:, :-1]).norm(dim=-1, keepdim=True) - 3.8
    return torch.cat([local.flatten(2), there.to(ca), length], -1)


def _neighbours(middle: Tensor, unit: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Indices and weights [b, u, k] of the nearest other units; weights fall smoothly to 0 at REACH."""
    distance = torch.cdist(middle, middle, compute_mode="donot_use_mm_for_euclid_dist")
    other = unit[:, None] & unit[:, :, None] & ~torch.eye(unit.shape[1], dtype=torch.bool, device=unit.device)
    distance = distance.masked_fill(~other, REACH)
    near, index = distance.topk(min(count, unit.shape[1]), largest=False)
    return index, 0.5 + 0.5 * torch.cos(torch.pi * (near / REACH).clamp(max=1))


def _gather(x: Tensor, index: Tensor) -> Tensor:
    """x [b, u, ...] at index [b, u, k] -> [b, u, k, ...]."""
    return x[torch.arange(len(x), device=x.device)[:, None, None], index]


def _edges(middle: Tensor, frames: Tensor, index: Tensor) -> Tensor:
    """What a unit sees of each neighbour: where it is, how it is turned, how far along the chain."""
    gap = _gather(middle, index) - middle[:, :, None]
    turn = torch.einsum("buij,bukmj->bukim", frames, _gather(frames, index))
    near = torch.exp(-((gap.norm(dim=-1, keepdim=True) - RADII.to(gap)) ** 2) / (2 * 1.0**2))
    along = index - torch.arange(index.shape[1], device=index.device)[:, None]
    along = one_hot(along.clamp(-SEPARATION - 1, SEPARATION + 1) + SEPARATION + 1, 2 * SEPARATION + 3).to(gap)
    local = torch.einsum("buij,bukj->buki", frames, gap) / SCALE
    return torch.cat([local, turn.flatten(-2), near, along], -1)


def _bonds(ca: Tensor, frames: Tensor, middle: Tensor, side: Tensor, index: Tensor) -> Tensor:
    """Where the neighbours' O and N would be by the round before: what hydrogen bonds are made of."""
    towards = (side[..., None] * frames[..., 1:, :]).sum(-2)
    _, o, n = unit_atoms(ca[:, :-1], ca[:, 1:], towards)
    local = [torch.einsum("buij,bukj->buki", frames, _gather(p, index) - middle[:, :, None]) for p in (o, n)]
    return torch.cat(local, -1) / SCALE
