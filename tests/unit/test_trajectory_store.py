"""The store of teacher trajectories: deterministic, resumable, reused, and never another teacher's."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from xdistill import rng, trajectories
from xdistill.domains.toy import ToyDomain
from xdistill.errors import UsageError, XDistillError
from xdistill.objectives import Setting
from xdistill.objectives.mid_training import MidTraining
from xdistill.objectives.secant import Secant
from xdistill.process import Linear
from xdistill.roles import RoleView
from xdistill.sources import Trajectories
from xdistill.trajectories import TrajectoryStore, digest

SIZE = 4


def domain(**cfg):
    return ToyDomain({"width": 8, "depth": 1, "points": 3} | cfg)


def objective(**options):
    return Secant(Linear(), **({"steps": 2, "trajectories": 10, "solver_steps": 2} | options))


def setting(folder, d=None, **changes):
    identity = {"seed": 0, "domain": dict((d or domain()).cfg)}
    return replace(Setting((d or domain()).teacher(), folder, identity, torch.device("cpu")), **changes)


def made(folder, d=None, **options):
    d = d or domain()
    return objective(**options).source(d.null_data(SIZE, 0), setting(folder, d))


def shards(folder):
    return sorted(p.name for p in (folder / "trajectories").glob("shard_*"))


def values(batch):
    return torch.stack([s.value for s in batch.states])


def test_stored_states_are_the_teachers_trajectories(tmp_path):
    source, o, d = made(tmp_path), objective(), domain()
    batch = source.batch(0, 0, 1)
    assert isinstance(batch, Trajectories)
    assert not batch.real
    assert len(batch.states) == len(o.grid) == 3
    assert torch.equal(batch.states[1].layout.mask, batch.like.layout.mask)
    again = []
    for i in range(3):
        states = o.trajectory(d.teacher(), d.null_data(SIZE, 0).batch(i, 0, 1), rng.generator("trajectory", 0, i))
        again.append(torch.stack([s.value for s in states]))
    assert sum(torch.allclose(values(batch), states) for states in again) == 1


def test_every_shard_once_a_lap_and_ranks_apart(tmp_path):
    source = made(tmp_path)
    assert len(shards(tmp_path)) == 3  # ceil(10 / 4)
    first = [values(source.batch(i, 0, 1)) for i in range(3)]
    assert len({float(v.sum()) for v in first}) == 3
    two = [values(source.batch(i, rank, 2)) for i in range(3) for rank in range(2)]
    for a, b in zip([values(source.batch(i, 0, 1)) for i in range(6)], two, strict=True):
        assert torch.equal(a, b)


def test_is_filled_where_it_stopped_and_reused(tmp_path):
    whole = [values(made(tmp_path).batch(i, 0, 1)) for i in range(3)]
    files = [tmp_path / "trajectories" / name for name in shards(tmp_path)]
    kept, lost = files[0].stat().st_mtime_ns, files[2]
    lost.unlink()
    again = [values(made(tmp_path).batch(i, 0, 1)) for i in range(3)]
    assert all(torch.equal(a, b) for a, b in zip(whole, again, strict=True))
    assert files[0].stat().st_mtime_ns == kept
    assert not list((tmp_path / "trajectories").glob(".*"))
    made(tmp_path, trajectories=17)
    assert len(shards(tmp_path)) == 5


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (lambda f: made(f, domain(std=0.3)), "domain"),
        (lambda f: made(f, steps=4), "times"),
        (lambda f: made(f, heun=False), "solver"),
        (lambda f: objective().source(domain().null_data(SIZE + 1, 0), setting(f)), "batch"),
        (lambda f: objective().source(domain().null_data(SIZE, 0), setting(f, teacher=domain().network())), "digest"),
    ],
    ids=["teacher section", "anchors", "solver", "batch", "weights"],
)
def test_never_mixed(tmp_path, change, key):
    made(tmp_path)
    with pytest.raises(XDistillError, match=f"holds trajectories with .*{key}.*objective.store"):
        change(tmp_path)


def test_digest_sees_every_tensor():
    torch.manual_seed(0)
    net = domain().network()
    before = digest(net)
    assert digest(net) == before
    with torch.no_grad():
        net.output.bias[1] += 1e-6
    assert digest(net) != before


def test_damage_is_told(tmp_path):
    source = made(tmp_path)
    for name in shards(tmp_path):
        (tmp_path / "trajectories" / name).write_bytes(b"junk")
    with pytest.raises(XDistillError, match=r"shard_00000\d.safetensors is damaged"):
        source.batch(0, 0, 1)
    (tmp_path / "trajectories" / "manifest.json").write_text("{")
    with pytest.raises(XDistillError, match=r"manifest.json is damaged"):
        made(tmp_path)


def test_other_processes_wait(tmp_path, monkeypatch):
    monkeypatch.setattr(trajectories, "PATIENCE", 0.3)
    with pytest.raises(XDistillError, match="main process has stopped"):
        objective().source(domain().null_data(SIZE, 0), setting(tmp_path, main=False))
    assert not (tmp_path / "trajectories").exists()
    made(tmp_path)
    waited = objective().source(domain().null_data(SIZE, 0), setting(tmp_path, main=False))
    assert torch.equal(values(waited.batch(1, 0, 1)), values(made(tmp_path).batch(1, 0, 1)))


def test_without_a_store_the_domain_source_stays(tmp_path):
    source = domain().null_data(SIZE, 0)
    assert objective(trajectories=0).source(source, setting(tmp_path)) is source


def test_manifest_says_whose_they_are(tmp_path):
    made(tmp_path)
    manifest = json.loads((tmp_path / "trajectories" / "manifest.json").read_text())
    assert set(manifest) == {"schema", "seed", "domain", "teacher_digest", "batch", "times", "solver"}
    assert TrajectoryStore(tmp_path / "trajectories", {k: v for k, v in manifest.items() if k != "schema"}).folder


def test_options(tmp_path):
    with pytest.raises(UsageError, match="unknown target 'end'"):
        objective(target="end")
    with pytest.raises(UsageError, match="trajectories >= 0"):
        objective(trajectories=-1)


def test_mid_training_stores_half_precision_states_of_its_own_times(tmp_path):
    """float16 states, of the recorded grid, on which the loss of the stored batch runs; full ones are another store."""
    d, run = domain(), MidTraining(Linear(), points=4, shift=2.0, trajectories=8, half=True, rotate=True)
    source = run.source(d.null_data(SIZE, 0), setting(tmp_path))
    stored = load_file(tmp_path / "trajectories" / shards(tmp_path)[0])["states"]
    assert stored.dtype == torch.float16
    batch = source.batch(0, 0, 1)
    assert len(batch.states) == 4
    exact = run.trajectory(d.teacher(), d.null_data(SIZE, 0).batch(0, 0, 1), rng.generator("trajectory", 0, 0))
    full = torch.stack([x.value for x in exact])
    torch.testing.assert_close(stored.float(), full, rtol=2**-11, atol=1e-4)
    assert not torch.equal(stored.float(), full)
    student = d.flow_map(d.network())
    net = RoleView({"student": student}, {"student": student}, "student", rng.generator(0))
    out = run.loss(run.phases(0)[0], batch, net, rng.generator(1))
    assert bool(out.per_sample.isfinite().all())
    with pytest.raises(XDistillError, match="dtype=float16, this run has None"):
        replace(run, half=False).source(d.null_data(SIZE, 0), setting(tmp_path))


def test_a_key_added_since_disowns_nothing_while_it_is_null(tmp_path):
    store = tmp_path / "trajectories"
    TrajectoryStore(store, {"guidance": {"scale": 2.0}})
    assert TrajectoryStore(store, {"guidance": {"scale": 2.0, "range": None}}).folder == store
    with pytest.raises(XDistillError, match="holds trajectories with guidance"):
        TrajectoryStore(store, {"guidance": {"scale": 2.0, "range": [1.0, 3.0]}})
