"""Replay of recorded average-velocity objectives: MeanFlow, iMF, SplitMeanFlow, IntMeanFlow, CMT, alpha-Flow, samplers.

The recording sums squared errors over a sample's elements where the core takes means; only that is put back here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from xdistill.errors import XDistillError
from xdistill.guidance import Guided
from xdistill.models import average_velocity, velocity
from xdistill.objectives.differential import flow_derivative
from xdistill.objectives.flow_map import Velocity, adaptive, displacement, pick
from xdistill.objectives.interval import guided_pair, split_target
from xdistill.objectives.mid_training import secant
from xdistill.process import Kind, Linear
from xdistill.rng import Recorded
from xdistill.samplers import Plan
from xdistill.samplers.flow_map import flow_map, jump
from xdistill.sources import teacher_trajectory
from xdistill.state import Dense, Field
from xdistill.testing.results import CaseResult, compare
from xdistill.times import shared

FILE = "objectives.safetensors"
ATOL = RTOL = 1e-12
PROCESS = Linear()


@dataclass(frozen=True)
class Classes:
    """Class labels `ids [B]`; `null` stands for none."""

    ids: Tensor
    null: int

    def drop(self) -> Classes:
        return Classes(torch.full_like(self.ids, self.null), self.null)

    def to(self, device: torch.device | str) -> Classes:
        return Classes(self.ids.to(device), self.null)


class Recorder(nn.Module):
    """The recorded network on [z, t, t - r] and a class, whose weights are arrays W1, b1, E, W2, b2, W3, b3."""

    kind, flow_map, time_scale = Kind.VELOCITY, True, 1.0

    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.arrays = nn.ParameterDict({k: nn.Parameter(v.clone()) for k, v in weights.items()})

    def forward(self, x_t: Field, t: Tensor, cond: Classes, *, r: Tensor | None = None) -> Field:
        w, z = self.arrays, x_t.value
        length = torch.zeros_like(t) if r is None else t - r
        h = torch.cat([z.flatten(1), t[:, None], length[:, None]], 1)
        h = torch.tanh(h @ w["W1"].T + w["b1"] + w["E"][cond.ids])
        h = torch.tanh(h @ w["W2"].T + w["b2"])
        return Field((h @ w["W3"].T + w["b3"]).view_as(z), x_t.layout)


class Recording:
    """Tensors by name, each of them marked when it is read; the networks and inputs that all cases share."""

    def __init__(self, folder: Path) -> None:
        self.stored = load_file(folder / FILE)
        self.about: dict[str, Any] = json.loads((folder / "objectives.json").read_text())
        self.cases: dict[str, Any] = self.about["cases"]
        self.seen: set[str] = set()
        self.student, self.net = self._network("student"), self._network("teacher")
        self.cond = Classes(self["y"], self.about["null_class"])
        self.t, self.r, self.lam = self["t"], self["r"], self["lam"]
        self.x_t, self.v = self.field("z_t"), self.field("v")

    def _network(self, name: str) -> Recorder:
        return Recorder({k: self[f"{name}.{k}"] for k in ("W1", "b1", "E", "W2", "b2", "W3", "b3")})

    def __getitem__(self, key: str) -> Tensor:
        self.seen.add(key)
        return self.stored[key]

    def field(self, key: str) -> Field:
        """A recorded state."""
        return Field(self[key], Dense(len(self[key])))

    def u(self, x: Field, t: Tensor, r: Tensor, cond: Classes | None = None) -> Field:
        """The student's average velocity, with a graph."""
        return average_velocity(self.student, PROCESS, x, t, r, cond or self.cond)

    def frozen(self, x: Field, t: Tensor, r: Tensor, cond: Classes | None = None) -> Field:
        """The same without a graph."""
        with torch.no_grad():
            return self.u(x, t, r, cond)

    def guided(self, case: str) -> Guided:
        """The teacher, guided by the recorded `w` of a case: (1 + w) cond - w null."""
        return Guided(self.net, 1 + self.cases[case].get("w", 0.0))

    def teacher(self, case: str) -> Velocity:
        """Its velocity, without a graph."""
        model = self.guided(case)

        def v(x: Field, t: Tensor) -> Field:
            with torch.no_grad():
                return velocity(model, PROCESS, x, t, self.cond)

        return v

    def check(self, key: str, found: Tensor | Field) -> CaseResult:
        """Within 1e-12; a different shape of equally many numbers is accepted."""
        value, expected = found.value if isinstance(found, Field) else found, self[key]
        if value.numel() != expected.numel():
            raise XDistillError(f"{key}: got shape {tuple(value.shape)}, recorded {tuple(expected.shape)}")
        return compare(f"objectives/{key}", value.detach().reshape(expected.shape), expected, ATOL, RTOL)

    def gradients(self, case: str, loss: Tensor, *, keep: bool = False) -> Iterator[CaseResult]:
        """The loss, and its gradient in every array of the student; `keep` its graph."""
        yield self.check(f"{case}.loss", loss)
        names, arrays = zip(*self.student.arrays.items(), strict=True)
        for name, grad in zip(names, torch.autograd.grad(loss, arrays, retain_graph=keep), strict=True):
            yield self.check(f"{case}.grad.{name}", grad)

    def unchecked(self) -> CaseResult:
        """The number of recorded tensors that nothing has looked at: 0 of all."""
        left = sorted(self.stored.keys() - self.seen)
        name = "objectives/tensors that nothing looks at" + (f" ({', '.join(left)})" if left else "")
        return CaseResult(name, float(len(left)), 0.0, not left)


