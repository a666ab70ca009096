"""The Proteina network as a FlowModel of the core: one place turns the time axis and the sign."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from xdistill.domains.protein.network import Proteina
from xdistill.domains.protein.network.features import MAX_TIME
from xdistill.errors import XDistillError
from xdistill.models import Cond
from xdistill.process import Kind
from xdistill.state import Field, Padded


@dataclass(frozen=True)
class ProteinCond:
    """labels [b, 3] rows of the fold tables (None: no label); x_sc: an earlier clean estimate [b, n, 3] in nm;
    residue_index [b, n] and chain_breaks [b, n] as in the PDB file (None: 1..n, unbroken); steps: the
    network calls of the student's chain, for networks that are told (None: not told).
    """

    labels: Tensor | None = None
    x_sc: Tensor | None = None
    residue_index: Tensor | None = None
    chain_breaks: Tensor | None = None
    steps: int | None = None

    def drop(self) -> ProteinCond:
        """Without fold labels; what the chain looks like is kept."""
        return replace(self, labels=None)

    def with_estimate(self, x0: Field) -> ProteinCond:
        """Self-conditioning on a clean estimate, which carries no gradient."""
        return replace(self, x_sc=x0.value.detach())

    def with_steps(self, steps: int) -> ProteinCond:
        """For a student that is conditioned on its number of calls."""
        return replace(self, steps=steps)

    def to(self, device: torch.device | str) -> ProteinCond:
        """On another device."""
        moved: dict[str, Any] = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **moved)


class ProteinFlow(nn.Module):
    """Velocity of core time (0 clean, 1 noise) of a backbone of CA positions in nm, zero centre of mass.

    target_pred: what the network predicts, in Proteina's words: `v` (to the data), or `x_1`, the clean backbone.
    With `flow_map` in its configuration it is a `FlowMapModel`.
    """

    time_scale = float(MAX_TIME)

    def __init__(self, net: Proteina, target_pred: str = "v") -> None:
        super().__init__()
        self.net, self.target_pred = net, target_pred
        self.kind = Kind.VELOCITY if target_pred == "v" else Kind.X0

    @property
    def feature_dim(self) -> int:
        """Width of the pooled trunk features."""
        return self.net.config.token_dim

    @property
    def flow_map(self) -> bool:
        """Whether it takes the end r of a jump."""
        return self.net.config.flow_map

    def forward(self, x_t: Field, t: Tensor, cond: Cond, *, r: Tensor | None = None) -> Field:
        """Proteina runs from noise at 0 to data at 1, so its velocity has the opposite sign.

        Raises XDistillError for a jump asked of a network without a second time input.
        """
        if r is not None and not self.flow_map:
            raise XDistillError("this protein network has no second time input: make one with ProteinDomain.flow_map")
        jump = None if r is None else (t - r).float()
        out = self._run(x_t, t, cond, jump=jump)["coors_pred"].to(x_t.value)
        return Field(-out if self.kind is Kind.VELOCITY else out, x_t.layout)

    def features(self, x_t: Field, t: Tensor, cond: Cond) -> Tensor:
        """[B, feature_dim]: the trunk's residue features, averaged over the residues of each chain."""
        tokens = self._run(x_t, t, cond, need_features=True)["features"].to(x_t.value)
        assert isinstance(x_t.layout, Padded)
        return (tokens * x_t.layout.mask[..., None]).sum(1) / x_t.elements[:, None]

    def _run(
        self, x_t: Field, t: Tensor, cond: Cond, need_features: bool = False, jump: Tensor | None = None
    ) -> dict[str, Tensor]:
        if not isinstance(x_t.layout, Padded):
            raise XDistillError("the protein network takes padded states [b, n, 3]")
        c = cond if isinstance(cond, ProteinCond) else ProteinCond()
        return self.net(
            x_t.value,
            (1 - t).float(),
            x_t.layout.mask,
            c.x_sc,
            c.labels,
            c.residue_index,
            c.chain_breaks,
            need_pair=False,
            need_features=need_features,
            steps=None if c.steps is None else torch.full_like(t, c.steps, dtype=torch.float32),
            jump=jump,
        )
