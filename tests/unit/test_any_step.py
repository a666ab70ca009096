"""Students of several step counts, guidance of the critic, and roles that start again."""

from dataclasses import dataclass, replace

import lightning as L
import pytest
import torch

from xdistill import checkpoint, rng
from xdistill.callbacks import Resume
from xdistill.config import compose
from xdistill.domains.toy import Label, PointNet, ToyDomain
from xdistill.engine import OptimConfig
from xdistill.errors import UsageError
from xdistill.guidance import Scales
from xdistill.models import NoCond
from xdistill.module import DistillModule
from xdistill.objectives.dmd import DMD
from xdistill.objectives.secant import Secant
from xdistill.objectives.sid import SiD
from xdistill.objectives.tdm import TDM
from xdistill.process import Linear
from xdistill.roles import RoleView, phase_grads
from xdistill.sections import build_domain, build_objective
from xdistill.stream import Stream

PROCESS = Linear()


@dataclass(frozen=True)
class Steps(NoCond):
    """A conditioning that can be told the number of steps."""

    steps: int = 0

    def with_steps(self, steps):
        return replace(self, steps=steps)


class Recording(PointNet):
    """Keeps what every call was told, and its time."""

    def __init__(self):
        super().__init__(PROCESS, width=8, depth=1)
        self.calls = []

    def forward(self, x_t, t, cond):
        self.calls.append((cond.steps if isinstance(cond, Steps) else cond, float(t[0])))
        return super().forward(x_t, t, cond)


def one_loss(objective, owner, shared=0, noise=0, cond=None):
    """Networks by role after one evaluation of a phase's loss."""
    torch.manual_seed(0)
    nets = {name: Recording() for name in ("teacher", "student", "critic") if name in {r.name for r in objective.roles}}
    phase = next(p for p in objective.phases(10**9) if p.owner == owner)
    batch = replace(ToyDomain({}).null_data(4, 0).batch(0, 0, 1), cond=cond or Steps())
    net = RoleView(nets, nets, owner, rng.generator("shared", shared))
    with phase_grads(nets, owner):
        objective.loss(phase, batch, net, rng.generator("noise", noise))
    return nets


FAMILY = {"sid": SiD, "dmd": DMD, "tdm": TDM, "secant": Secant}


@pytest.mark.parametrize("name", FAMILY)
class TestAnyStep:
    def test_student_and_critic_are_told_the_teacher_is_not(self, name):
        objective = FAMILY[name](PROCESS, steps=[1, 2, 4])
        seen = set()
        for owner in [p.owner for p in objective.phases(10**9)]:
            for seed in range(12):
                nets = one_loss(objective, owner, seed)
                told = {s for role in ("student", "critic") if role in nets for s, _ in nets[role].calls}
                assert len(told) == 1
                assert {s for s, _ in nets["teacher"].calls} <= {0}
                seen |= told
                times = {t for _, t in nets["student"].calls}
                if name != "secant":
                    assert times <= set(objective.anchors(told.pop()).tolist())
        assert seen == {1, 2, 4}

    def test_count_is_the_same_on_every_rank(self, name):
        objective = FAMILY[name](PROCESS, steps=[1, 4])
        for seed in range(8):
            calls = [one_loss(objective, "student", seed, noise)["student"].calls for noise in (0, 1)]
            assert [s for s, _ in calls[0]] == [s for s, _ in calls[1]]

    def test_one_count_tells_nothing(self, name):
        objective = FAMILY[name](PROCESS, steps=4)
        assert {s for s, _ in one_loss(objective, "student")["student"].calls} == {0}

    def test_sample_takes_the_most_by_default(self, name):
        objective, net = FAMILY[name](PROCESS, steps=[4, 1]), Recording()
        like = ToyDomain({}).plan(range(3), 0).like
        objective.sample(net, like, Steps(), rng.generator(0))
        assert [s for s, _ in net.calls] == [4] * 4
        net.calls.clear()
        objective.sample(net, like, Steps(), rng.generator(0), steps=1)
        assert [s for s, _ in net.calls] == [1]

    def test_first_step_is_of_the_longest_chain(self, name):
        objective = FAMILY[name](PROCESS, steps=[1, 4, 8], first_step=3)
        assert [objective.first(k) for k in (1, 4, 8)] == [0, 1, 3]
        for steps, first in (([], 0), ([0], 0), ([2.0], 0), (True, 0), ([1, 4], 4), (4, -1)):
            with pytest.raises(UsageError, match=r"steps|first_step"):
                FAMILY[name](PROCESS, steps=steps, first_step=first)


