"""What only a CUDA device can show; run with `pytest -m gpu`."""

from pathlib import Path

import pytest
import torch

from xdistill import checkpoint
from xdistill.config import compose
from xdistill.domains.protein import ProteinDomain
from xdistill.evaluation import draw, student_sampler, teacher_sampler
from xdistill.run import fit
from xdistill.student import load_student

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")]


@pytest.mark.parametrize("strategy", ["single", "ddp", "deepspeed_z2", "deepspeed_z3"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_protein_sid_runs_on_cuda(strategy: str, precision: str, tmp_path: Path) -> None:
    overrides = ["domain=protein", "train.steps=3", "data.batch=4", "eval.report=false", "logger.progress=false"]
    overrides += [f"strategy={strategy}", f"precision={precision}", "strategy.accelerator=gpu", f"out={tmp_path}/run"]
    out = fit(compose(overrides))
    newest = checkpoint.open_checkpoint(checkpoint.latest(out / "checkpoints")[0])
    assert all(torch.isfinite(w).all() for w in newest.role("student").values())


@pytest.mark.parametrize("objective", ["mdlm", "bd3", "didi", "idlm", "mmd", "sdtt", "dcd"])
def test_text_trains_and_samples_on_cuda(objective: str, tmp_path: Path) -> None:
    overrides = ["domain=text", f"objective={objective}", "train.steps=2", "data.batch=4", "eval.report=false"]
    overrides += ["strategy.accelerator=gpu", "logger.progress=false", f"out={tmp_path}/run"]
    loaded = load_student(fit(compose(overrides)))
    sampler = student_sampler(loaded.objective, steps=16)
    found = draw(loaded.domain, loaded.model.cuda(), sampler, 4, seed=0, device="cuda").samples
    assert len(found) == 4
    assert all(passage.ids for passage in found)


def test_cuda_samples_are_the_cpus() -> None:
    domain = ProteinDomain({"max_length": 64})
    sampler = teacher_sampler(domain.teacher_samplers()["ode"], 8)
    cpu = draw(domain, domain.teacher(), sampler, 4, seed=0).samples
    cuda = draw(domain, domain.teacher().cuda(), sampler, 4, seed=0, device="cuda").samples
    for a, b in zip(cpu, cuda, strict=True):
        torch.testing.assert_close(torch.tensor(a), torch.tensor(b), atol=2e-3, rtol=0)
