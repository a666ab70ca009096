"""CA-only ProteinMPNN (Dauparas et al., Science 378, 49, 2022), arranged for inference: parameter names of the
published weights, residues that padding does not touch, and each linear map applied where it costs least.

A message MLP sees (node i | edge ij | node j). Its first map splits into one product per edge and two per node; its
last map commutes with the sum over neighbours. That is 23 products of 128 x 128 an edge instead of 50.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH, LETTERS, RBF, POSITIONS, FAR = 128, 21, 16, 66, 32
SCALE = 30.0  # the number of neighbours that a sum of messages is divided by, whatever it is
BOND = (3.6, 4.0)  # A: outside it, consecutive residues define no local frame
SHIFTS = ((1, 1), (0, 0), (2, 2), (0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1))  # 0, 1, 2: previous, own, next CA


@dataclass(frozen=True)
class Graph:
    """Neighbours of each residue: flat [B, L, K] indices into [B * L], near [B, L, K] in {0, 1}, mask [B, L, 1]."""

    flat: Tensor
    near: Tensor
    mask: Tensor

    def take(self, nodes: Tensor) -> Tensor:
        """nodes [B, L, C] -> nodes of the neighbours [B, L, K, C]."""
        return nodes.flatten(0, 1).index_select(0, self.flat.flatten()).unflatten(0, self.flat.shape)

    def total(self, messages: Tensor) -> Tensor:
        """Sum over true neighbours: [B, L, K, C] -> [B, L, C]."""
        return (self.near[:, :, None] @ messages).squeeze(2)


class EdgeFeatures(nn.Module):
    """CA traces -> edges to the nearest residues: relative position, nine radial bases, relative orientation.

    Absent neighbours along the chain stand at the origin, as in the published network: the features are invariant
    under rotation, not translation, so that callers centre their chains.
    """

    def __init__(self, neighbours: int) -> None:
        super().__init__()
        self.neighbours = neighbours
        self.embeddings = nn.ModuleDict({"linear": nn.Linear(POSITIONS, RBF)})
        self.edge_embedding = nn.Linear(RBF * (1 + len(SHIFTS)) + 7, WIDTH, bias=False)
        self.norm_edges = nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Graph]:
        """x [B, L, 3] in Angstrom, mask [B, L] -> edges [B, L, K, 128] and their graph."""
        b, n, _ = x.shape
        x = x * mask[..., None]
        pairs = mask[:, :, None] & mask[:, None]
        distance = ((x[:, :, None] - x[:, None]).square().sum(-1) + 1e-6).sqrt()
        near = distance.where(pairs, torch.inf).topk(min(self.neighbours, n), largest=False)
        start = torch.arange(b, device=x.device)[:, None, None] * n
        graph = Graph(start + near.indices, near.values.isfinite().to(x.dtype), mask[..., None].to(x.dtype))
        features = [self._position(near.indices), *self._distances(x, graph), self._orientation(x, mask, graph)]
        return self.norm_edges(self.edge_embedding(torch.cat(features, -1))), graph

    def _position(self, neighbour: Tensor) -> Tensor:
        own = torch.arange(neighbour.shape[1], device=neighbour.device)[:, None]
        offset = (own - neighbour).clamp(-FAR, FAR) + FAR
        linear = self.embeddings["linear"]
        assert isinstance(linear, nn.Linear)
        return F.embedding(offset, linear.weight.T) + linear.bias

    def _distances(self, x: Tensor, graph: Graph) -> list[Tensor]:
        shifted = (F.pad(x, (0, 0, 1, 0))[:, :-1], x, F.pad(x, (0, 0, 0, 1))[:, 1:])
        other = [graph.take(s) for s in shifted]
        centres = torch.linspace(2, 22, RBF, device=x.device)
        width = 20 / RBF
        rows = []
        for i, j in SHIFTS:
            d = ((shifted[i][:, :, None] - other[j]).square().sum(-1) + 1e-6).sqrt()
            rows.append(torch.exp(-(((d[..., None] - centres) / width) ** 2)))
        return rows

    def _orientation(self, x: Tensor, mask: Tensor, graph: Graph) -> Tensor:
        frame = local_frames(x, mask)
        step = graph.take(x) - x[:, :, None]
        direction = F.normalize((frame[:, :, None] @ step[..., None]).squeeze(-1), dim=-1)
        other = graph.take(frame.flatten(2)).unflatten(-1, (3, 3))
        return torch.cat([direction, quaternions(frame.mT[:, :, None] @ other)], -1)


def local_frames(x: Tensor, mask: Tensor) -> Tensor:
    """Frames [B, L, 3, 3] (rows: bisector, normal, their product) from three consecutive CA; zero near the ends."""
    bond = F.pad(x.diff(dim=1), (0, 0, 0, 1))
    length = bond.norm(dim=-1, keepdim=True)
    unit = F.normalize(bond * ((length > BOND[0]) & (length < BOND[1])), dim=-1)
    before, after = unit[:, :-1], unit[:, 1:]
    bisector = F.normalize(before - after, dim=-1)
    normal = F.normalize(torch.linalg.cross(before, after), dim=-1)
    frame = torch.stack([bisector, normal, torch.linalg.cross(bisector, normal)], 2)
    framed = F.pad(mask[:, 2:], (0, 2), value=False)[:, 1:]  # as published: from the second residue to the last but two
    return F.pad(frame * framed[..., None, None], (0, 0, 0, 0, 1, 0))


def quaternions(r: Tensor) -> Tensor:
    """Rotations [..., 3, 3] -> unit quaternions (x, y, z, w)."""
    xx, yy, zz = r.diagonal(dim1=-2, dim2=-1).unbind(-1)
    size = torch.stack([xx - yy - zz, yy - xx - zz, zz - xx - yy], -1).add(1).abs().sqrt() / 2
    axis = torch.stack([r[..., 2, 1] - r[..., 1, 2], r[..., 0, 2] - r[..., 2, 0], r[..., 1, 0] - r[..., 0, 1]], -1)
    real = (1 + xx + yy + zz).relu().sqrt() / 2
    return F.normalize(torch.cat([axis.sign() * size, real[..., None]], -1), dim=-1)


class Layer(nn.Module):
    """What encoder and decoder layers share: messages from neighbours, then a transition, both residual."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.W1, self.W2, self.W3 = nn.Linear(inputs * WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.dense = nn.ModuleDict({"W_in": nn.Linear(WIDTH, 4 * WIDTH), "W_out": nn.Linear(4 * WIDTH, WIDTH)})

    def update(self, h: Tensor, total: Tensor, count: Tensor) -> Tensor:
        """h [..., 128] with the summed hidden messages of `count` [..., 1] neighbours."""
        h = self.norm1(h + (F.linear(total, self.W3.weight) + count * self.W3.bias) / SCALE)
        return self.norm2(h + self.dense["W_out"](F.gelu(self.dense["W_in"](h))))

    def parts(self) -> tuple[Tensor, ...]:
        """W1 by input: (node i, edge, node j), with the residue type of j before node j in a decoder."""
        return self.W1.weight.split(WIDTH, dim=1)


