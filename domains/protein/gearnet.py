"""Relational graph network on CA traces (GearNet, arXiv:2203.06125): Proteina's fold classifier, and a smaller one.

Official weights `gearnet_ca.pth` (arXiv:2503.00710) cannot be had offline: their parameter names, sizes and graph were
taken from the published code, shapes are checked on loading, and no number of theirs has been reproduced here.
"""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch_geometric.data import Data
from torch_geometric.nn import global_add_pool, global_mean_pool
from torch_geometric.utils import scatter

from xdistill.errors import XDistillError

FORMAT = "xdistill-gearnet-1"
SLOPE = 0.1  # of every leaky ReLU
MOMENTUM = 0.2  # of every batch norm
RBF_MAX = 20.0  # A
EPS = 1e-6
ORIENTED_NODE, ORIENTED_RBF, ORIENTED_INDEX = 7, 16, 12  # widths of the invariant features
ORIENTED_EDGE = ORIENTED_RBF + ORIENTED_INDEX + 15


@dataclass(frozen=True)
class GearNetConfig:
    """Sizes and graph; the defaults are those of the official CA weights.

    Relations: one for each sequence offset -offsets..offsets, one for pairs closer than `radius` (A; at most
    `max_neighbours` of a residue, the first in sequence), one for the `nearest` neighbours if any. Spatial edges join
    residues at least `separation` apart in sequence.
    geometry: `official` (residue index; distance, offset and an angle about the centroid whose sign follows the z axis:
    features depend on the pose, and are the same for a chain and its inversion, so that they are blind to
    handedness) or `oriented` (virtual angles and dihedrals, directions in local frames:
    invariant to motions, and different for mirror images). readout: `sum` or `mean` over residues.
    heads: classes by level.
    """

    input_dim: int = 512
    hidden_dim: int = 512
    layers: int = 8
    edge_dim: int = 256
    offsets: int = 2
    radius: float = 10.0
    max_neighbours: int = 64
    nearest: int = 0
    separation: int = 1
    geometry: str = "official"
    readout: str = "sum"
    dropout: float = 0.2
    max_len: int = 3000
    heads: Mapping[str, int] = field(default_factory=lambda: {"T": 1336, "A": 43, "C": 5})

    @property
    def relations(self) -> int:
        """Number of edge types."""
        return 2 * self.offsets + 2 + (self.nearest > 0)


class Block(nn.Module):
    """Batch norm, leaky ReLU, dropout, linear map; `post`: followed by batch norm, leaky ReLU and dropout again."""

    def __init__(self, dim_in: int, dim_out: int, dropout: float, post: bool = False) -> None:
        super().__init__()
        layers = [*_activation(dim_in, dropout), nn.Linear(dim_in, dim_out, bias=post)]
        self.module = nn.Sequential(*layers, *(_activation(dim_out, dropout) if post else ()))

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x)


class RelationalConv(nn.Module):
    """Messages (sender + edge features) are summed for each relation, then mixed by one matrix (eqs. 1 and 2)."""

    def __init__(self, dim_in: int, c: GearNetConfig) -> None:
        super().__init__()
        self.relations, dim, drop = c.relations, c.hidden_dim, c.dropout
        self.identity = Block(dim_in, dim, drop) if dim_in != dim else nn.Sequential()
        self.input = Block(dim_in, dim_in, drop, post=True)
        self.edge_input = Block(c.edge_dim, dim_in, drop, post=True)
        self.linear = Block(c.relations * dim_in, dim, drop)
        self.output = Block(dim, dim, drop)

    def forward(self, x: Tensor, graph: Data) -> Tensor:
        sender, receiver = graph.edge_index
        message = self.input(x)[sender] + self.edge_input(graph.edge_attr)
        slot = receiver * self.relations + graph.edge_type
        summed = scatter(message, slot, dim=0, dim_size=len(x) * self.relations, reduce="sum")
        return self.output(self.linear(summed.view(len(x), -1))) + self.identity(x)


