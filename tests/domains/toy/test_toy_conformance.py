"""The toy domain keeps every contract, and conformance notices what breaks one."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from xdistill.domain import Domain
from xdistill.domains.toy import PointNet, ToyDomain
from xdistill.state import Field
from xdistill.testing.conformance import check_domain, check_model

CONFIGS = [
    {},
    {"teacher": "mlp", "process": "vp"},
    {"points": 5, "labels": True},
    {"task": "gaussian", "dim": 3, "std": 1.0, "process": "trig"},
    {"process": "edm", "kind": "x0"},
    {"task": "tokens"},
]


def name(cfg):
    return "-".join(map(str, cfg.values())) or "default"


def failed(checks):
    return {c.name: c.message for c in checks if not c.ok}


def padded_mean(model, x, t, c):
    mean = x.value.mean(1, keepdim=True).expand_as(x.value)
    return model(x, t, c) + Field(mean, x.layout)


NOISE = torch.Generator().manual_seed(0)
FAULTS = [
    pytest.param(lambda m, x, t, c: m(x, 1 - t, c), "time_sign", id="time_reversed"),
    pytest.param(lambda m, x, t, c: -m(x, t, c), "time_sign", id="velocity_negated"),
    pytest.param(lambda m, x, t, c: m(x, t, c) + x.randn(NOISE) * 0.1, "deterministic", id="dropout"),
    pytest.param(padded_mean, "mask_invariance", id="padded_mean"),
    pytest.param(lambda m, x, t, c: m(x, t, c).scale(1 / (t - 0.5)), "finite", id="singular"),
    pytest.param(lambda m, x, t, c: m(x, t, c).value, "layout", id="bare_tensor"),
]


class TestConformance:
    @pytest.mark.parametrize("cfg", CONFIGS, ids=name)
    def test_domain(self, cfg):
        domain = ToyDomain(cfg)
        assert isinstance(domain, Domain)
        assert not failed(check_domain(domain))

    @pytest.mark.parametrize("cfg", CONFIGS[:-1], ids=name)
    def test_teacher(self, cfg):
        domain = ToyDomain(cfg)
        batch = domain.data(64, 0).batch(0, 0, 1)
        assert not failed(check_model(domain.teacher(), domain.process, batch.like, batch.cond))

    @pytest.mark.parametrize(("fault", "caught"), FAULTS)
    def test_faults_are_noticed(self, fault, caught):
        domain = ToyDomain({"points": 5, "labels": True})
        teacher = domain.teacher()

        class Faulty(nn.Module):
            kind = teacher.kind

            def forward(self, x, t, c):
                return fault(teacher, x, t, c)

        batch = domain.data(64, 0).batch(0, 0, 1)
        assert caught in failed(check_model(Faulty(), domain.process, batch.like, batch.cond))

    @pytest.mark.parametrize(("waves", "declared", "ok"), [(1, 1, True), (100, 1, False), (100, 1000, True)])
    def test_time_scale(self, waves, declared, ok):
        """Sinusoids of many times t make a large derivative in time, in which only a small difference sees anything."""

        class Fast(PointNet):
            time_scale = float(declared)

            def _waves(self, angle):
                return super()._waves(waves * angle)

        domain = ToyDomain({})
        torch.manual_seed(0)
        batch = domain.data(64, 0).batch(0, 0, 1)
        (check,) = [
            c
            for c in check_model(Fast(domain.process), domain.process, batch.like, batch.cond)
            if c.name == "derivative"
        ]
        assert check.ok is ok, check.message
        assert "derivative=func" in check.message
        assert ("promises" in check.message) is not ok

    def test_forward_mode_that_fails_is_said(self):
        class Fused(PointNet):
            def forward(self, x_t, t, cond):
                q = x_t.value[None, None]
                with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
                    mixed = nn.functional.scaled_dot_product_attention(q, q, q)[0, 0]
                return Field(mixed, x_t.layout)

        domain = ToyDomain({})
        batch = domain.data(64, 0).batch(0, 0, 1)
        checks = check_model(Fused(domain.process), domain.process, batch.like, batch.cond)
        assert "cannot follow" in next(c.message for c in checks if c.name == "derivative")

    def test_domain_faults_are_noticed(self, tmp_path):
        class Drifting(ToyDomain):
            calls = itertools.count()

            def data(self, batch_size, seed):
                return super().data(batch_size, seed + next(self.calls))

            def plan(self, indices, seed, **request):
                return super().plan([i + len(indices) for i in indices], seed, **request)

            def write(self, sample, path):
                return super().write(sample + 1, path)

            def flow_map(self, network):
                grown = super().flow_map(network)
                torch.nn.init.normal_(grown.jump.weight)
                return grown

        broken = failed(check_domain(Drifting({"points": 5})))
        assert {"batches", "plan", "files", "new_inputs"} <= broken.keys()
