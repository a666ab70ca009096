"""Replay of recorded sampler trajectories and SiD updates through the core's own samplers and objectives."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from xdistill import rng
from xdistill.domains.protein.flow import ProteinCond, ProteinFlow
from xdistill.domains.protein.parity import load_recorded_network
from xdistill.domains.protein.sampler import ProteinaPlan, g_of, schedule
from xdistill.guidance import Guided
from xdistill.models import Batch, denoise
from xdistill.objectives.flow_matching import flow_matching_loss
from xdistill.objectives.sid import protein_weight, sid_loss
from xdistill.process import Kind, Linear
from xdistill.samplers import Plan, ode, renoise, renoised_input, sde
from xdistill.state import Field, Padded
from xdistill.testing.results import CaseResult, compare
from xdistill.times import LogAnchors, shared

PROCESS = Linear()


class Stub(nn.Module):
    """The analytic clean estimate of the recordings: target + 0.25 s' x_t (+ 0.1 x_sc), s' = core time."""

    kind = Kind.X0

    def __init__(self, target: Tensor) -> None:
        super().__init__()
        self.target = target

    def forward(self, x_t: Field, t: Tensor, cond: ProteinCond) -> Field:
        value = self.target + 0.25 * t.to(x_t.value)[:, None, None] * x_t.value
        return Field(value if cond.x_sc is None else value + 0.1 * cond.x_sc, x_t.layout)


@torch.no_grad()
def replay_samplers(directory: str | Path) -> list[CaseResult]:
    """Every schedule, g and trajectory of `sampler*.json`; updates are checked from each recorded state."""
    return [r for spec in sorted(Path(directory).glob("sampler*.json")) for r in _replay_sampler(spec)]


def _replay_sampler(path: Path) -> Iterator[CaseResult]:
    spec, stored = json.loads(path.read_text()), load_file(path.with_suffix(".safetensors"))
    atol, rtol = spec["tolerance"]["atol"], spec["tolerance"]["rtol"]
    for key, expected in stored.items():
        if key.startswith("schedule/"):
            name, n, p = key.removeprefix("schedule/").rsplit("_", 2)
            yield compare(f"{path.stem}/{key}", schedule(name, int(n[1:]), float(p[1:])), expected, atol, rtol)
        elif key.startswith("gt/") and key != "gt/t":
            mode, p, clamp = key.removeprefix("gt/").replace("1over", "1/").rsplit("_", 2)
            bound = None if clamp == "clampNone" else float(clamp.removeprefix("clamp"))
            g = g_of(stored["gt/t"].double(), mode, float(p[1:]), bound)
            yield compare(f"{path.stem}/{key}", g, expected, atol, rtol)
    for case, info in spec["cases"].items():
        rows = {k.removeprefix(f"{case}/"): v for k, v in stored.items() if k.startswith(f"{case}/")}
        model, cond = _sampler_model(path, spec, info, rows)
        name = f"{path.stem}/{case}"
        yield from _trajectory(name, info, rows, model, cond, atol, rtol)


def _sampler_model(
    path: Path, spec: dict[str, Any], info: dict[str, Any], rows: dict[str, Tensor]
) -> tuple[Stub | Guided, ProteinCond]:
    if "target" in rows:
        return Stub(rows["target"]), ProteinCond()
    weights = path.parent / spec["weights_used_for_net_cases"]
    network = json.loads(weights.with_name(weights.name.replace(".weights.safetensors", ".json")).read_text())
    net, classes = load_recorded_network(network, load_file(weights))
    weak, _ = load_recorded_network(network, {k: 0.9 * v for k, v in load_file(weights).items()})
    ratio = info["autoguidance_ratio"]
    guided = Guided(ProteinFlow(net), info["guidance_weight"], weak=ProteinFlow(weak), autoguidance_ratio=ratio)
    return guided, ProteinCond(labels=classes.encode(info["cath"]))


def _trajectory(
    name: str,
    info: dict[str, Any],
    rows: dict[str, Tensor],
    model: Stub | Guided,
    cond: ProteinCond,
    atol: float,
    rtol: float,
) -> Iterator[CaseResult]:
    steps = len(rows["ts"]) - 1
    options = ProteinaPlan(
        steps, info["schedule"], info["p"], info["mode"] == "sc", info["gt"], info["gtp"], info["clamp"], info["noise"]
    )
    plan, layout = options.plan(), Padded(rows["mask"], zero_com=True)
    yield compare(f"{name}/ts", 1 - plan.times, rows["ts"], atol, rtol)
    # Step by step from each recorded state: errors of the network do not add up over the trajectory.
    noise = iter(rows.get("noise_steps_raw", ()))
    states = [*rows["x_t"], rows["x_final"]]
    x_init = Field(rows["noise_init_raw"], layout).project()
    yield compare(f"{name}/x_init", x_init.value, rows["x_init"], atol, rtol)
    worst: dict[str, CaseResult] = {}
    for i in range(steps):
        hop = Plan(plan.times[i : i + 2], None if plan.g is None else plan.g[i : i + 1])
        seen: list[Field] = []
        watch = lambda _, x, v: seen.append(v)  # noqa: B023, E731
        x = Field(states[i], layout)
        step_cond = cond
        if info["self_cond"] and i:
            step_cond = ProteinCond(cond.labels, rows["x1_pred"][i - 1])
        if options.sde:
            draws = rng.Recorded([next(noise)] if float(plan.g[i]) > 0 else [])  # type: ignore[index]
            out = sde(model, PROCESS, hop, x, step_cond, draws, noise_scale=options.noise_scale, on_step=watch)
        else:
            out = ode(model, PROCESS, hop, x, step_cond, on_step=watch)
        for key, got, expected in (("v", -seen[0].value, rows["v"][i]), ("x_next", out.value, states[i + 1])):
            result = compare(f"{name}/{key}", got, expected, atol, rtol)
            if key not in worst or result.max_error > worst[key].max_error or not result.ok:
                worst[key] = result
    yield from worst.values()


def replay_sid(directory: str | Path) -> list[CaseResult]:
    """Every `sid_*.json`: rollouts, critic and student losses with their gradients, noise-modulated sampling."""
    return [r for spec in sorted(Path(directory).glob("sid_*.json")) for r in _SidReplay(spec).run()]


class _SidReplay:
    """One recording of the published SiD-for-Proteina code, whose padded centring flaw is switched on."""

    def __init__(self, path: Path) -> None:
        self.path, self.spec = path, json.loads(path.read_text())
        self.stored = load_file(path.with_suffix(".safetensors"))
        self.nets = {name: self._network(name) for name in ("teacher", "fake", "generator")}
        self.layout = Padded(self.stored["mask"], zero_com=True, padded_mean=True)
        self.tolerance = self.spec["tolerance"]
        # Times are replayed as recorded (float32): the network sees 2000 t, where a rounding of 3e-8 is visible.
        self.times = 1 - self.stored["student_t"].double()
        self.like = Field(torch.zeros(*self.stored["mask"].shape, 3), self.layout)

    def _network(self, name: str) -> ProteinFlow:
        keys = [k for k in self.stored if k.startswith("weights/")]
        names = sorted({k.split("/")[1] for k in keys})
        found = next(n for n in names if n.startswith(name[:4]) or (name == "generator" and n.startswith("stud")))
        weights = {k.removeprefix(f"weights/{found}/"): self.stored[k] for k in keys if k.split("/")[1] == found}
        return ProteinFlow(load_recorded_network(self.spec, weights)[0])

    def run(self) -> Iterator[CaseResult]:
        anchors = LogAnchors(grid=self.spec["t"], k_first=self.spec["t_init"])(self.spec["nstep"])
        yield self._check("student_t", 1 - anchors, self.stored["student_t"], "states")
        for k in self.spec["train_steps"]:
            yield from self._update(k)
        for gamma in self.spec["gammas"]:
            yield from self._sampling(gamma)

    def _update(self, k: int) -> Iterator[CaseResult]:
        step = {key.removeprefix(f"step{k}/"): v for key, v in self.stored.items() if key.startswith(f"step{k}/")}
        draws, cond, b = rng.Recorded(step["chain_noise_raw"]), ProteinCond(), self.like.batch
        with torch.no_grad():
            x0 = renoise(self.nets["generator"], PROCESS, self.times[:k], self.like, cond, draws)
        t_k = shared(self.times[k], b)
        x_hat = denoise(self.nets["generator"], PROCESS, renoised_input(PROCESS, x0, t_k, draws), t_k, cond)
        yield self._check(f"step{k}/x_g", x_hat.value, step["x_g"], "states")
        yield from self._critic(k, step, Field(x_hat.value.detach(), self.layout))
        x_hat.value.retain_grad()
        yield from self._student(k, step, x_hat)

    def _critic(self, k: int, step: dict[str, Tensor], x_hat: Field) -> Iterator[CaseResult]:
        low, high = self.spec["t_clamp"]["fake"]
        clean = torch.where(step["fake/u_mix"] < 0.02, step["fake/u_uniform"], step["fake/u_beta"] ** (1 / 1.9))
        yield self._check(f"step{k}/fake/t", clean.clamp(low, high), step["fake/t"], "states")
        t = 1 - step["fake/t"].double()
        fake = self.nets["fake"]
        draws = rng.Recorded([step["fake/noise_raw"]])
        loss = flow_matching_loss(fake, PROCESS, x_hat, t, ProteinCond(), draws)  # type: ignore[arg-type]
        yield self._check(f"step{k}/fake/loss", loss, step["fake/loss"], "losses")
        yield from self._gradients(f"step{k}/fake", step, fake, loss.mean())

    def _student(self, k: int, step: dict[str, Tensor], x_hat: Field) -> Iterator[CaseResult]:
        low, high = self.spec["t_clamp"]["generator"]
        t = (10.0 ** (-2 * step["gen/t_step"].double() / self.spec["t"])).clamp(1 - high, 1 - low)
        yield self._check(f"step{k}/gen/t", 1 - t, step["gen/t"], "states")
        t = 1 - step["gen/t"].double()
        loss, _ = sid_loss(
            self.nets["teacher"],
            self.nets["fake"],
            PROCESS,
            x_hat,
            t,
            Batch(self.like, ProteinCond()),
            rng.Recorded([step["gen/noise_raw"]]),  # type: ignore[arg-type]
            alpha=self.spec["alpha"],
            weight=protein_weight,
        )
        yield self._check(f"step{k}/gen/loss", loss, step["gen/loss"], "losses")
        yield from self._gradients(f"step{k}/gen", step, self.nets["generator"], loss.mean())
        assert x_hat.value.grad is not None
        yield self._norm_check(f"step{k}/gen/grad_x_g", x_hat.value.grad, step["gen/grad_x_g"])

    def _gradients(self, name: str, step: dict[str, Tensor], model: nn.Module, loss: Tensor) -> Iterator[CaseResult]:
        for net in self.nets.values():
            net.zero_grad()
        loss.backward()
        phase = name.split("/")[1]
        prefix = f"{phase}/grad/"
        parameters = {k.removeprefix("net."): p for k, p in model.named_parameters()}
        for key, expected in step.items():
            if key.startswith(prefix):
                grad = parameters[key.removeprefix(prefix).removeprefix("nn.")].grad
                assert grad is not None
                yield self._norm_check(f"{name}/grad/{key.removeprefix(prefix)}", grad, expected)
        norm = torch.stack([p.grad.norm() for p in parameters.values() if p.grad is not None]).norm()
        yield self._norm_check(f"{name}/grad_norm", norm, step[f"{phase}/grad_norm"])

    @torch.no_grad()
    def _sampling(self, gamma: float) -> Iterator[CaseResult]:
        name, states = f"sample/gamma{gamma}", []
        draws = rng.Recorded(self.stored[f"{name}/noise_raw"])
        renoise(
            self.nets["generator"],
            PROCESS,
            self.times,
            self.like,
            ProteinCond(),
            draws,
            noise_scale=gamma,
            on_step=lambda i, x0: states.append(x0.value),
        )
        yield self._check(f"{name}/x_g", torch.stack(states), self.stored[f"{name}/x_g"], "states")

    def _check(self, name: str, got: Tensor, expected: Tensor, kind: str) -> CaseResult:
        tol = self.tolerance[kind]
        return compare(f"{self.path.stem}/{name}", got, expected, tol["atol"], tol["rtol"])

    def _norm_check(self, name: str, got: Tensor, expected: Tensor) -> CaseResult:
        """Gradients are compared by the norm of their difference, relative to the norm of the recording."""
        error = float((got.detach() - expected).norm() / expected.norm().clamp(min=1e-30))
        limit = self.tolerance["grads"]["rtol_of_norm"]
        return CaseResult(f"{self.path.stem}/{name}", error, limit, error <= limit)
