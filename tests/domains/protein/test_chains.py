"""The embedded chains, their split, and the npz format."""

import hashlib
import io

import numpy as np
import pytest

from xdistill.domains.protein.chains import (
    ASSETS,
    CLUSTERS,
    EMBEDDED,
    ChainSet,
    load_clusters,
    load_embedded,
    split_of,
)
from xdistill.errors import XDistillError


def test_embedded_set_is_the_documented_one() -> None:
    chains = load_embedded("all")
    assert len(chains) == 4587
    assert chains.lengths.sum() == 436_147
    assert (chains.lengths.min(), chains.lengths.max()) == (40, 128)
    for name in (EMBEDDED, CLUSTERS):
        digest = hashlib.sha256((ASSETS / name).read_bytes()).hexdigest()
        assert f"{digest}  {name}" in (ASSETS / "README.md").read_text()


def test_coords_are_centred_nanometres_and_match_the_stored_differences() -> None:
    chains = load_embedded("all")
    with np.load(ASSETS / EMBEDDED) as z:
        first = np.cumsum(z["length"].astype(int) - 1)
        for i in (0, 1, 2000, 4586):
            stored = z["delta"][first[i] - chains.lengths[i] + 1 : first[i]] / 1000
            xyz = chains.coords(i)
            assert xyz.dtype == np.float32
            np.testing.assert_allclose(np.diff(xyz, axis=0), stored, atol=2e-6)
            np.testing.assert_allclose(xyz.mean(0), 0, atol=1e-6)
    spread = np.mean([chains.coords(i).std() for i in range(len(chains))])
    assert 0.72 < spread < 0.82  # section 1.1: about 0.77 nm an axis


def test_sequence_and_dssp_have_the_chain_length() -> None:
    chains = load_embedded("test")
    for i in range(0, len(chains), 17):
        assert len(chains.sequence(i)) == len(chains.dssp(i)) == chains.lengths[i] == len(chains.coords(i))
        assert set(chains.sequence(i)) <= set("ACDEFGHIKLMNPQRSTVWY")
        assert set(chains.dssp(i)) <= set("HGIEBTSC")


def test_set_is_immutable() -> None:
    chains = load_embedded("val")
    for array in (chains.coords(0), chains.lengths, chains.coarse_classes):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


def test_splits_partition_the_set_by_cluster_about_90_5_5() -> None:
    clusters, parts = load_clusters(), {s: load_embedded(s) for s in ("train", "val", "test")}
    ids = [name for part in parts.values() for name in part.ids]
    assert sorted(ids) == sorted(load_embedded("all").ids)
    groups = {s: {clusters[name] for name in part.ids} for s, part in parts.items()}
    assert not groups["train"] & groups["val"]
    assert not groups["train"] & groups["test"]
    assert not groups["val"] & groups["test"]
    shares = {s: len(part) / 4587 for s, part in parts.items()}
    assert shares == pytest.approx({"train": 0.9, "val": 0.05, "test": 0.05}, abs=0.01)
    assert [len(parts[s]) for s in parts] == [4117, 235, 235]
    assert split_of("1A1X_A") == split_of("1A1X_A")
    with pytest.raises(XDistillError, match="expected train, val, test or all"):
        load_embedded("dev")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("dssp", "expected"),
    [
        ("H" * 5 + "C" * 5, 1),
        ("GI" + "C" * 8, 1),
        ("E" * 5 + "C" * 5, 2),
        ("BB" + "C" * 8, 2),
        ("HHEE" + "C" * 6, 3),
        ("H" + "E" + "C" * 8, 3),
        ("C" * 10, 4),
        ("H" + "C" * 9, 4),
    ],
)
def test_coarse_class_thresholds(dssp: str, expected: int) -> None:
    chains = ChainSet.from_coords(["x"], [np.arange(30).reshape(10, 3) / 10], ["A" * 10], [dssp])
    assert chains.coarse_class(0) == expected


def test_select_keeps_order_and_content() -> None:
    chains = load_embedded("val")
    part = chains.select([7, 0, 7])
    assert part.ids == (chains.ids[7], chains.ids[0], chains.ids[7])
    for k, i in enumerate((7, 0, 7)):
        np.testing.assert_array_equal(part.coords(k), chains.coords(i))
        assert (part.sequence(k), part.dssp(k)) == (chains.sequence(i), chains.dssp(i))
    assert len(chains.select([])) == 0


def test_save_and_load_round_trip(tmp_path) -> None:
    chains = load_embedded("test").select([3, 1, 4])
    chains.save(tmp_path / "set.npz")
    again = ChainSet.load(tmp_path / "set.npz")
    assert again.ids == chains.ids
    for i in range(3):
        np.testing.assert_array_equal(again.coords(i), chains.coords(i))
        assert (again.sequence(i), again.dssp(i)) == (chains.sequence(i), chains.dssp(i))


def test_from_coords_does_not_accumulate_rounding() -> None:
    xyz = np.cumsum(np.full((500, 3), 0.21949), axis=0)  # 2.1949 A: rounds to 2.19 a step, 0.245 A off after 50
    chains = ChainSet.from_coords(["x"], [xyz], ["A" * 500], ["C" * 500])
    np.testing.assert_allclose(chains.coords(0), xyz - xyz.mean(0), atol=6e-4)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_from_coords_rejects_what_it_cannot_store(value: float) -> None:
    xyz = np.zeros((5, 3))
    xyz[2, 1] = value
    with pytest.raises(XDistillError, match=r"NaN or infinite|327 A"):
        ChainSet.from_coords(["x"], [xyz], ["AAAAA"], ["CCCCC"])


def _npz(**arrays) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def _npy() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    return buffer.getvalue()


GOOD = {
    "ids": np.array(["a"]),
    "length": np.array([3]),
    "delta": np.zeros((2, 3), np.int16),
    "seq": np.full(3, 65, np.uint8),
    "dssp": np.full(3, 67, np.uint8),
}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no npz chain set"),
        (b"not a zip at all", "no npz chain set"),
        (_npz(**GOOD)[:200], "no npz chain set"),
        (_npy(), "no npz chain set"),
        (_npz(ids=np.array(["a"])), "lacks"),
        (_npz(**GOOD | {"ids": np.array([object()])}), "no npz chain set"),  # a pickle inside is refused
        (_npz(**GOOD | {"delta": np.zeros((3, 3), np.int16)}), "inconsistent"),
        (_npz(**GOOD | {"delta": np.zeros((2, 3))}), "inconsistent"),
        (_npz(**GOOD | {"length": np.array([0])}), "inconsistent"),
    ],
)
def test_load_rejects_malformed_files_in_one_line(tmp_path, content: bytes, message: str) -> None:
    (tmp_path / "bad.npz").write_bytes(content)
    with pytest.raises(XDistillError, match=message) as error:
        ChainSet.load(tmp_path / "bad.npz")
    assert "\n" not in str(error.value)


def test_load_missing_file(tmp_path) -> None:
    with pytest.raises(XDistillError, match="no chain set at"):
        ChainSet.load(tmp_path / "none.npz")