Group = Callable[[Recording], Iterator[CaseResult]]


def replay(directory: str | Path) -> list[CaseResult]:
    """One result a recorded output of `directory`/objectives.*, and one for what is left; none gives an empty list."""
    if not (Path(directory) / FILE).is_file():
        return []
    r = Recording(Path(directory))
    results = [result for group in GROUPS for result in group(r)]
    return [*results, r.unchecked()]


def summed(a: Field, b: Field) -> Tensor:
    """The squared error of a sample, summed over its elements, [B]."""
    return (a - b).mean_square() * a.dims


def inputs(r: Recording) -> Iterator[CaseResult]:
    """States, velocities and which rows have no jump."""
    x, e = r.field("x"), r.field("e")
    yield r.check("z_t", PROCESS.corrupt(x, r.t, torch.Generator(), e))
    yield r.check("v", e - x)
    yield r.check("r_equals_t", (r.r == r.t).double())
    yield r.check("s", r.t - r.lam * (r.t - r.r))


def scored(r: Recording, case: str, u: Field, target: Field, power: float, floor: float) -> Iterator[CaseResult]:
    """Errors, weights, loss and gradients of a regression on `target`, with errors that are sums."""
    square = summed(u, target)
    loss = adaptive(square, power, floor)
    yield r.check(f"{case}.sq_err", square)
    if f"{case}.weight" in r.stored:
        yield r.check(f"{case}.weight", loss / square)
        yield r.check(f"{case}.per_sample", loss)
    yield from r.gradients(case, loss.mean())


def differential(
    r: Recording, case: str, v: Field, along: Field, cond: Classes, power: float, floor: float, **how: Any
) -> Iterator[CaseResult]:
    """A case whose target is v - (t - r) du/dt, the derivative `along` a velocity."""

    def own(x: Field, t: Tensor, end: Tensor) -> Field:
        return r.u(x, t, end, cond)

    slope, u = flow_derivative(own, along, r.x_t, r.t, r.r, **how), r.u(r.x_t, r.t, r.r, cond)
    target = v - slope.scale(r.t - r.r)
    found = {"tangent": along, "dudt": slope, "u": u, "target": target, "V": u - target + v}
    for name, value in found.items():
        if f"{case}.{name}" in r.stored:
            yield r.check(f"{case}.{name}", value)
    yield from scored(r, case, u, target, power, floor)


def meanflow(r: Recording) -> Iterator[CaseResult]:
    """MeanFlow on data: weights, guidance by its own null branch, an interval of it, rows without condition."""
    for case, c in r.cases.items():
        if not case.startswith("meanflow."):
            continue
        dropped = r["drop_mask"] & case.endswith("drop")
        cond = Classes(torch.where(dropped, r.cond.null, r.cond.ids), r.cond.null)
        v = r.v
        if "omega" in c:
            own, null = r.frozen(r.x_t, r.t, r.t), r.frozen(r.x_t, r.t, r.t, r.cond.drop())
            times = (c.get("t_start", 0.0), c.get("t_end", 1.0))
            v = pick(dropped, v, guided_pair(v, own, null, r.t, c["omega"], c["kappa"], times))
        yield from differential(r, case, v, v, cond, c["p"], c["c"])


def distilled(r: Recording) -> Iterator[CaseResult]:
    """MeanFlow of the guided teacher, by forward mode and by a central difference; iMF along its own velocity."""
    jvp, v = r.cases["mfd.jvp"], r.teacher("mfd.jvp")(r.x_t, r.t)
    weight, step = (jvp["p"], jvp["c"]), r.cases["mfd.fd"]["delta"]
    yield from differential(r, "mfd.jvp", v, v, r.cond, *weight)
    yield from differential(r, "mfd.fd", v, v, r.cond, *weight, backend="finite_difference", step=step)
    imf, own = r.cases["imf.boundary_tangent"], r.frozen(r.x_t, r.t, r.t)
    yield from differential(r, "imf.boundary_tangent", r.v, own, r.cond, imf["p"], imf["c"])


