"""The protein domain as the core sees it: conformance, plans, samplers, sources, discriminator, shipped networks."""

from pathlib import Path

import numpy as np
import pytest
import torch

from xdistill import rng
from xdistill.assemble import build_networks
from xdistill.config import compose
from xdistill.domains.protein import ProteinDomain
from xdistill.domains.protein.data import parse_length
from xdistill.domains.protein.flow import ProteinCond, ProteinFlow
from xdistill.domains.protein.network import Proteina, ProteinaConfig
from xdistill.domains.protein.sampler import ProteinaPlan
from xdistill.domains.protein.teacher import MINI, mini_network
from xdistill.errors import UsageError
from xdistill.models import Batch, denoise
from xdistill.objectives.dmd import DMD
from xdistill.objectives.flow_matching import FlowMatching
from xdistill.samplers import ode, sde
from xdistill.sections import build_domain, build_objective
from xdistill.state import Field, Padded
from xdistill.testing.conformance import check_domain, check_model
from xdistill.testing.harness import run_macro_step

SMALL = {
    **MINI,
    "token_dim": 32,
    "nlayers": 2,
    "refine_after": 1,
    "nheads": 2,
    "dim_cond": 32,
    "pair_repr_dim": 16,
    "t_emb_dim": 32,
}


@pytest.fixture(scope="module")
def domain() -> ProteinDomain:
    return ProteinDomain({"max_length": 48})


def small_flow(seed: int = 0, **changes: object) -> ProteinFlow:
    torch.manual_seed(seed)
    flow = ProteinFlow(Proteina(ProteinaConfig.from_dict({**SMALL, **changes}), (4, 0, 0)))
    with torch.no_grad():
        for p in flow.parameters():
            p.add_(0.02 * torch.randn(p.shape))
    return flow.eval()


def real_batch(domain: ProteinDomain, n: int = 3) -> Batch[Field]:
    return domain.data(n, seed=3).batch(0, 0, 1)


def test_domain_conformance(domain: ProteinDomain) -> None:
    failed = [c for c in check_domain(domain) if not c.ok]
    assert not failed, failed


def test_shipped_teacher_conformance(domain: ProteinDomain) -> None:
    batch = real_batch(domain, 4)
    failed = [c for c in check_model(domain.teacher(), domain.process, batch.like, batch.cond) if not c.ok]
    assert not failed, failed


def test_lengths_follow_the_request_and_the_sample_alone(domain: ProteinDomain) -> None:
    many = domain.plan(range(20), seed=5, length="41-47").like.layout.lengths
    assert many.min() >= 41
    assert many.max() <= 47
    assert domain.plan([7], seed=5, length="41-47").like.layout.lengths[0] == many[7]
    assert set(domain.plan(range(4), seed=0, length=44).like.layout.lengths.tolist()) == {44}


@pytest.mark.parametrize("length", ["10-60", "100-400", "60-50", "abc"])
def test_bad_lengths_name_the_range(domain: ProteinDomain, length: str) -> None:
    with pytest.raises(UsageError, match=r"40-128|expected a number"):
        domain.plan([0], seed=0, length=length)


def test_parse_length() -> None:
    assert parse_length("64-128", (1, 2)) == (64, 128)
    assert parse_length(80, (1, 2)) == (80, 80)
    assert parse_length(None, (1, 2)) == (1, 2)


def test_data_free_lengths_are_uniform(domain: ProteinDomain) -> None:
    source = domain.null_data(8, seed=1)
    lengths = torch.cat([source.batch(i, 0, 1).like.layout.lengths for i in range(300)]).double()
    assert lengths.min() == 40
    assert lengths.max() == 48
    assert abs(float(lengths.mean()) - 44) < 0.3


def test_labels_are_dropped_sample_by_sample(domain: ProteinDomain) -> None:
    labels = domain.data(64, seed=0).batch(0, 0, 1).cond.labels
    null = (labels[:, 0] == 4).double().mean()
    assert 0.25 < float(null) < 0.75


def test_features_ignore_padding() -> None:
    flow, gen = small_flow(), rng.generator("x")
    x = torch.randn(2, 24, 3, generator=gen)
    t = torch.tensor([0.3, 0.7], dtype=torch.float64)
    wide = Padded.from_lengths([24, 17], 32, zero_com=True)
    narrow = Padded.from_lengths([24, 17], 24, zero_com=True)
    padded = torch.nn.functional.pad(x, (0, 0, 0, 8), value=9.0)
    a = flow.features(Field(x, narrow).project(), t, ProteinCond())
    b = flow.features(Field(padded, wide).project(), t, ProteinCond())
    assert a.shape == (2, flow.feature_dim)
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_self_conditioning_reaches_the_network() -> None:
    feats = {"feats_init_seq": ["res_seq_pdb_idx", "x_sc"]}
    flow = small_flow(**feats)
    like = Field(torch.zeros(2, 20, 3), Padded.from_lengths([20, 15], zero_com=True))
    x = like.randn(rng.generator("a"))
    plan = ProteinaPlan(4, sde=False).plan()
    from xdistill.process import Linear

    plain = ode(flow, Linear(), plan, x, ProteinCond())
    conditioned = ode(flow, Linear(), plan, x, ProteinCond(), self_conditioning=True)
    assert (plain.value - conditioned.value).abs().max() > 1e-4


