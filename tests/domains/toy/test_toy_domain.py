"""The toy domain keeps every contract, its networks and files are right, and conformance notices what breaks one."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from xdistill import rng
from xdistill.discriminator import PooledDiscriminator
from xdistill.domains.toy import Label, MixtureTeacher, PointNet, ToyDomain
from xdistill.domains.toy.codec import read_folder, write_array
from xdistill.domains.toy.metrics import coverage, mmd2
from xdistill.domains.toy.teacher import circle
from xdistill.errors import UsageError, XDistillError
from xdistill.models import Featurizer, NoCond
from xdistill.process import Kind, Linear
from xdistill.state import Dense, Field

F64 = torch.float64


class TestConfig:
    def test_unknown_key_and_choice(self):
        with pytest.raises(UsageError, match="unknown key 'colour'"):
            ToyDomain({"colour": "red"})
        with pytest.raises(UsageError, match="process 'cosine' is not one of"):
            ToyDomain({"process": "cosine"})
        assert ToyDomain({"name": "toy"}).toy.task == "mixture"

    def test_requests(self):
        domain = ToyDomain({"points": 6, "labels": True})
        batch = domain.plan(range(4), 0, points=3, label="5")
        assert batch.like.elements.tolist() == [3] * 4
        assert batch.cond.ids.tolist() == [5] * 4
        with pytest.raises(UsageError, match="cannot ask for 'length'"):
            domain.plan([0], 0, length=4)
        with pytest.raises(UsageError, match="points=9 must be a whole number from 1 to 6"):
            domain.plan([0], 0, points=9)


class TestNetworks:
    @pytest.mark.parametrize("process", ["linear", "vp", "trig", "edm"])
    def test_one_asset_serves_every_path(self, process):
        """The shipped weights, moved to another path by matching the noise level, still sample the mixture."""
        domain = ToyDomain({"teacher": "mlp", "process": process})
        batch = domain.plan(range(500), 0)
        x = domain.teacher_samplers()["reference"](domain.teacher(), batch, rng.generator(1), steps=64)
        metrics = domain.metrics(domain.decode(x))
        assert metrics["mmd2"].value < 0.004
        assert metrics["mode_coverage"].value == 1

    @pytest.mark.parametrize("kind", Kind)
    def test_kinds_agree(self, kind):
        """The same weights give the same clean estimate whatever they are asked to predict."""
        x = Field(torch.randn(6, 2, generator=rng.generator(0), dtype=F64), Dense(6))
        t = torch.linspace(0.1, 0.9, 6, dtype=F64)
        estimates = []
        for k in (Kind.X0, kind):
            domain = ToyDomain({"teacher": "mlp", "kind": str(k)})
            out = domain.teacher().double()(x, t, NoCond())
            estimates.append(domain.process.convert(out, k, Kind.X0, x, t).value)
        torch.testing.assert_close(estimates[0], estimates[1], rtol=1e-9, atol=1e-9)

    def test_labels_condition(self):
        """A told mode is where the clean estimate goes; an untold one is the mixture's."""
        for teacher in ("analytic", "mlp"):
            domain = ToyDomain({"teacher": teacher, "labels": True})
            batch = domain.plan(range(200), 0, label=2)
            x = domain.teacher_samplers()["reference"](domain.teacher(), batch, rng.generator(0), steps=32)
            distance = (x.value - circle(8, 1.5)[2].float()).norm(dim=1)
            assert float((distance < 0.6).float().mean()) > 0.97

    def test_student_of_mlp_is_an_equal_copy(self):
        domain = ToyDomain({"teacher": "mlp"})
        teacher = domain.teacher()
        for copy in (domain.student(teacher), domain.critic(teacher)):
            assert all(torch.equal(a, b) for a, b in zip(copy.parameters(), teacher.parameters(), strict=True))
            assert all(
                a.data_ptr() != b.data_ptr() for a, b in zip(copy.parameters(), teacher.parameters(), strict=True)
            )

    def test_student_of_the_analytic_teacher(self):
        """The shipped weights where they fit, else fresh ones of the configured size."""
        shipped = ToyDomain({"teacher": "mlp"}).teacher().state_dict()
        domain = ToyDomain({})
        assert not list(domain.teacher().parameters())
        student = domain.student(domain.teacher())
        assert all(torch.equal(v, shipped[k]) for k, v in student.state_dict().items())
        small = ToyDomain({"width": 16})
        assert small.student(small.teacher()).feature_dim == 48
        with pytest.raises(UsageError, match="shipped weights are for"):
            ToyDomain({"width": 16, "teacher": "mlp"}).teacher()

    def test_description_rebuilds_the_network(self):
        for cfg in ({"width": 16, "kind": "x0"}, {"task": "tokens", "length": 3}):
            domain = ToyDomain(cfg)
            net = domain.network()
            again = domain.from_description(domain.describe(net))
            again.load_state_dict(net.state_dict())
            assert type(again) is type(net)
        assert ToyDomain({}).describe(ToyDomain({}).teacher()) == {}

    def test_own_weights(self, tmp_path):
        from safetensors.torch import save_file

        domain = ToyDomain({"width": 16})
        net = domain.network()
        save_file(net.state_dict(), tmp_path / "mine.safetensors")
        domain.teacher_weights = str(tmp_path / "mine.safetensors")
        assert all(torch.equal(a, b) for a, b in zip(domain.teacher().parameters(), net.parameters(), strict=True))
        other = ToyDomain({"width": 32})
        other.teacher_weights = domain.teacher_weights
        with pytest.raises(XDistillError, match="expected weights of PointNet"):
            other.teacher()


