"""`xdistill search-steps`: place the calls of a flow-map student's sampler by measuring, and keep them for the run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from xdistill.cli.keys import domain_class, read, split
from xdistill.config import SHIPPED, SearchStepsConfig
from xdistill.errors import UsageError


def run(args: Sequence[str]) -> int:
    """Search, print the times and what they gain, store them where `generate` and `evaluate` look."""
    pairs = split(args)
    kind = domain_class(pairs)
    cfg, request = read(SearchStepsConfig, pairs, kind.request_keys, kind.text_keys)
    if cfg.ckpt in (None, SHIPPED):
        raise UsageError("search the steps of what? Give ckpt=RUN of a run of xdistill fit, which keeps them")
    if not 0 < cfg.tolerance < 1 or cfg.sweeps < 1:
        raise UsageError(f"tolerance={cfg.tolerance:g}, sweeps={cfg.sweeps}: expected 0 to 1, and at least 1")
    from xdistill.assemble import guided_teacher
    from xdistill.cli.student import device
    from xdistill.step_search import DevSet, domain_metric, paired_error, search, store
    from xdistill.student import configured_times, load_student, sampler_options

    loaded = load_student(Path(cfg.ckpt), cfg.domain)
    if "times" not in loaded.objective.sample_keys:
        name = loaded.config["objective"]["name"]
        raise UsageError(f"a student of objective '{name}' has no times to place: give ckpt= of a flow map's run")
    calls = cfg.steps or int(getattr(loaded.objective, "steps", 2))
    noise_scale = float(sampler_options(loaded.config, loaded.objective).get("noise_scale", 1.0))
    loaded.model.to(device())
    opened, _ = loaded.domain.open_request(request)
    dev = DevSet.plan(
        loaded.domain,
        cfg.num,
        seed=cfg.seed,
        batch=cfg.batch,
        precision=loaded.config["precision"],
        device=device(),
        request=opened,
    )
    console = Console()
    with console.status(f"placing {calls - 1} times on {cfg.num} samples"):
        if cfg.metric == "rmse":
            teacher = guided_teacher(loaded.config, loaded.domain).eval().to(device())
            score = paired_error(loaded, teacher, dev, calls=cfg.teacher_steps or 64, noise_scale=noise_scale)
        else:
            score = domain_metric(loaded, cfg.metric, dev, noise_scale=noise_scale)
        found = search(score, calls, tolerance=cfg.tolerance, sweeps=cfg.sweeps)
    path = store(loaded, found, {**asdict(cfg), "request": request, "noise_scale": noise_scale})
    times = ", ".join(f"{t:g}" for t in found.times)
    gain = f"{abs(found.equal):.4g} at equal steps, {abs(found.value):.4g} at [{times}]"
    print(f"{cfg.metric} of {cfg.num} samples: {gain}, of {found.tried} tried")
    if configured_times(loaded, calls) is None:
        print(f"kept in {path}: generate, evaluate and bench of this checkpoint take them at {calls} calls")
    else:
        print(f"kept in {path}, but this run was configured with times of its own, which win")
    print(f"for another run: xdistill fit ... 'sampler.times=[{times}]'")
    return 0