def test_dmd_with_discriminator_trains_on_real_chains(domain: ProteinDomain) -> None:
    """The adversarial head reads the frozen teacher's pooled features; teacher weights never move."""
    flow = small_flow()
    objective = DMD(domain.process, steps=2, critic_updates=1, gan_weight=0.01, r1=1.0, divergence="js")
    import copy

    networks: dict[str, torch.nn.Module] = {
        "teacher": flow.requires_grad_(False),
        "student": copy.deepcopy(flow).requires_grad_(True),
        "critic": copy.deepcopy(flow).requires_grad_(True),
        "discriminator": domain.discriminator(flow),
    }
    before = {r: [p.detach().clone() for p in m.parameters()] for r, m in networks.items()}
    optimizers = {r: torch.optim.Adam(networks[r].parameters(), 1e-3) for r in ("student", "critic", "discriminator")}
    source = domain.data(2, seed=0)
    run_macro_step(objective, networks, optimizers, lambda i: source.batch(i, 0, 1), 0, 0)
    moved = {
        r: any((a != b).any() for a, b in zip(before[r], m.parameters(), strict=True)) for r, m in networks.items()
    }
    assert moved == {"teacher": False, "student": True, "critic": True, "discriminator": True}


def test_flow_matching_gradient_does_not_see_padding(domain: ProteinDomain) -> None:
    flow = small_flow().requires_grad_(True)
    x = real_batch(domain)
    wide = Padded(torch.nn.functional.pad(x.like.layout.mask, (0, 8)), zero_com=True)
    padded = Batch(Field(torch.nn.functional.pad(x.like.value, (0, 0, 0, 8)), wide), x.cond)
    grads = []
    for batch in (x, padded):
        from xdistill.objectives.flow_matching import flow_matching_loss

        t = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
        loss = flow_matching_loss(flow, domain.process, batch.like, t, batch.cond, rng.generator("n"))
        grads.append(torch.autograd.grad(loss.mean(), list(flow.parameters()), allow_unused=True))
    for a, b in zip(*grads, strict=True):
        if a is not None:
            torch.testing.assert_close(a, b, atol=2e-6, rtol=2e-4)


def test_reference_sampler_is_deterministic_per_sample(domain: ProteinDomain) -> None:
    flow, plan = small_flow(), ProteinaPlan(6, g_clamp=0.5).plan()
    outs = []
    for indices in ([0, 1, 2], [2]):
        batch = domain.plan(indices, seed=1)
        gens = rng.per_sample(1, indices)
        x = domain.process.prior(batch.like, gens)
        with torch.no_grad():
            out = sde(flow, domain.process, plan, x, batch.cond, gens, noise_scale=0.45)
        outs.append(domain.decode(out)[-1])
    assert abs(outs[0] - outs[1]).max() < 1e-4


def test_shipped_networks_load_and_know_their_lengths() -> None:
    domain = ProteinDomain({})
    domain.check_length(40, 128)
    teacher = domain.teacher()
    x = domain.plan([0], seed=0).like.randn(rng.generator("p"))
    with torch.no_grad():
        clean = denoise(teacher, domain.process, x, torch.ones(1, dtype=torch.float64), ProteinCond())  # type: ignore[arg-type]
    assert float(clean.mean_square()) < float(x.mean_square())


def test_description_rebuilds_the_network(domain: ProteinDomain) -> None:
    flow = mini_network().flow
    again = domain.from_description(domain.describe(flow))
    again.load_state_dict(flow.state_dict())
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in flow.state_dict().items()}


def test_the_students_weights_are_the_teachers(domain: ProteinDomain) -> None:
    cfg = compose(["domain=protein"])
    built = build_domain(cfg)
    networks = build_networks(cfg, built, build_objective(cfg, built))
    for role in ("student", "critic"):
        pairs = zip(networks[role].parameters(), networks["teacher"].parameters(), strict=True)
        assert all(torch.equal(a, b) and a is not b for a, b in pairs)


def test_flow_matching_trains_from_scratch_through_the_harness(domain: ProteinDomain) -> None:
    flow = small_flow().train().requires_grad_(True)
    objective, source = FlowMatching(domain.process), domain.data(4, seed=0)
    optimizer = {"student": torch.optim.Adam(flow.parameters(), 3e-3)}
    losses = []
    for step in range(30):
        out = run_macro_step(objective, {"student": flow}, optimizer, lambda i: source.batch(i, 0, 1), 0, step)
        losses.append(out["flow/loss"] if isinstance(out, dict) else 0.0)
    assert sum(losses[-8:]) < sum(losses[:8])


def test_files_of_every_format_are_read_back(domain: ProteinDomain, tmp_path: Path) -> None:
    chain = domain.decode(real_batch(domain).like)[0]
    for suffix in ("pdb", "cif", "bcif"):
        path = domain.write(chain, tmp_path / f"x.{suffix}")
        assert path.exists()
    assert len(domain.read(tmp_path)) >= 1


def test_a_chain_that_left_the_range_of_files_is_not_finite(domain):
    batch = domain.plan([0, 1], 0, length="40")
    value = torch.zeros(2, 40, 3)
    value[0, ::2, 0], value[0, 1::2, 0] = 2000.0, -2000.0
    far, near = domain.decode(Field(value, batch.like.layout))
    assert not np.isfinite(far).all()
    assert np.isfinite(near).all()
    found = domain.metrics([far, near + np.random.default_rng(0).normal(size=near.shape)])
    assert found["finite"].value == 0.5