class TestDiscriminator:
    def test_borrows_its_trunk(self):
        """The trunk's parameters are neither saved nor trained, and gradients flow through it to the state."""
        domain = ToyDomain({"teacher": "mlp"})
        trunk = domain.teacher().requires_grad_(False)
        net = domain.discriminator(trunk)
        assert isinstance(trunk, Featurizer)
        own = sum(p.numel() for p in net.parameters())
        assert own == sum(v.numel() for v in net.state_dict().values()) < 50_000
        value = torch.randn(5, 2, generator=rng.generator(0)).requires_grad_()
        logits = net(Field(value, Dense(5)), torch.full((5,), 0.5, dtype=F64), NoCond())
        assert logits.shape == (5,)
        logits.sum().backward()
        assert (value.grad.abs() > 0).all()
        assert all(p.grad is None for p in trunk.parameters())
        assert all(p.grad is not None for p in net.parameters())

    def test_sees_the_time(self):
        net = ToyDomain({}).discriminator(ToyDomain({}).teacher())
        x = Field(torch.randn(4, 2, generator=rng.generator(0)), Dense(4))
        a, b = (net(x, torch.full((4,), t, dtype=F64), NoCond()) for t in (0.2, 0.8))
        assert (a != b).all()

    def test_needs_features(self):
        with pytest.raises(UsageError, match="MixtureTeacher exposes no features"):
            PooledDiscriminator(MixtureTeacher(Linear(), circle(8, 1.5), 0.1), Linear())


class TestData:
    def test_law(self):
        x = ToyDomain({}).data(20000, 0).batch(0, 0, 1).like.value.double()
        near = torch.cdist(x, circle(8, 1.5)).argmin(1)
        assert torch.bincount(near).min() > 2300
        assert float((x - circle(8, 1.5)[near]).std()) == pytest.approx(0.15, rel=0.02)

    def test_two_ranks_see_what_one_sees_in_two_draws(self):
        source = ToyDomain({}).data(4, 0)
        for rank in (0, 1):
            assert torch.equal(source.batch(3, rank, 2).like.value, source.batch(6 + rank, 0, 1).like.value)

    def test_sets_share_a_mode(self):
        batch = ToyDomain({"points": 5, "labels": True}).data(50, 0).batch(0, 0, 1)
        mask, centre = batch.like.layout.mask, circle(8, 1.5)[batch.cond.ids].float()[:, None]
        assert ((batch.like.value - centre).norm(dim=2)[mask] < 1).all()
        assert not batch.like.value[~mask].any()
        assert set(batch.like.elements.tolist()) == {1, 2, 3, 4, 5}

    def test_own_data(self, tmp_path):
        points = np.array([[[0.0, 1.0]], [[2.0, 3.0]]], dtype=np.float32)
        for i, p in enumerate(points):
            write_array(p, tmp_path / f"{i}.csv")
        domain = ToyDomain({})
        domain.data_path = str(tmp_path)
        batch = domain.data(64, 0).batch(0, 0, 1)
        assert {tuple(v) for v in batch.like.value.tolist()} == {(0.0, 1.0), (2.0, 3.0)}
        assert not domain.null_data(4, 0).batch(0, 0, 1).like.value.any()
        domain = ToyDomain({"dim": 3})
        domain.data_path = str(tmp_path)
        with pytest.raises(UsageError, match=r"a sample of shape \(1, 2\), expected \[1 to 1, 3\]"):
            domain.data(4, 0)


