"""Can this run work at all? Objective x process x engine x data, checked in one place before anything heavy starts."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import torch
from omegaconf import DictConfig

from xdistill import registry
from xdistill.domain import Domain
from xdistill.errors import UsageError
from xdistill.guidance import scales
from xdistill.objectives import Objective
from xdistill.objectives.flow_map import DataFlowMap, FlowMap
from xdistill.objectives.interval import Interval

SCHEDULES = ("constant", "cosine_restarts")


def compatibility(cfg: DictConfig | Mapping[str, Any], domain: Domain, objective: Objective) -> None:
    """Raise UsageError, in one line with the way out, when the parts of a run do not fit together.

    Everything here is known from the configuration, the domain and the objective: no network has been built.
    """
    _process(cfg, domain, objective)
    _discriminator(cfg, domain, objective)
    _times(cfg["objective"])
    _placed(cfg["sampler"], objective)
    check_steps("objective.steps", getattr(objective, "steps", 0), domain.most_steps())
    check_steps("sampler.steps", cfg["sampler"]["steps"], domain.most_steps())
    _guidance(cfg, objective)
    _engine(cfg["strategy"])
    _derivative(cfg, objective)
    _optim(cfg, objective)


def _process(cfg: Any, domain: Domain, objective: Objective) -> None:
    needed = objective.needs.process
    if not isinstance(domain.process, needed):
        raise UsageError(
            f"objective '{cfg['objective']['name']}' needs a {needed.__name__}, domain '{domain.name}' as configured "
            f"has a {type(domain.process).__name__} process: choose another objective or task of the domain"
        )
    if objective.needs.blocks and not domain.blocks:
        raise UsageError(
            f"objective '{cfg['objective']['name']}' needs networks that write block after block, which domain "
            f"'{domain.name}' has none of: choose another objective"
        )


def _discriminator(cfg: Any, domain: Domain, objective: Objective) -> None:
    wanted = "discriminator" in {spec.name for spec in objective.roles}
    if wanted and type(domain).discriminator is Domain.discriminator:
        raise UsageError(
            f"objective '{cfg['objective']['name']}' as configured needs a discriminator, and domain '{domain.name}' "
            f"offers none: choose another objective"
        )


def _times(section: Any) -> None:
    for key, law in section.items():
        if key.endswith("_time") or key == "time_law":
            low, high = law.get("low", 0.0), law.get("high", 1.0)
            if not 0 <= low < high <= 1:
                raise UsageError(f"objective.{key} has low={low} and high={high}: expected 0 <= low < high <= 1")


def _placed(section: Any, objective: Objective) -> None:
    times = section.get("times")
    if times is None:
        return
    if not isinstance(objective, FlowMap):
        raise UsageError("sampler.times is of flow maps: leave it out, or choose an objective such as splitmeanflow")
    objective.grid(section["steps"] or len(times) - 1, times)


def check_steps(key: str, steps: Any, most: int | None) -> None:
    """Raise UsageError for a number of network calls larger than what can be revealed (`Domain.most_steps`)."""
    if most is not None and isinstance(steps, int) and steps > most:
        raise UsageError(f"{key}={steps}: {most} tokens are revealed in at most {most} calls: give at most that")


def _guidance(cfg: Any, objective: Objective) -> None:
    g = cfg["guidance"]
    _critic_guidance(cfg, g, objective)
    if g.get("range") is not None:
        _range(cfg, g, objective)
    if isinstance(objective, Interval) and objective.guides_itself:
        _null_branch(objective)
    if g["name"] == "none":
        return
    if g.get("range") is None and "teacher" not in {spec.name for spec in objective.roles}:
        raise UsageError(
            f"guidance={g['name']} guides a teacher, and objective '{cfg['objective']['name']}' has none: guidance=none"
        )
    if g["name"] == "autoguidance" and not g["weak"]:
        raise UsageError("guidance=autoguidance needs a weak network: guidance.weak=PATH")
    interval = list(g["interval"])
    if len(interval) != 2 or not 0 <= interval[0] < interval[1] <= 1:
        raise UsageError(f"guidance.interval={interval}: expected [low, high] with 0 <= low < high <= 1")


def _range(cfg: Any, g: Any, objective: Objective) -> None:
    """Scales that a student is told."""
    span = list(g["range"])
    if not isinstance(objective, FlowMap):
        raise UsageError(
            f"guidance.range={span} is of students of average velocities, such as objective=cmt, not of objective "
            f"'{cfg['objective']['name']}': leave it out"
        )
    if g["name"] not in ("cfg", "autoguidance"):
        raise UsageError(f"guidance.range={span} needs a guidance of the teacher: guidance=cfg or autoguidance")
    if len(span) != 2 or not 0 < span[0] < span[1] < float("inf"):
        raise UsageError(f"guidance.range={span}: expected [low, high] with 0 < low < high")
    if not span[0] <= g["scale"] <= span[1]:
        raise UsageError(
            f"guidance.scale={g['scale']:g} is what the student takes where it is told none: expected it in "
            f"guidance.range={span}"
        )
    if "teacher" in {spec.name for spec in objective.roles}:
        return
    if g["name"] != "cfg" or list(g["interval"]) != [0, 1]:
        raise UsageError(
            "guidance.range without a teacher (objective.velocity=data) is the student's own, at all times: "
            "guidance=cfg, and leave guidance.interval out"
        )
    _null_branch(objective)


def _null_branch(objective: Objective) -> None:
    """A student that guides itself with its null branch must train that."""
    if isinstance(objective, DataFlowMap) and not objective.drop:
        raise UsageError("guidance in the targets of data needs a null branch that learns: objective.drop=0.1")


def _critic_guidance(cfg: Any, g: Any, objective: Objective) -> None:
    """Scales of a critic need one."""
    wanted = scales(g["name"], g["scale"], g.get("critic"), g.get("critic_train"))
    if (wanted.critic, wanted.critic_train) != (1, 1) and not hasattr(objective, "guidance"):
        raise UsageError(
            f"guidance={g['name']} also guides a critic, and objective '{cfg['objective']['name']}' has none: "
            f"guidance=cfg or none, or objective=sid, dmd or tdm"
        )


def _engine(strategy: Any) -> None:
    name, world = strategy["name"], strategy["devices"] * strategy["nodes"]
    if name == "single" and world > 1:
        raise UsageError(f"strategy=single runs one process, not {world}: choose strategy=ddp or deepspeed_z2")
    if name == "deepspeed" and find_spec("deepspeed") is None:
        raise UsageError("strategy=deepspeed_* needs DeepSpeed: pip install 'xdistill[deepspeed]', or strategy=ddp")
    if strategy["accelerator"] == "gpu":
        seen = torch.cuda.device_count()
        if seen < strategy["devices"]:
            raise UsageError(
                f"strategy.accelerator=gpu wants {strategy['devices']} GPUs, torch sees {seen}: "
                f"lower strategy.devices, or strategy.accelerator=cpu"
            )
    stages = strategy["stage"] if isinstance(strategy["stage"], (Mapping, DictConfig)) else {"all": strategy["stage"]}
    for role, stage in stages.items():
        if stage not in (0, 1, 2, 3):
            raise UsageError(f"strategy.stage={stage} for {role}: ZeRO has stages 0, 1, 2 and 3")


def _partitions(cfg: Any, objective: Objective) -> bool:
    """Whether ZeRO-3 partitions the parameters of a trained role."""
    strategy, stage = cfg["strategy"], cfg["strategy"]["stage"]
    trained = {spec.name for spec in objective.roles if spec.trainable}
    stages = {stage[r] for r in trained & set(stage)} if isinstance(stage, (Mapping, DictConfig)) else {stage}
    return strategy["name"] == "deepspeed" and 3 in stages


def check_calls(cfg: DictConfig | Mapping[str, Any], domain: Domain, objective: Objective) -> None:
    """Raise UsageError where ranks would gather the parameters of ZeRO-3 a different number of times.

    Asked once the networks are there, which tell a domain how they are called.
    """
    if domain.calls_vary and _partitions(cfg, objective):
        raise UsageError(
            "this network is called once for every length in a batch, so often not equally on all ranks, which ZeRO-3 "
            "cannot follow: strategy=deepspeed_z2"
        )


def _derivative(cfg: Any, objective: Objective) -> None:
    """torch.func.jvp does not see parameters that ZeRO-3 has partitioned (design section 4)."""
    if not objective.needs.derivative or cfg["objective"].get("derivative", "func") != "func":
        return
    if _partitions(cfg, objective):
        raise UsageError(
            f"objective '{cfg['objective']['name']}' with derivative=func cannot run under ZeRO-3: "
            f"objective.derivative=finite_difference, or strategy=deepspeed_z2"
        )


def _optim(cfg: Any, objective: Objective) -> None:
    for role in [spec.name for spec in objective.roles if spec.trainable]:
        merged = {**cfg["optim"]["default"], **cfg["optim"].get(role, {})}
        if merged["schedule"] not in SCHEDULES:
            near = registry.nearest(merged["schedule"], SCHEDULES)
            raise UsageError(f"unknown schedule '{merged['schedule']}' of optim.{role}{near}")
        betas = list(merged["betas"])
        if len(betas) != 2 or not all(0 <= b < 1 for b in betas):
            raise UsageError(f"optim.{role}.betas={betas}: expected two numbers in [0, 1)")
        for key in ("accumulate", "cycle"):
            if merged[key] < 1:
                raise UsageError(f"optim.{role}.{key}={merged[key]}: expected at least 1")
        for key in ("lr", "eps", "weight_decay", "clip", "lr_min", "warmup"):
            if not 0 <= merged[key] < float("inf"):
                raise UsageError(f"optim.{role}.{key}={merged[key]}: expected a finite number, at least 0")