def split(r: Recording) -> Iterator[CaseResult]:
    """SplitMeanFlow: intervals, instants, and a batch of both."""
    s = r["s"]
    leg = r.frozen(r.x_t, r.t, s)
    x_s = jump(r.x_t, leg, r.t, s)
    yield r.check("split.interval.u2", leg)
    yield r.check("split.interval.z_s", x_s)
    yield r.check("split.interval.u1", r.frozen(x_s, s, r.r))
    targets = {
        "split.interval": (split_target(r.frozen, leg, r.x_t, r.t, r.r, r.lam), r.r),
        "split.boundary": (r.teacher("split.boundary")(r.x_t, r.t), r.t),
    }
    errors = {}
    for case, (target, end) in targets.items():
        u = r.u(r.x_t, r.t, end)
        errors[case] = (u - target).mean_square()
        yield r.check(f"{case}.target", target)
        yield r.check(f"{case}.u", u)
        yield r.check(f"{case}.sq_err", summed(u, target))
        yield from r.gradients(case, errors[case].mean(), keep=True)
    mixed = torch.where(r["split.boundary_mask"], errors["split.boundary"], errors["split.interval"])
    yield r.check("split.mixed.per_sample", mixed)
    yield from r.gradients("split.mixed", mixed.mean())


def integrated(r: Recording) -> Iterator[CaseResult]:
    """IntMeanFlow, and CMT's trajectory, targets, predictions and loss over all pairs."""
    case = "intmf.K8"
    target, u = displacement(r.teacher(case), r.x_t, r.t, r.r, r.cases[case]["K"]), r.u(r.x_t, r.t, r.r)
    yield r.check(f"{case}.target", target)
    yield r.check(f"{case}.z_r", jump(r.x_t, target, r.t, r.r))
    yield r.check(f"{case}.sq_err", summed(u, target))
    yield from r.gradients(case, (u - target).mean_square().mean())
    cmt, times = r.cases["cmt.all_pairs"], torch.tensor(r.cases["cmt.all_pairs"]["grid"], dtype=torch.float64)
    noise, model = Recorded([r["e"]]), Guided(r.net, 1 + r.cases[case]["w"])
    states = teacher_trajectory(model, PROCESS, Plan(times), r.x_t, r.cond, noise)  # type: ignore[arg-type]
    ends = [(shared(times[i], r.x_t.batch), shared(times[j], r.x_t.batch)) for i, j in cmt["pairs"]]
    found = [r.u(states[i], *end) for (i, _), end in zip(cmt["pairs"], ends, strict=True)]
    targets = [secant(states[i], states[j], *end) for (i, j), end in zip(cmt["pairs"], ends, strict=True)]
    yield r.check("cmt.trajectory", torch.stack([x.value for x in states]))
    yield r.check("cmt.targets", torch.stack([x.value for x in targets]))
    yield r.check("cmt.pred", torch.stack([x.value for x in found]))
    errors = [(u - target).mean_square() for u, target in zip(found, targets, strict=True)]
    yield from r.gradients("cmt.all_pairs", torch.stack(errors).mean())


def alpha(r: Recording) -> Iterator[CaseResult]:
    """alpha-Flow: the share of a first leg along the data's velocity, and its adaptive weight."""
    for case, c in r.cases.items():
        if not case.startswith("alpha."):
            continue
        lam = torch.full_like(r.t, c["alpha"])
        target = split_target(r.frozen, r.v, r.x_t, r.t, r.r, lam)
        yield r.check(f"{case}.z_s", jump(r.x_t, r.v, r.t, r.t - lam * (r.t - r.r)))
        yield r.check(f"{case}.target", target)
        # Recorded as alpha / (square + c) of square / alpha.
        yield from scored(r, case, r.u(r.x_t, r.t, r.r), target, 1.0, 1e-3)


def samplers(r: Recording) -> Iterator[CaseResult]:
    """One, two and four equal jumps from the recorded noise."""
    for steps in (1, 2, 4):
        with torch.no_grad():
            x = flow_map(r.student, PROCESS, Plan.uniform(steps).times, r.field("e"), r.cond)
        yield r.check(f"sampler.{steps}", x)


GROUPS: tuple[Group, ...] = (inputs, meanflow, distilled, split, integrated, alpha, samplers)
