"""Configuration of a Proteina network, with the field names of the official configuration files."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any

from xdistill.errors import XDistillError

SEQUENCE_FEATURES = ("time_emb", "res_seq_pdb_idx", "chain_break_per_res", "fold_emb", "x_sc")
PAIR_FEATURES = ("rel_seq_sep", "x_sc_pair_dists", "xt_pair_dists", "time_emb")
_FEATURE_FIELDS = {
    "feats_init_seq": SEQUENCE_FEATURES,
    "feats_cond_seq": SEQUENCE_FEATURES,
    "feats_pair_repr": PAIR_FEATURES,
    "feats_pair_cond": PAIR_FEATURES,
}


@dataclass(frozen=True)
class ProteinaConfig:
    """Sizes and switches of the network (arXiv:2503.00710); distances in nanometres.

    Fields without a default fix tensor shapes and must be given. `cath_code_dir` and `strict_feats` are kept so that an
    official configuration round-trips; the network reads neither.

    Not in official networks: `vector_channels` > 0 replaces the coordinate embedding and decoder by equivariant vector
    channels (`vectors.py`); from layer `refine_after` > 0 on, pair distances are those of the present estimate instead
    of x_t; `step_conditioning` tells a student its number of calls; `flow_map` gives it a second time input, the length
    of a jump.
    """

    token_dim: int
    nlayers: int
    nheads: int
    pair_repr_dim: int
    dim_cond: int
    t_emb_dim: int
    idx_emb_dim: int
    fold_emb_dim: int
    feats_init_seq: tuple[str, ...]
    feats_cond_seq: tuple[str, ...]
    feats_pair_repr: tuple[str, ...]
    feats_pair_cond: tuple[str, ...]
    name: str = "ca_af3"
    residual_mha: bool = True
    residual_transition: bool = True
    parallel_mha_transition: bool = False
    use_attn_pair_bias: bool = True
    strict_feats: bool = False
    cath_code_dir: str | None = None
    multilabel_mode: str = "sample"
    xt_pair_dist_dim: int = 64
    xt_pair_dist_min: float = 0.1
    xt_pair_dist_max: float = 3.0
    x_sc_pair_dist_dim: int = 128
    x_sc_pair_dist_min: float = 0.1
    x_sc_pair_dist_max: float = 3.0
    seq_sep_dim: int = 127
    update_pair_repr: bool = False
    update_pair_repr_every_n: int = 2
    use_tri_mult: bool = False
    num_registers: int = 10
    use_qkln: bool = True
    num_buckets_predict_pair: int | None = 64
    vector_channels: int = 0
    refine_after: int = 0
    step_conditioning: bool = False
    flow_map: bool = False

    def __post_init__(self) -> None:
        for field, known in _FEATURE_FIELDS.items():
            chosen = tuple(getattr(self, field) or ())
            object.__setattr__(self, field, chosen)
            unknown = [name for name in chosen if name not in known]
            if unknown:
                raise XDistillError(f"{field}: unknown feature {unknown[0]!r}; choose from {', '.join(known)}")
        object.__setattr__(self, "num_registers", self.num_registers or 0)
        if self.token_dim % self.nheads:
            raise XDistillError(f"token_dim {self.token_dim} is not a multiple of nheads {self.nheads}")
        if self.seq_sep_dim % 2 == 0:
            raise XDistillError(f"seq_sep_dim must be odd (one bin for separation 0), got {self.seq_sep_dim}")
        for field in ("idx_emb_dim", "t_emb_dim"):
            if getattr(self, field) % 2:
                raise XDistillError(f"{field} must be even (sine and cosine halves), got {getattr(self, field)}")
        if self.refine_after and not (self.vector_channels and 0 < self.refine_after < self.nlayers):
            raise XDistillError(
                f"refine_after {self.refine_after} needs vector_channels and a layer below {self.nlayers}"
            )
        if self.vector_channels and self.updates_pair:
            raise XDistillError("vector_channels and update_pair_repr cannot be combined: choose one")
        if self.multilabel_mode != "sample":
            raise XDistillError(f"multilabel_mode {self.multilabel_mode!r} is not supported; use 'sample'")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ProteinaConfig:
        """Build from an official `model.nn` mapping. Raises XDistillError naming every unknown or missing key."""
        known = {f.name for f in fields(cls)}
        required = {f.name for f in fields(cls) if f.default is MISSING}
        problems = []
        for key in sorted(set(values) - known):
            near = difflib.get_close_matches(key, known, n=1)
            problems.append(f"unknown key {key!r}" + (f" (did you mean {near[0]!r}?)" if near else ""))
        problems += [f"missing key {key!r}" for key in sorted(required - set(values))]
        if problems:
            raise XDistillError("network configuration: " + "; ".join(problems))
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """The official mapping (feature tuples become lists), ready for JSON or YAML."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    def pair_update_after(self, layer: int) -> bool:
        """Whether the pair representation is updated after transformer layer `layer` (0-based)."""
        return self.updates_pair and layer < self.nlayers - 1 and layer % self.update_pair_repr_every_n == 0

    @property
    def updates_pair(self) -> bool:
        return self.update_pair_repr and self.use_attn_pair_bias

    @property
    def predicts_pair(self) -> bool:
        return self.updates_pair and self.num_buckets_predict_pair is not None
