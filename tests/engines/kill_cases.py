"""A resumable toy run: what the SIGKILL test starts, kills and starts again."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import lightning as L
import torch

from xdistill.callbacks import Resume, Save
from xdistill.domains.toy import ToyDomain
from xdistill.engine import OptimConfig
from xdistill.folder import RunFolder
from xdistill.module import DistillModule
from xdistill.objectives import Objective
from xdistill.objectives.didi import DiDi
from xdistill.objectives.interval import Interval
from xdistill.objectives.sid import SiD
from xdistill.stream import Stream
from xdistill.times import ConstantLam

STEPS = 32


def objective_and_domain(name: str) -> tuple[Objective, ToyDomain]:
    """A method and the toy it trains on."""
    if name == "didi":
        tokens = ToyDomain({"task": "tokens"})
        return DiDi(tokens.process, steps=2, group=2), tokens
    points = ToyDomain({"task": "gaussian", "width": 16, "depth": 2})
    if name == "meanflow":
        return Interval(points.process, leg="velocity", lam=ConstantLam(0.0)), points
    return SiD(points.process, steps=2), points


def train(path: Path, name: str) -> None:
    """Continue the run at `path` to its end, with a checkpoint at every macro-step."""
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    folder = RunFolder(path)
    newest = folder.resume_from("auto")
    objective, domain = objective_and_domain(name)
    teacher = domain.teacher()
    torch.manual_seed(0)
    student = domain.student(teacher)
    networks = {"teacher": teacher, "student": domain.flow_map(student) if objective.needs.flow_map else student}
    for role in {spec.name for spec in objective.roles} - set(networks):
        networks[role] = getattr(domain, role)(teacher)
    optim = {role: OptimConfig(lr=1e-2, weight_decay=0.1, accumulate=2) for role in networks}
    module = DistillModule(objective, networks, optim)
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Resume(newest), Save(folder, {}, {}, every=1, keep=2)],
    )
    start = newest.manifest["macro_step"] if newest else 0
    source = domain.data(16, 0) if objective.needs.data else domain.null_data(16, 0)
    trainer.fit(module, Stream(source, steps=STEPS, slots=module.slots, start=start))
