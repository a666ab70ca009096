"""Where a training state comes from: data, noised data, a student rollout, a teacher trajectory."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from xdistill import rng
from xdistill.errors import XDistillError
from xdistill.models import Batch, Cond, FlowModel, denoise
from xdistill.process import GaussianProcess
from xdistill.roles import RoleView
from xdistill.samplers import Plan, ode, renoise, renoised_input
from xdistill.samplers.hops import first_input, hops, to_zero
from xdistill.state import Field, lerp
from xdistill.times import shared


def data(batch: Batch[Field]) -> Field:
    """Clean data; raises XDistillError when the batch is data-free."""
    if not batch.real:
        raise XDistillError("this objective needs real data, but the batch has none: set data=... of the domain")
    return batch.like.project()


def noised(process: GaussianProcess, x0: Field, t: Tensor, generator: torch.Generator) -> tuple[Field, Field]:
    """(x_t, noise) for clean states x0; the graph through x0 is kept."""
    x0 = x0.project()
    noise = x0.randn(generator)
    return process.corrupt(x0, t, generator, noise), noise


def student_rollout(
    net: RoleView,
    process: GaussianProcess,
    times: Tensor,
    batch: Batch[Field],
    generator: torch.Generator,
    *,
    grad: bool,
    first: int = 0,
) -> Field:
    """The student's clean estimate at one step k of its own re-noising chain.

    k is uniform over the anchors `times[first:]` and the same on every rank; steps before k run without a graph.
    With grad the k-th call trains the student, else the whole rollout is detached. The uniform mixture over
    k is what few-step SiD and DMD match to the teacher (2505.12674, sec. 3).
    """
    k = rng.randint(first, len(times), net.shared)
    x0 = renoise(net.frozen("student"), process, times[:k], batch.like, batch.cond, generator)
    t = shared(times[k], batch.like.batch, batch.like.value.device)
    x_t = renoised_input(process, x0, t, generator)
    return denoise(net.train("student") if grad else net.frozen("student"), process, x_t, t, batch.cond)


@dataclass(frozen=True)
class Trajectories(Batch[Field]):
    """A batch with the states of one teacher trajectory a sample, at the times of the objective that asked for them."""

    states: tuple[Field, ...] = ()

    def to(self, device: torch.device | str) -> Trajectories:
        """The same batch on another device."""
        states = tuple(x.to(device) for x in self.states)
        return Trajectories(self.like.to(device), self.cond.to(device), self.real, states)


@dataclass(frozen=True)
class Hop:
    """One step of a deterministic student: its clean estimate x_hat at t [B], and `end`, where it hops to, at r [B]."""

    x_hat: Field
    end: Field
    t: Tensor
    r: Tensor


def student_hop(
    net: RoleView,
    process: GaussianProcess,
    times: Tensor,
    batch: Batch[Field],
    generator: torch.Generator,
    *,
    grad: bool,
    first: int = 0,
) -> Hop:
    """One step k of the student's deterministic chain over `times` [K], whose last hop goes to time 0.

    k is uniform over `times[first:]` and the same on every rank; steps before k run without a graph, and with `grad`
    the k-th call trains the student (2503.06674, alg. 1).
    """
    k = rng.randint(first, len(times), net.shared)
    ends = to_zero(times)
    x = first_input(process, float(times[0]), batch.like, generator)
    x = hops(net.frozen("student"), process, times[: k + 1], x, batch.cond)
    t, r = (shared(ends[i], x.batch, x.value.device) for i in (k, k + 1))
    x_hat = denoise(net.train("student") if grad else net.frozen("student"), process, x, t, batch.cond)
    return Hop(x_hat, process.move(x_hat, x, t, r), t, r)


def forward_noised(
    process: GaussianProcess, x_r: Field, r: Tensor, t: Tensor, generator: torch.Generator
) -> tuple[Field, Field]:
    """(x_t, e) with x_t = alpha_{t|r} x_r + sigma_{t|r} e: the forward kernel from r [B] up to t [B]."""
    alpha, sigma = process.transition(t, r)
    noise = x_r.randn(generator)
    return lerp([(alpha, x_r), (sigma, noise)]), noise


def teacher_trajectory(
    teacher: FlowModel,
    process: GaussianProcess,
    plan: Plan,
    like: Field,
    cond: Cond,
    generator: rng.Generator,
    *,
    heun: bool = False,
    solver_steps: int = 1,
) -> list[Field]:
    """The states of one ODE trajectory of the teacher at plan.times, without a graph.

    solver_steps: of the ODE between neighbouring times.
    """
    states: list[Field] = []
    pairs = zip(plan.times[:-1].tolist(), plan.times[1:].tolist(), strict=True)
    fine = [torch.linspace(a, b, solver_steps + 1, dtype=torch.float64)[:-1] for a, b in pairs]
    with torch.no_grad():
        end = ode(
            teacher,
            process,
            Plan(torch.cat([*fine, plan.times[-1:]])),
            process.prior(like, generator),
            cond,
            heun=heun,
            on_step=lambda i, x, v: states.append(x),
        )
    return [*states, end][::solver_steps]
