"""Where the protein teacher comes from: the shipped `mini`, a file of ours, or an official Lightning checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from xdistill.domains.protein.checkpoint import load_class_map, load_network
from xdistill.domains.protein.flow import ProteinFlow
from xdistill.domains.protein.labels import ClassMap, coarse_class_map
from xdistill.domains.protein.network import Proteina, ProteinaConfig
from xdistill.errors import XDistillError

ASSETS = Path(__file__).with_name("assets")
SHIPPED_TEACHER = ASSETS / "mini_teacher.safetensors"
SHIPPED_STUDENT = ASSETS / "mini_student"

#: 3.3 M parameters, lengths 40-128: small enough to train and to distil on a laptop's CPU.
MINI: dict[str, Any] = {
    "token_dim": 128,
    "nlayers": 8,
    "nheads": 4,
    "pair_repr_dim": 32,
    "dim_cond": 128,
    "t_emb_dim": 128,
    "idx_emb_dim": 64,
    "fold_emb_dim": 16,
    "num_registers": 8,
    "feats_init_seq": ["res_seq_pdb_idx"],
    "feats_cond_seq": ["time_emb", "fold_emb"],
    "feats_pair_repr": ["rel_seq_sep", "xt_pair_dists"],
    "feats_pair_cond": [],
    "xt_pair_dist_dim": 128,
    "xt_pair_dist_min": 0.1,
    "xt_pair_dist_max": 3.3,
    "seq_sep_dim": 127,
    "use_qkln": True,
    "update_pair_repr": False,
    "use_tri_mult": False,
    "num_buckets_predict_pair": None,
    "vector_channels": 8,
    "refine_after": 4,
    "step_conditioning": True,
}
#: Chain lengths the shipped network was trained on, and those of the released Proteina models (50-256 residues).
MINI_LENGTHS, OFFICIAL_LENGTHS = (40, 128), (50, 256)


@dataclass(frozen=True)
class LoadedNetwork:
    """A network with what it must be called with: its fold classes and the lengths it knows."""

    flow: ProteinFlow
    classes: ClassMap | None
    lengths: tuple[int, int]
    source: str


def mini_network(seed: int = 0) -> LoadedNetwork:
    """A freshly initialised `mini` network; initial weights depend on `seed` alone."""
    classes = coarse_class_map()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = Proteina(ProteinaConfig.from_dict(MINI), classes.num_classes)
    return LoadedNetwork(ProteinFlow(net), classes, MINI_LENGTHS, "fresh")


def with_second_time(flow: ProteinFlow) -> ProteinFlow:
    """A trainable copy of `flow` that also takes the end of a jump, to no effect at first; `flow` itself if it does."""
    if flow.flow_map:
        return flow
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = Proteina(replace(flow.net.config, flow_map=True), flow.net.num_classes)
    net.load_state_dict({**net.state_dict(), **flow.net.state_dict()})
    weight = next(flow.parameters())
    return ProteinFlow(net.to(weight.device, weight.dtype), flow.target_pred).train(flow.training)


def load_teacher(weights: str, class_map: str | None = None) -> LoadedNetwork:
    """`shipped`, what `save_network` wrote, or an official `.ckpt` (never unpickled blindly).

    class_map: file with the fold classes, for a network that comes without: `cath_label_mapping.pt` of an official one.
    Raises XDistillError when a file is missing, damaged or of another format, or the classes are not the network's.
    """
    path = SHIPPED_TEACHER if weights == "shipped" else Path(weights)
    official = path.suffix == ".ckpt"
    loaded = load_network(path)
    flow = ProteinFlow(loaded.net, loaded.target_pred)
    classes = loaded.class_map if class_map is None else load_class_map(class_map)
    expected = tuple(loaded.net.num_classes)
    if classes is not None and classes.num_classes != expected:
        found = f"{class_map or path}: {classes.num_classes} classes at levels C, A, T"
        raise XDistillError(f"{found}; the network has {expected}: give the map it was trained with")
    known = loaded.provenance.get("lengths", OFFICIAL_LENGTHS if official else MINI_LENGTHS)
    return LoadedNetwork(flow, classes, (int(known[0]), int(known[1])), weights)