class TestCodec:
    @pytest.mark.parametrize("suffix", ["", ".npz", ".csv"])
    def test_round_trip(self, tmp_path, suffix):
        sample = np.random.default_rng(0).normal(size=(4, 2)).astype(np.float32)
        path = write_array(sample, tmp_path / "deep" / f"sample_1{suffix}")
        assert path.suffix == (suffix or ".npz")
        np.testing.assert_allclose(read_folder(path.parent)[0], sample, rtol=1e-6)
        assert [p.name for p in path.parent.iterdir()] == [path.name]

    def test_pickles_are_refused(self, tmp_path):
        np.savez(tmp_path / "x.npz", sample=np.array([object()], dtype=object))
        with pytest.raises(XDistillError, match=r"x\.npz: expected one array"):
            read_folder(tmp_path)

    def test_empty_folder(self, tmp_path):
        with pytest.raises(XDistillError, match=r"no \.npz or \.csv files"):
            read_folder(tmp_path)


class TestMetrics:
    def test_mmd_expectations_are_exact(self):
        """The closed-form mixture side agrees with a large reference sample."""
        domain = ToyDomain({})
        x, y = (domain.data(n, seed).batch(0, 0, 1).like.value.double() for n, seed in ((300, 1), (3000, 2)))
        x = x + 0.3
        square = [torch.cdist(a, b).square() for a, b in ((x, x), (x, y), (y, y))]
        kernel = [torch.stack([torch.exp(-s / (2 * h**2)) for h in (0.2, 0.5, 1.0, 2.0)]).mean(0) for s in square]
        off = [(k.sum() - k.diagonal().sum()) / (len(k) * (len(k) - 1)) for k in (kernel[0], kernel[2])]
        expected = off[0] - 2 * kernel[1].mean() + off[1]
        assert float(mmd2(x, circle(8, 1.5), 0.15)) == pytest.approx(float(expected), rel=0.05)

    def test_interval_covers_zero_for_the_law_itself(self):
        metrics = ToyDomain({}).reference_metrics()
        assert metrics["mmd2"].low < 0 < metrics["mmd2"].high
        assert metrics["mode_coverage"].value == 1
        assert metrics["score"].value == -metrics["mmd2"].value

    def test_lost_modes(self):
        means = circle(8, 1.5)
        x = ToyDomain({}).data(1000, 0).batch(0, 0, 1).like.value.double()
        kept = x[torch.cdist(x, means).argmin(1) != 3]
        assert float(coverage(kept, means, 0.15)) == 7 / 8
        assert float(mmd2(kept, means, 0.15)) > 0.01

    def test_coherence_notices_mixed_sets(self):
        domain = ToyDomain({"points": 4})
        whole = domain.decode(domain.data(200, 0).batch(0, 0, 1).like)
        mixed = [np.concatenate([a, b]) for a, b in itertools.pairwise(whole)]
        assert domain.metrics(whole)["coherence"].value == 1
        assert domain.metrics(mixed)["coherence"].value < 0.3


def test_labels_drop():
    assert Label(torch.tensor([3, 1])).drop().ids.tolist() == [-1, -1]


def test_network_ignores_the_order_of_its_points():
    torch.manual_seed(0)
    domain = ToyDomain({"points": 4})
    net = PointNet(Linear()).double()
    for p in net.parameters():
        nn.init.normal_(p, std=0.3)
    like = domain.plan(range(6), 0, points=4).like
    x = Field(torch.randn(6, 4, 2, generator=rng.generator(0), dtype=F64), like.layout)
    order = torch.tensor([2, 0, 3, 1])
    t = torch.full((6,), 0.5, dtype=F64)
    out = net(x, t, NoCond()).value
    moved = net(Field(x.value[:, order], x.layout), t, NoCond()).value
    torch.testing.assert_close(moved, out[:, order])
    others = Field(torch.cat([x.value[:, :1], 2 * x.value[:, 1:]], 1), x.layout)
    assert not torch.allclose(out[:, 0], net(others, t, NoCond()).value[:, 0])
