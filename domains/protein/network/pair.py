"""Updates of the pair representation `z [b, n, n, pair_dim]`: outer sum, triangle multiplications, transition."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from xdistill.domains.protein.network.blocks import LayerNorm

_MAX_TRIANGLE_DIM = 196


class TriangleMultiplication(nn.Module):
    """Triangle multiplicative update over outgoing or incoming edges (AlphaFold 2, algorithms 11 and 12)."""

    def __init__(self, dim: int, outgoing: bool) -> None:
        super().__init__()
        hidden = min(dim, _MAX_TRIANGLE_DIM)
        self.outgoing = outgoing
        self.layer_norm_in = LayerNorm(dim)
        self.layer_norm_out = LayerNorm(hidden)
        self.linear_a_p = nn.Linear(dim, hidden)
        self.linear_a_g = nn.Linear(dim, hidden)
        self.linear_b_p = nn.Linear(dim, hidden)
        self.linear_b_g = nn.Linear(dim, hidden)
        self.linear_g = nn.Linear(dim, dim)
        self.linear_z = nn.Linear(hidden, dim)

    def forward(self, z: Tensor, pair_mask: Tensor) -> Tensor:
        """`z [b, n, n, dim]`, `pair_mask [b, n, n]` -> update `[b, n, n, dim]`, unmasked."""
        z = self.layer_norm_in(z)
        # The sum over the third residue k needs only one masked factor.
        a = self.linear_a_p(z) * torch.sigmoid(self.linear_a_g(z)) * pair_mask.unsqueeze(-1)
        b = self.linear_b_p(z) * torch.sigmoid(self.linear_b_g(z))
        a, b = a.permute(0, 3, 1, 2), b.permute(0, 3, 1, 2)
        mixed = a @ b.transpose(-1, -2) if self.outgoing else a.transpose(-1, -2) @ b
        return self.linear_z(self.layer_norm_out(mixed.permute(0, 2, 3, 1))) * torch.sigmoid(self.linear_g(z))


class PairTransition(nn.Module):
    """LayerNorm, two Linear layers, ReLU (AlphaFold 2, algorithm 15, with expansion 2)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.layer_norm = LayerNorm(dim)
        self.linear_1 = nn.Linear(dim, 2 * dim)
        self.linear_2 = nn.Linear(2 * dim, dim)

    def forward(self, z: Tensor) -> Tensor:
        return self.linear_2(torch.relu(self.linear_1(self.layer_norm(z))))


class PairUpdate(nn.Module):
    """`z_ij += p_j + q_i` from the sequence, then optional triangle updates, then a transition."""

    def __init__(self, token_dim: int, pair_dim: int, use_triangles: bool) -> None:
        super().__init__()
        self.layer_norm_in = LayerNorm(token_dim)
        self.linear_x = nn.Linear(token_dim, 2 * pair_dim, bias=False)
        self.use_triangles = use_triangles
        if use_triangles:
            self.tri_mult_out = TriangleMultiplication(pair_dim, outgoing=True)
            self.tri_mult_in = TriangleMultiplication(pair_dim, outgoing=False)
        self.transition_out = PairTransition(pair_dim)

    def forward(self, s: Tensor, z: Tensor, pair_mask: Tensor) -> Tensor:
        """`s [b, n, token_dim]`, `z [b, n, n, pair_dim]`, `pair_mask [b, n, n]` -> z, zero at masked pairs."""
        p, q = self.linear_x(self.layer_norm_in(s)).chunk(2, dim=-1)
        z = z + p.unsqueeze(1) + q.unsqueeze(2)
        if self.use_triangles:
            z = z + self.tri_mult_out(z, pair_mask)
            z = z + self.tri_mult_in(z, pair_mask)
        return (z + self.transition_out(z)) * pair_mask.unsqueeze(-1)
