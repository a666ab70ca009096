"""Vector channels: an SE(3)-equivariant path through the trunk, for networks that need no rotated copies of the data.

The attention weights of a layer also average positions. Dot products of the resulting vectors inform the residues,
triple products tell right from left, and the residues weigh the vectors into a velocity: after each layer
`x_t + (1 - t) v` is a better estimate of the clean backbone, and what the next layer looks at. Kin: arXiv:2102.09844,
arXiv:2106.03843.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xdistill.domains.protein.network.blocks import LayerNorm

OFFSETS = (-4, -2, -1, 1, 2, 4)  # along the chain; helices repeat after 3.6 residues, strands after 2
_SCALE = 10.0  # nm^-2: brings squared bond lengths (0.14 nm^2) to order one
_SOFT = 0.1  # nm, keeps directions of vanishing vectors finite


class VectorUpdate(nn.Module):
    """Reads the geometry of the present estimate into `s`, and moves the estimate.

    channels: half the number of mixed vectors a residue keeps.
    """

    def __init__(self, dim: int, heads: int, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.mix = nn.Linear(heads + len(OFFSETS) + 2, 2 * channels, bias=False)
        self.read = nn.Linear(channels * (2 * channels + 1) + channels * channels, dim)
        self.norm = LayerNorm(dim)
        self.write = nn.Linear(dim, 3 * channels)
        nn.init.zeros_(self.write.weight)
        nn.init.zeros_(self.write.bias)

    def forward(self, s: Tensor, x: Tensor, v: Tensor, means: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """One update.

        Args:
            s: `[b, n, dim]` residues.
            x: `[b, n, 3]` present estimate of the clean backbone, nm.
            v: `[b, n, 3]` velocity so far.
            means: `[b, n, heads, 3]` attended displacements from each residue.
            mask: `[b, n]`.

        Returns:
            New `s` and `v`; rotating x, v and means rotates v and leaves s alone.
        """
        with torch.autocast(x.device.type, enabled=False):
            vectors = torch.cat((means, neighbours(x, mask), x.unsqueeze(2), v.unsqueeze(2)), dim=2)
            mixed = torch.einsum("bnmd,cm->bncd", vectors, self.mix.weight.float())
            a, b = mixed.chunk(2, dim=2)
            cross = torch.linalg.cross(a, b) / (_SOFT + a.square().sum(-1, keepdim=True)).sqrt()
            i, j = torch.triu_indices(2 * self.channels, 2 * self.channels, device=x.device)
            dots = (mixed @ mixed.transpose(-1, -2)).flatten(-2).index_select(-1, i * 2 * self.channels + j)
            triple = (cross @ mixed[:, :, : self.channels].roll(1, 2).transpose(-1, -2)).flatten(-2)
            areas = _SCALE * torch.cat((dots, triple), dim=-1)
            invariants = areas * (1 + areas.abs()).rsqrt()  # linear near zero, then as a length
        s = s + self.read(invariants.to(s.dtype))
        gates = self.write(self.norm(s)).float()
        return s, v + (gates.unsqueeze(-1) * torch.cat((mixed, cross), dim=2)).sum(2)


def neighbours(x: Tensor, mask: Tensor) -> Tensor:
    """`[b, n, len(OFFSETS), 3]` displacements to residues along the chain; zero beyond its ends."""
    reach, n = max(OFFSETS), x.shape[1]
    xs, ms = F.pad(x, (0, 0, reach, reach)), F.pad(mask, (reach, reach))
    moved = [(xs[:, reach + k :][:, :n] - x) * ms[:, reach + k :][:, :n, None] for k in OFFSETS]
    return torch.stack(moved, dim=2) * mask[:, :, None, None]
