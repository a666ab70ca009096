"""Fold labels: prefixes, null rows, uniform draws, coarse classes, what users write, labels of batches and plans."""

import json
from pathlib import Path

import pytest
import torch

from xdistill import rng
from xdistill.domains.protein import ProteinDomain
from xdistill.domains.protein.chains import load_embedded
from xdistill.domains.protein.checkpoint import save_network
from xdistill.domains.protein.labels import NAMES, ClassMap, LabelLaw, coarse_class_map, parse_label, prefixes
from xdistill.domains.protein.network import Proteina, ProteinaConfig
from xdistill.domains.protein.teacher import MINI
from xdistill.errors import UsageError, XDistillError

CLASSES = {"C": {"1": 0, "3": 1}, "A": {"1.10": 0, "3.40": 1, "3.30": 2}, "T": {"3.40.50": 0}}


def test_prefixes():
    assert prefixes("3.40.50.x") == ("3", "3.40", "3.40.50")
    assert prefixes("3.40.50.720") == ("3", "3.40", "3.40.50")
    assert prefixes("3.x.x.x") == ("3", None, None)
    assert prefixes("x.x.x.x") == (None, None, None)
    assert prefixes("3.x.50.x") == ("3", None, None)
    for bad in ("3", "3.40.50.1.2", "3.alpha.50.x", ""):
        with pytest.raises(XDistillError, match=r"C\.A\.T\.H"):
            prefixes(bad)


def test_encode_known_masked_and_unknown():
    classes = ClassMap.from_dict(CLASSES)
    rows = classes.encode(["3.40.50.x", ["1.10.8.x"], [], "9.9.9.x", "3.30.x.x"])
    assert rows.dtype == torch.int64
    assert rows.tolist() == [[1, 1, 0], [0, 0, 1], [2, 3, 1], [2, 3, 1], [1, 2, 1]]
    assert torch.equal(classes.null(2), classes.encode(["x.x.x.x", "x.x.x.x"]))
    assert classes.encode([]).shape == (0, 3)
    assert ClassMap.from_dict(classes.to_dict()) == classes


def test_several_labels_are_drawn_uniformly_and_reproducibly():
    classes = ClassMap.from_dict(CLASSES)
    several = [["1.10.x.x", "3.40.x.x", "3.30.x.x"]] * 3000
    drawn = classes.encode(several, torch.Generator().manual_seed(0))
    assert torch.equal(drawn, classes.encode(several, torch.Generator().manual_seed(0)))
    share = torch.bincount(drawn[:, 1], minlength=3) / 3000
    assert (share - 1 / 3).abs().max() < 0.04  # about 5 standard deviations
    with pytest.raises(XDistillError, match="Generator"):
        classes.encode(several[:1])


def test_wrong_maps():
    with pytest.raises(XDistillError, match="level 'T'"):
        ClassMap.from_dict({"C": {}, "A": {}})
    with pytest.raises(XDistillError, match="level C"):
        ClassMap.from_dict({**CLASSES, "C": {"1": 0, "3": 2}})


def test_coarse_classes_are_the_class_level():
    classes = coarse_class_map()
    assert classes.num_classes == (4, 0, 0)
    assert classes.from_coarse(torch.tensor([1, 4, 3])).tolist() == [[0, 0, 0], [3, 0, 0], [2, 0, 0]]
    assert classes.null(1).tolist() == [[4, 0, 0]]


def test_what_users_write():
    coarse, cath = coarse_class_map(), ClassMap.from_dict(CLASSES)
    assert [parse_label(k, coarse) for k in (1, "2", "mainly-alpha", "alpha-beta", "4.x.x.x", "x.x.x.x")] == [
        *("1.x.x.x", "2.x.x.x", "1.x.x.x", "3.x.x.x", "4.x.x.x", "x.x.x.x")
    ]
    assert parse_label("3.40.50", cath) == "3.40.50.x"
    assert parse_label("3.40.50.720", cath) == "3.40.50.720"
    assert sorted(NAMES.values()) == sorted(coarse.levels[0])


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("bogus", "expected mainly-alpha"),
        ("7", "no class 7 of level C .*known: 1, 3"),
        (3.4, "3.40.x.x"),
        ("3.41.x.x", "no class 3.41 of level A .*3.40"),
        ("3.40.51.x", "level T"),
        ("1.2.3.4.5", "expected"),
        ("", "expected"),
        ("-1", "expected"),
    ],
)
def test_bad_labels_in_one_line(label, message):
    with pytest.raises(UsageError, match=message) as error:
        parse_label(label, ClassMap.from_dict(CLASSES))
    assert "\n" not in str(error.value)


