"""MDLM: trains masked diffusion teachers on data, and is the loss of every fake denoiser on the student's samples."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from xdistill import rng
from xdistill.errors import UsageError, XDistillError
from xdistill.models import Batch, Cond, TokenModel
from xdistill.objectives.base import LossOut, Phase
from xdistill.objectives.tokens import TokenSampling
from xdistill.process import MaskProcess
from xdistill.roles import RoleSpec, RoleView
from xdistill.state import Tokens

LEAST = 1e-3  # the smallest training time (text spec 1.1)


def stratified(n: int, shared: torch.Generator) -> Tensor:
    """[n] of this rank, float64: one uniform in each of the world's n x world equal parts of [0, 1).

    shared: a generator in the same state on every rank, so that the parts of all ranks together cover the interval
    (text spec 1.1, the form of the Duo lineage).
    """
    world, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
    total = n * world
    u = (rng.rand(total, shared) / total + torch.arange(total) / total) % 1
    return u[rank * n : (rank + 1) * n]


def stratified_times(n: int, shared: torch.Generator) -> Tensor:
    """[n] stratified times of this rank in [LEAST, 1], float64."""
    return LEAST + (1 - LEAST) * stratified(n, shared)


def token_nll(model: TokenModel, process: MaskProcess, x0: Tokens, z_t: Tokens, t: Tensor, cond: Cond) -> Tensor:
    """-log p(x0) at the masked positions of z_t, 0 elsewhere, [B, L] float32."""
    at = process.masked(z_t)
    log_p = model(z_t, t.to(at.device), cond, at=at)
    nll = torch.zeros(at.shape, device=at.device, dtype=log_p.dtype)
    return nll.masked_scatter(at, -log_p.gather(1, x0.ids[at][:, None]).squeeze(1))


def mdlm_loss(
    model: TokenModel, process: MaskProcess, x0: Tokens, t: Tensor, cond: Cond, generator: torch.Generator
) -> Tensor:
    """The negative ELBO in nats of each sample, weight(t) sum_masked -log p(x0), [B] (2406.07524 eq. 10)."""
    z_t = process.corrupt(x0, t, generator)
    return process.weight(t).to(x0.ids.device, torch.float32) * token_nll(model, process, x0, z_t, t, cond).sum(1)


def clean(batch: Batch[Tokens]) -> Tokens:
    """Real sequences; raises XDistillError when the batch is data-free."""
    if not batch.real:
        raise XDistillError("this objective needs real data, but the batch has none: set data=... of the domain")
    return batch.like


class MDLM(TokenSampling):
    """The continuous-time negative ELBO of masked diffusion (2406.07524), averaged over all valid tokens of a batch.

    times: range of the training times. weight_floor: the weight 1 / t grows no more below this t, which cuts the
    variance of small batches; a network without time has the same optimum under any weight. sample_steps: network calls
    of the sampler. With masks far apart (`MaskProcess.order`) the loss trains the same posteriors, but bounds nothing.
    Oracle: on an enumerable table the optimum is the posterior, and the loss there is the entropy of the data.
    """

    def __init__(
        self,
        process: MaskProcess,
        *,
        sample_steps: int = 128,
        times: Sequence[float] = (LEAST, 1.0),
        weight_floor: float = 0.0,
    ) -> None:
        if len(times) != 2 or not 0 < times[0] < times[1] <= 1:
            raise UsageError(f"times={list(times)}: expected [low, high] with 0 < low < high <= 1")
        self.process, self.sample_steps = process, sample_steps
        self.times, self.weight_floor = times, weight_floor

    @property
    def roles(self) -> tuple[RoleSpec, ...]:
        return (RoleSpec("student"),)

    def phases(self, macro_step: int) -> Sequence[Phase]:
        return (Phase("mdlm", "student"),)

    def loss(self, phase: Phase, batch: Batch[Tokens], net: RoleView, generator: torch.Generator) -> LossOut:
        x0 = clean(batch)
        low, high = self.times
        t = low + (high - low) * stratified(x0.batch, net.shared)
        nelbo = mdlm_loss(net.train("student"), self.process, x0, t, batch.cond, generator)
        trimmed = nelbo * (t / t.clamp(min=self.weight_floor)).to(nelbo)
        per_sample = trimmed / x0.elements.float().mean()  # a token counts the same in every sequence
        return LossOut(per_sample, {"loss": per_sample.detach()})

    def default_calls(self, like: Tokens) -> int:
        return self.sample_steps