class GearNet(nn.Module):
    """Graph features [B, hidden_dim] and class logits of CA chains; batch norms need `eval()` outside of training."""

    def __init__(self, config: GearNetConfig | None = None) -> None:
        super().__init__()
        c = self.config = config or GearNetConfig()
        if self.official_geometry:
            self.atom_embedding = nn.Embedding(1, c.input_dim // 2)
        dims = [c.input_dim] + [c.hidden_dim] * c.layers
        self.layers = nn.ModuleList(RelationalConv(d, c) for d in dims[:-1])
        self.mlp = Block(c.hidden_dim, c.hidden_dim, c.dropout, post=True)
        for level, classes in c.heads.items():
            setattr(self, f"pred_head_{level}", nn.Linear(c.hidden_dim, classes))

    @property
    def official_geometry(self) -> bool:
        """Whether graph and features are those of the official weights."""
        return self.config.geometry == "official"

    def graph(self, chains: Sequence[Tensor]) -> Data:
        """The batch graph of chains [n, 3] in Angstrom, n >= 4, on their own device."""
        c = self.config
        x, lengths = pad_sequence(list(chains), batch_first=True), torch.tensor([len(x) for x in chains])
        lengths = lengths.to(x.device)
        mask = torch.arange(x.shape[1], device=x.device) < lengths[:, None]
        index, kind = _edges(x, mask, c)
        position = mask.cumsum(1)[mask] - 1
        batch = torch.arange(len(chains), device=x.device).repeat_interleave(lengths)
        if self.official_geometry:
            node = torch.cat([self.atom_embedding.weight.expand(len(position), -1), self._index(position)], 1)
            edge = self._official_edges(x, mask, index, position, batch)
        else:
            node, edge = _oriented_features(x, mask, index, position)
        return Data(x=node, edge_index=index, edge_type=kind, edge_attr=edge, batch=batch)

    def forward(self, graph: Data) -> Tensor:
        """Graph features [B, hidden_dim]."""
        x = graph.x
        for layer in self.layers:
            x = layer(x, graph)
        pool = global_add_pool if self.config.readout == "sum" else global_mean_pool
        return self.mlp(pool(x, graph.batch))

    def logits(self, features: Tensor) -> dict[str, Tensor]:
        """Class logits [B, classes] by level from graph features."""
        return {level: getattr(self, f"pred_head_{level}")(features) for level in self.config.heads}

    def _index(self, position: Tensor) -> Tensor:
        return index_embedding(position, self.config.input_dim // 2, self.config.max_len)

    def _official_edges(self, x: Tensor, mask: Tensor, index: Tensor, position: Tensor, batch: Tensor) -> Tensor:
        centroid = (x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        flat, (i, j) = x[mask], index
        rbf = distance_basis((flat[j] - flat[i]).norm(dim=1), self.config.edge_dim // 2)
        offset = index_embedding(position[j] - position[i], self.config.edge_dim // 2 - 2, self.config.max_len)
        a, b = (flat[k] - centroid[batch[k]] for k in (i, j))
        normal = torch.linalg.cross(a, b)
        angle = torch.atan2(normal.norm(dim=1), (a * b).sum(1)) * normal[:, 2].sign()
        return torch.cat([rbf, offset, angle.sin()[:, None], angle.cos()[:, None]], 1)


def index_embedding(index: Tensor, dim: int, max_len: int) -> Tensor:
    """[..., dim] sines, then cosines, of `index pi / max_len^(2k/dim)`, k = 0..dim/2-1."""
    k = torch.arange(dim // 2, device=index.device)
    phase = index[..., None] * math.pi / max_len ** (2 * k / dim)
    return torch.cat([phase.sin(), phase.cos()], -1)


def distance_basis(distance: Tensor, dim: int) -> Tensor:
    """[..., dim] Gaussians of width RBF_MAX / dim, centres evenly on 0..RBF_MAX (A)."""
    centres = torch.linspace(0, RBF_MAX, dim, device=distance.device)
    return torch.exp(-(((distance[..., None] - centres) * dim / RBF_MAX) ** 2))


def _activation(dim: int, dropout: float) -> tuple[nn.Module, ...]:
    drop = nn.Dropout(dropout) if dropout else nn.Identity()  # keeps the place in the names of parameters
    return nn.BatchNorm1d(dim, momentum=MOMENTUM), nn.LeakyReLU(SLOPE), drop


def _edges(x: Tensor, mask: Tensor, c: GearNetConfig) -> tuple[Tensor, Tensor]:
    """(sender, receiver) [2, E] over valid residues and relation [E], from padded chains [B, n, 3]."""
    at = torch.arange(x.shape[1], device=x.device)
    apart = (at[:, None] - at[None, :]).expand(len(x), -1, -1)  # receiver - sender
    valid = mask[:, :, None] & mask[:, None, :]
    distance = (x[:, :, None] - x[:, None, :]).norm(dim=-1)
    far = valid & (apart.abs() >= max(c.separation, 1))
    close = far & (distance < c.radius)
    close &= close.cumsum(2) <= c.max_neighbours
    relations = [(valid & (apart.abs() <= c.offsets) & (apart != 0), apart + c.offsets)]
    relations.append((close, torch.full_like(apart, 2 * c.offsets + 1)))
    if c.nearest:
        near = distance.masked_fill(~far, torch.inf)
        ranked = near.topk(min(c.nearest, len(at)), dim=2, largest=False).indices
        chosen = torch.zeros_like(far).scatter(2, ranked, True) & far
        relations.append((chosen, torch.full_like(apart, 2 * c.offsets + 2)))
    number = mask.flatten().cumsum(0).view(mask.shape) - 1
    index, kind = [], []
    for edges, relation in relations:
        b, receiver, sender = edges.nonzero(as_tuple=True)
        index.append(torch.stack([number[b, sender], number[b, receiver]]))
        kind.append(relation[b, receiver, sender])
    return torch.cat(index, 1), torch.cat(kind)


def _oriented_features(x: Tensor, mask: Tensor, index: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
    """Node [N, 7] and edge [E, 43] features that motions leave alone and mirror images do not."""
    u = x[:, 1:] - x[:, :-1]
    a, b = u[:, :-1], u[:, 1:]  # to and from residues 1..n-2
    tangent, bend = _unit(a + b), a - b
    second = _unit(bend - (bend * tangent).sum(-1, keepdim=True) * tangent)
    frame = torch.stack([tangent, second, torch.linalg.cross(tangent, second)], -2)  # rows are axes
    inner = mask[:, 2:]
    cosine = -(_unit(a) * _unit(b)).sum(-1)
    bends = torch.stack([cosine, (1 - cosine**2).clamp(min=0).sqrt(), torch.ones_like(cosine)], -1)
    left, right = torch.linalg.cross(u[:, :-2], u[:, 1:-1]), torch.linalg.cross(u[:, 1:-1], u[:, 2:])
    sine = (left * u[:, 2:]).sum(-1) * u[:, 1:-1].norm(dim=-1)
    turns = _unit(torch.stack([(left * right).sum(-1), sine], -1)) * mask[:, 3:, None]
    node = torch.cat([_inside(bends * inner[..., None], 1), _inside(turns, 2)], -1)[mask]
    n = mask.sum(1, keepdim=True).expand_as(mask)[mask]
    node = torch.cat([node, torch.stack([position / n, n / 128], -1)], 1)

    frames = _inside((frame * inner[..., None, None]).flatten(2), 1)[mask].view(-1, 3, 3)
    flat, (i, j) = x[mask], index
    step = flat[j] - flat[i]
    distance = step.norm(dim=1)
    direction = (step / (distance[:, None] + EPS))[..., None]
    parts = [distance_basis(distance, ORIENTED_RBF), index_embedding(position[j] - position[i], ORIENTED_INDEX, 128)]
    parts += [(frames[i] @ direction)[..., 0], (frames[j] @ direction)[..., 0], (frames[j] @ frames[i].mT).flatten(1)]
    return node, torch.cat(parts, 1)


def _inside(values: Tensor, after: int) -> Tensor:
    """Values of residues 1, 2, ... [B, m, k] with zeros for residue 0 and for the last `after` ones."""
    return nn.functional.pad(values, (0, 0, 1, after))


def _unit(v: Tensor) -> Tensor:
    return v / (v.norm(dim=-1, keepdim=True) + EPS)


def save_gearnet(net: GearNet, path: Path, info: Mapping[str, Any]) -> None:
    """Write safetensors: matrices in float16, the rest in float32; configuration and `info` in the header."""
    state = {k: v.half() if v.dim() > 1 else v for k, v in net.state_dict().items()}
    header = {"format": FORMAT, "config": json.dumps(asdict(net.config)), "info": json.dumps(dict(info))}
    save_file({k: v.contiguous() for k, v in state.items()}, path, header)


def load_gearnet(path: str | Path) -> GearNet:
    """A network in evaluation mode from official weights (`gearnet_ca.pth`, read weights-only) or from our safetensors.

    Raises XDistillError when the file is missing, damaged, or does not hold such a network.
    """
    path = Path(path)
    if not path.is_file():
        raise XDistillError(f"{path} does not exist: expected classifier weights (gearnet_ca.pth or .safetensors)")
    config, state = _read_ours(path) if path.suffix == ".safetensors" else (GearNetConfig(), _read_official(path))
    net = GearNet(config)
    expected = {k: tuple(v.shape) for k, v in net.state_dict().items()}
    found = {k: tuple(v.shape) for k, v in state.items()}
    wrong = [f"missing {k}" for k in expected if k not in found] + [f"unexpected {k}" for k in found.keys() - expected]
    wrong += [f"{k} is {found[k]}, expected {v}" for k, v in expected.items() if found.get(k, v) != v]
    if wrong:
        raise XDistillError(f"{path} is no CA GearNet classifier: {wrong[0]} ({len(wrong)} differences)")
    net.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in state.items()})
    return net.eval().requires_grad_(False)


def _read_ours(path: Path) -> tuple[GearNetConfig, dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            state = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118 (no mapping)
    except SafetensorError as error:
        raise XDistillError(f"{path} is not a readable safetensors file: {error}") from error
    if header.get("format") != FORMAT:
        raise XDistillError(f"{path} has format {header.get('format')}, expected {FORMAT}: give a file of this tool")
    return GearNetConfig(**json.loads(header["config"])), state


def _read_official(path: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise XDistillError(f"{path} is not a weights-only torch file: {str(error).splitlines()[0]}") from error
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise XDistillError(f"{path} holds no state dict: expected parameter names and tensors")
    return dict(state)