def test_label_law_follows_length_and_class():
    """Short chains of class 1, long ones of classes 2 and 3 (1 : 3): a draw sees its own length only."""
    lengths = torch.cat([torch.full((200,), 100), torch.full((100,), 50)])
    classes = torch.cat([torch.tensor([2, 3, 3, 3]).repeat(50), torch.ones(100, dtype=torch.int64)])
    law, gen = LabelLaw(lengths, classes), torch.Generator().manual_seed(0)
    assert {law.draw(n, gen) for n in (3, 50, 60) for _ in range(50)} == {"1.x.x.x"}
    drawn = [law.draw(n, gen) for n in (100, 128) for _ in range(400)]
    assert set(drawn) == {"2.x.x.x", "3.x.x.x"}
    assert abs(drawn.count("3.x.x.x") / 800 - 0.75) < 0.07
    with pytest.raises(XDistillError, match="empty"):
        LabelLaw(torch.zeros(0), torch.zeros(0))


def test_sampled_labels_depend_on_the_sample_alone():
    domain = ProteinDomain({})
    many = domain.plan(range(300), seed=3, label="sample")
    few = domain.plan([250, 4], seed=3, label="sample")
    assert torch.equal(few.cond.labels, many.cond.labels[[250, 4]])
    assert not torch.equal(domain.plan(range(300), seed=4, label="sample").cond.labels, many.cond.labels)
    shares = torch.bincount(many.cond.labels[:, 0], minlength=5) / 300
    real = torch.bincount(torch.tensor(load_embedded("train").coarse_classes - 1), minlength=5) / 4117
    assert (shares - real).abs().max() < 0.12  # uniform lengths, five standard deviations
    assert shares[4] == 0


def test_data_free_labels_are_real_pairs_some_of_them_dropped():
    plain = ProteinDomain({}).null_data(32, 0).batch(0, 0, 1)
    assert plain.cond.labels is None
    source = ProteinDomain({"label_law": "empirical", "label_dropout": 0.25}).null_data(64, 0)
    labelled = [source.batch(i, 0, 1) for i in range(12)]
    assert torch.equal(labelled[0].like.layout.lengths[:32], source.batch(0, 0, 1).like.layout.lengths[:32])
    rows = torch.cat([b.cond.labels for b in labelled])
    null = (rows[:, 0] == 4).double().mean()
    assert abs(float(null) - 0.25) < 0.08
    assert (rows[:, 1:] == 0).all()
    assert torch.equal(source.batch(5, 1, 2).cond.labels, source.batch(5, 1, 2).cond.labels)
    assert not torch.equal(source.batch(5, 1, 2).cond.labels, source.batch(5, 0, 2).cond.labels)
    with pytest.raises(UsageError, match="none or empirical"):
        ProteinDomain({"label_law": "joint"})


def test_cath_labels_of_a_teacher_that_comes_without_its_classes(tmp_path: Path):
    small = {
        **MINI,
        "refine_after": 0,
        "token_dim": 32,
        "nlayers": 1,
        "nheads": 2,
        "dim_cond": 32,
        "pair_repr_dim": 16,
        "t_emb_dim": 32,
    }
    small |= {"vector_channels": 0, "refine_after": 0}
    net = Proteina(ProteinaConfig.from_dict(small), (2, 3, 1))
    weights = save_network(net, tmp_path / "net.safetensors")
    (tmp_path / "cath.json").write_text(json.dumps(CLASSES))
    (tmp_path / "other.json").write_text(json.dumps({"C": {"1": 0}, "A": {}, "T": {}}))
    domain = ProteinDomain({"class_map": str(tmp_path / "cath.json")})
    domain.teacher_weights = str(weights)
    assert domain.plan(range(2), 0, label="3.40.50.x").cond.labels.tolist() == [[1, 1, 0]] * 2
    assert set(domain.plan(range(9), 0, label="1").cond.labels[:, 0].tolist()) == {0}
    for cfg, message in (({}, "class_map"), ({"class_map": str(tmp_path / "other.json")}, "trained with")):
        without = ProteinDomain(cfg)
        without.teacher_weights = str(weights)
        with pytest.raises(XDistillError, match=message):
            without.plan([0], 0, label="3.40.50.x")


def test_adherence_is_measured_against_the_request():
    domain, test = ProteinDomain({}), load_embedded("test")
    helical = [test.coords(int(i)) for i in (test.coarse_classes == 1).nonzero()[0][:8]]
    assert domain.request_metrics(helical) == {}
    assert domain.request_metrics(helical, label="mainly-alpha")["adherence"].value > 0.7
    assert domain.request_metrics(helical, label="mainly-beta")["adherence"].value < 0.3
    with pytest.raises(UsageError, match="seed and length"):
        domain.request_metrics(helical, label="sample")
    lengths = domain.plan(range(8), 5, label="sample").like.layout.lengths.tolist()
    gen = rng.generator("walk")
    walks = [torch.randn(n, 3, generator=gen).cumsum(0).numpy() * 0.2 for n in lengths]
    assert domain.request_metrics(walks, 5, label="sample")["adherence"].n == 8
