"""Fold labels: prefixes, null rows, uniform draws, coarse classes."""

import pytest
import torch

from xdistill.domains.protein.labels import ClassMap, coarse_class_map, prefixes
from xdistill.errors import XDistillError

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