def test_a_list_on_the_command_line():
    cfg = compose(["domain=toy", "objective=tdm", "objective.steps=[1,4]"])
    assert build_objective(cfg, build_domain(cfg)).counts == (1, 4)
    with pytest.raises(UsageError, match=r"objective\.steps"):
        compose(["domain=toy", "objective.steps=[1,a]"])


class TestCriticGuidance:
    @pytest.mark.parametrize(
        ("choice", "expected"),
        [
            ("none", Scales(1, 1, 1)),
            ("cfg", Scales(2, 1, 1)),
            ("lsg", Scales(2, 2, 2)),
            ("short", Scales(1, 1, 0.5)),
            ("zero_cfg", Scales(1, 0, 0)),
            ("anti_cfg", Scales(1, -1, -1)),
        ],
    )
    def test_presets_reach_the_objective(self, choice, expected):
        cfg = compose(["domain=toy", "domain.labels=true", f"guidance={choice}"])
        assert build_objective(cfg, build_domain(cfg)).guidance == expected

    def test_single_scales_replace_the_preset(self):
        cfg = compose(["domain=toy", "guidance=lsg", "guidance.scale=3", "guidance.critic_train=1.5"])
        assert build_objective(cfg, build_domain(cfg)).guidance == Scales(3, 3, 1.5)

    @pytest.mark.parametrize("name", ["sid", "dmd", "tdm"])
    def test_zero_cfg_hides_the_condition_from_the_critic(self, name):
        """In its own loss and in the student's it sees no label; the student always sees it."""
        objective, label = FAMILY[name](PROCESS, steps=2), Label(torch.arange(4))
        objective.guidance = Scales(critic=0.0, critic_train=0.0)
        for owner in ("critic", "student"):
            nets = one_loss(objective, owner, cond=label)
            assert all((c.ids < 0).all() for c, _ in nets["critic"].calls)
            assert all((c.ids >= 0).all() for role in ("student", "teacher") for c, _ in nets[role].calls)

    @pytest.mark.parametrize("name", ["sid", "dmd", "tdm"])
    def test_each_scale_acts_in_its_loss(self, name):
        """k1 in the critic's loss, k2 = k3 in the student's: there the critic is called with and without the label."""
        objective, label = FAMILY[name](PROCESS, steps=2), Label(torch.arange(4))
        for scales, guided in ((Scales(critic_train=2.0), "critic"), (Scales(critic=2.0), "student")):
            objective.guidance = scales
            for owner in ("critic", "student"):
                assert len(one_loss(objective, owner, cond=label)["critic"].calls) == 1 + (owner == guided)


class TestCriticReset:
    """A critic that starts again every third macro-step."""

    def module(self, seed=0):
        torch.manual_seed(seed)
        domain = ToyDomain({"width": 8, "depth": 1})
        nets = {"teacher": domain.teacher(), "student": domain.network(), "critic": domain.network()}
        optim = dict.fromkeys(("student", "critic"), OptimConfig(lr=1e-2))
        return DistillModule(SiD(PROCESS, steps=1, critic_reset=3), nets, optim)

    def fit(self, module, stop, start=None):
        found = checkpoint.open_checkpoint(start) if start else None
        begin = found.manifest["macro_step"] if found else 0
        trainer = L.Trainer(
            accelerator="cpu",
            max_epochs=1,
            logger=False,
            callbacks=[Resume(found)],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        source = ToyDomain({}).null_data(8, 0)
        trainer.fit(module, Stream(source, steps=stop, slots=module.slots, start=begin))
        return module

    def weights(self, module, role="critic"):
        return torch.cat([p.detach().flatten() for p in module.networks[role].parameters()])

    def test_starts_again_with_a_fresh_optimizer(self):
        start = self.weights(self.module())
        moves = [(self.weights(self.fit(self.module(), n)) - start).abs() for n in (1, 3, 4)]
        moves = [float(m[m > 1e-6].median()) for m in moves]
        assert moves[1] > 1.5 * moves[0]
        # the first step of a fresh Adam moves every weight by lr, whatever its gradient
        assert moves[0] == pytest.approx(1e-2, rel=1e-3)
        assert moves[2] == pytest.approx(1e-2, rel=1e-3)
        assert self.module().objective.resets(0) == ()

    @pytest.mark.parametrize("stop", [2, 3, 4])
    def test_resume_around_it_is_exact(self, stop, tmp_path):
        whole = self.fit(self.module(), 7)
        first = self.fit(self.module(), stop)
        checkpoint.save(first, tmp_path / "step", {})
        resumed = self.fit(self.module(), 7, tmp_path / "step")
        for role in ("critic", "student", "student_ema"):
            assert torch.equal(self.weights(whole, role), self.weights(resumed, role))