class EncoderLayer(Layer):
    """Node and edge update."""

    def __init__(self) -> None:
        super().__init__(3)
        self.W11, self.W12, self.W13 = nn.Linear(3 * WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.norm3 = nn.LayerNorm(WIDTH)

    def forward(self, h: Tensor, e: Tensor, graph: Graph) -> tuple[Tensor, Tensor]:
        count = graph.near.sum(-1, keepdim=True)
        h = self.update(h, graph.total(hidden(self.W1, self.W2, h, e, graph)), count) * graph.mask
        return h, self.norm3(e + self.W13(hidden(self.W11, self.W12, h, e, graph)))


def hidden(first: nn.Linear, second: nn.Linear, h: Tensor, e: Tensor, graph: Graph) -> Tensor:
    """gelu(second(gelu(first(h_i | e_ij | h_j)))) [B, L, K, 128]."""
    own, edge, other = first.weight.split(WIDTH, dim=1)
    a = F.linear(e, edge)
    a += F.linear(h, own, first.bias)[:, :, None]
    a += graph.take(F.linear(h, other))
    return F.gelu(second(F.gelu(a)))


class CaMPNN(nn.Module):
    """Sequence given a CA trace: three encoder and three decoder layers, 21 letters (20 amino acids and X)."""

    def __init__(self, neighbours: int = 48) -> None:
        super().__init__()
        self.features = EdgeFeatures(neighbours)
        self.W_e, self.W_s = nn.Linear(WIDTH, WIDTH), nn.Embedding(LETTERS, WIDTH)
        self.encoder_layers = nn.ModuleList(EncoderLayer() for _ in range(3))
        self.decoder_layers = nn.ModuleList(Layer(4) for _ in range(3))
        self.W_out = nn.Linear(WIDTH, LETTERS)

    def encode(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Graph]:
        """x [B, L, 3] Angstrom, mask [B, L] -> nodes [B, L, 128], edges [B, L, K, 128], graph."""
        e, graph = self.features(x, mask)
        h, e = e.new_zeros(*x.shape[:2], WIDTH), self.W_e(e)
        for layer in self.encoder_layers:
            h, e = layer(h, e, graph)
        return h, e, graph

    def unconditional(self, x: Tensor, mask: Tensor) -> Tensor:
        """Log-probabilities [B, L, 21] of each residue given the trace and no residue of the sequence."""
        encoded, e, graph = self.encode(x, mask)
        h, count = encoded, graph.near.sum(-1, keepdim=True)
        for layer in self.decoder_layers:
            assert isinstance(layer, Layer)
            own, edge, _, other = layer.parts()
            a = F.linear(e, edge)
            a += F.linear(h, own, layer.W1.bias)[:, :, None]
            a += graph.take(F.linear(encoded, other))
            h = layer.update(h, graph.total(F.gelu(layer.W2(F.gelu(a)))), count)
        return self.W_out(h).log_softmax(-1)
