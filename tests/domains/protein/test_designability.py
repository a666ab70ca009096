"""Designability: scRMSD with backends that know the answer, ESMFold with tiny random weights, absent parts."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import ArrayLike, NDArray

from xdistill import rng
from xdistill.cli import main
from xdistill.domains.protein import folding, mpnn
from xdistill.domains.protein.chains import load_embedded
from xdistill.domains.protein.codec import read_structure, write_structure
from xdistill.domains.protein.data import random_rotations
from xdistill.domains.protein.designability import measure, metrics, self_consistency
from xdistill.domains.protein.folding import ESMFold, Prediction, load_backend
from xdistill.errors import UsageError, XDistillError

TRUNK = {
    "num_blocks": 1,
    "sequence_state_dim": 16,
    "pairwise_state_dim": 8,
    "sequence_head_width": 8,
    "pairwise_head_width": 4,
    "position_bins": 4,
    "chunk_size": None,
    "max_recycles": 1,
}
STRUCTURE = {
    "sequence_dim": 16,
    "pairwise_dim": 8,
    "ipa_dim": 4,
    "resnet_dim": 8,
    "num_heads_ipa": 2,
    "num_qk_points": 2,
    "num_v_points": 2,
    "num_blocks": 2,
    "num_resnet_blocks": 1,
}
ESM2 = {
    "vocab_size": 33,
    "mask_token_id": 32,
    "pad_token_id": 1,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "position_embedding_type": "rotary",
    "token_dropout": True,
}


def chain(i: int = 0) -> NDArray[np.float64]:
    return np.array(load_embedded("test").coords(i), np.float64)


def turn() -> NDArray[np.float64]:
    return random_rotations(1, rng.generator("turn"))[0].double().numpy()


def designer(trace: ArrayLike, seed: str) -> list[str]:
    """Eight sequences that differ, without a network: the k-th starts with k alanines."""
    n = len(np.asarray(trace))
    return [("A" * k).ljust(n, "G") for k in range(8)]


@dataclass
class Scaled:
    """Returns the true backbone, turned and moved, scaled by 1 + size[k]: the RMSD is then size[k] * Rg, exactly."""

    truth: NDArray[np.float64]
    size: Sequence[float]
    seen: list[list[str]] = field(default_factory=list)

    def fold(self, sequences: Sequence[str]) -> list[Prediction]:
        self.seen.append(list(sequences))
        x, move = self.truth - self.truth.mean(0), np.array([1.0, 2.0, 3.0])
        rows = zip(sequences, self.size, strict=True)
        return [Prediction((1 + s) * x @ turn().T + move, np.full(len(x), 90.0 - k)) for k, (_, s) in enumerate(rows)]


def gyration(x: NDArray[np.float64]) -> float:
    return float(10 * np.sqrt(((x - x.mean(0)) ** 2).sum(1).mean()))


def test_the_true_backbone_has_scrmsd_zero() -> None:
    result = self_consistency(chain(), Scaled(chain(), [0.0] * 8), "0", designer)
    assert result.scrmsd < 1e-5
    assert result.sctm == pytest.approx(1, abs=1e-5)
    assert result.designable


def test_scrmsd_is_the_smallest_of_eight() -> None:
    size = [0.5, 0.4, 0.9, 0.1, 0.2, 0.3, 0.6, 0.7]
    backend = Scaled(chain(), size)
    result = self_consistency(chain(), backend, "0", designer)
    assert result.rmsd == pytest.approx(np.array(size) * gyration(chain()))
    assert result.scrmsd == pytest.approx(0.1 * gyration(chain()))
    assert (result.sequence, result.plddt) == (backend.seen[0][3], 87.0)
    assert result.ca.shape == chain().shape


def test_a_mirror_image_is_not_superposed() -> None:
    assert self_consistency(chain(), Scaled(chain() * [1, 1, -1], [0.0] * 8), "0", designer).scrmsd > 3


def test_two_angstrom_decide_and_broken_chains_count() -> None:
    limit = 2 / gyration(chain())
    below, above = Scaled(chain(), [0.99 * limit] * 8), Scaled(chain(), [1.01 * limit] * 8)
    assert metrics([chain()], below, designer=designer)["designability"].value == 1
    assert metrics([chain()], above, designer=designer)["designability"].value == 0
    found = metrics([chain(), chain(), np.full((9, 3), np.nan)], below, designer=designer)
    assert found["designability"].value == pytest.approx(2 / 3)
    assert {k: (m.n, m.better) for k, m in found.items()} == {
        "designability": (3, "high"),
        "scrmsd": (2, "low"),
        "sctm": (2, "high"),
        "plddt": (2, "high"),
    }
    assert found["scrmsd"].value == pytest.approx(1.98)
    assert found["designability"].low < found["designability"].value < found["designability"].high


def test_seed_of_a_chain_is_its_place_in_the_set() -> None:
    seeds: list[str] = []

    def spy(trace: ArrayLike, seed: str) -> list[str]:
        seeds.append(seed)
        return designer(trace, seed)

    metrics([chain(), np.full((9, 3), np.nan), chain()], Scaled(chain(), [0.0] * 8), seed=7, designer=spy)
    assert seeds == ["7/0", "7/2"]


def test_predictions_of_another_length_are_refused() -> None:
    with pytest.raises(XDistillError, match=r"returned 8 predictions of shapes \[\(10, 3\)\]"):
        self_consistency(chain(), Scaled(chain()[:10], [0.0] * 8), "0", designer)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an ESMFold of random weights."""
    transformers = pytest.importorskip("transformers", reason="pip install 'xdistill[designability]'")
    fold = {"fp16_esm": True, "lddt_head_hid_dim": 8, "trunk": TRUNK | {"structure_module": STRUCTURE}}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.EsmForProteinFolding(
            transformers.EsmConfig(**ESM2, is_folding_model=True, esmfold_config=fold)
        )
        for p in model.parameters():  # output layers start at zero: every prediction would be the same
            p.data = torch.randn(p.shape, dtype=p.dtype) * 0.3
    path = tmp_path_factory.mktemp("esmfold")
    model.save_pretrained(path)
    return path


def test_esmfold_folds_what_it_is_given(tiny: Path) -> None:
    backend = load_backend("esmfold", tiny)
    sequences = ["ACDEFGHIKL", "MNPQR", "ACDEFGHIKV", "MNPQR"]
    found = backend.fold(sequences)
    assert [p.ca.shape for p in found] == [(10, 3), (5, 3), (10, 3), (5, 3)]
    assert np.allclose(found[1].ca, found[3].ca, atol=1e-4)
    assert np.abs(found[0].ca - found[2].ca).max() > 1e-3
    for p in found:
        assert p.plddt.shape == (len(p.ca),)
        assert ((p.plddt > 0) & (p.plddt < 100)).all()
    alone = ESMFold(tiny, batch_residues=1).fold(sequences[:1])[0]
    assert np.allclose(alone.ca, found[0].ca, atol=1e-4)
    model = backend.model  # type: ignore[attr-defined]
    pdb = [line for line in model.output_to_pdb(model.infer(sequences[:1]))[0].splitlines() if line[12:16] == " CA "]
    assert 10 * alone.ca == pytest.approx(
        np.array([[line[c : c + 8] for c in (30, 38, 46)] for line in pdb], float), abs=2e-3
    )


def test_designability_end_to_end(tiny: Path) -> None:
    try:
        mpnn.weights_path()
    except UsageError as e:
        pytest.skip(str(e))
    chains = [chain(0)[:20], chain(1)[:24]]
    found = measure(chains, seed=3, path=tiny)
    assert found["designability"].value == 0, "random weights fold nothing"
    assert found["scrmsd"].value > 2
    assert found == metrics(chains, ESMFold(tiny), seed=3)


def test_designability_from_the_command_line(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        mpnn.weights_path()
    except UsageError as e:
        pytest.skip(str(e))
    for i, n in enumerate((20, 24)):
        write_structure(tmp_path / f"{i}.pdb", chain(i)[:n])
    table = tmp_path / "table.json"
    command = ["evaluate", "domain=protein", f"dir={tmp_path}", "num=1", f"json={table}", "metrics=designability"]
    assert main([*command, f"domain.esmfold={tiny}", "seed=3"]) == 0, capsys.readouterr().err
    report = json.loads(table.read_text())
    found = measure([read_structure(path)[0] for path in sorted(tmp_path.glob("*.pdb"))], seed=3, path=tiny)
    assert {k: report["rows"][0]["metrics"][k] for k in found} == {k: asdict(m) for k, m in found.items()}
    assert report["real"]["scrmsd"]["n"] == 1
    assert main([*command, "domain.folding=no_such_module:f"]) == 2
    assert "cannot load the folding backend no_such_module:f" in capsys.readouterr().err
    assert main([*command, "domain.esmfodl=x"]) == 2
    assert "did you mean 'esmfold'" in capsys.readouterr().err


def test_absent_weights_and_packages_say_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: Path
) -> None:
    monkeypatch.setattr(folding, "ESMFOLD", "xdistill-tests/absent")
    with pytest.raises(UsageError, match=r"needs the weights of ESMFold.*domain\.esmfold=FOLDER") as e:
        load_backend()
    assert "\n" not in str(e.value)
    with pytest.raises(UsageError, match=r"no ESMFold at .*: expected a folder with config.json"):
        load_backend(path=tmp_path)
    with pytest.raises(UsageError, match=r"unknown folding backend 'alphafold': expected esmfold or package"):
        load_backend("alphafold")
    with pytest.raises(UsageError, match="cannot load the folding backend no_such_module:f"):
        load_backend("no_such_module:f")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UsageError, match=r"needs transformers: pip install 'xdistill\[designability\]'"):
        ESMFold(tiny)
    monkeypatch.setattr(mpnn, "FOLDERS", {})
    with pytest.raises(UsageError, match="needs the weights of ProteinMPNN"):
        measure([], path=tiny)


def test_damaged_checkpoints_are_refused(tiny: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    config, weights = tmp_path / "config.json", tmp_path / "model.safetensors"
    text, whole = (tiny / "config.json").read_text(), load_file(tiny / "model.safetensors")
    config.write_text(text)
    save_file({k: v for k, v in whole.items() if k != "lddt_head.1.weight"}, weights, {"format": "pt"})
    with pytest.raises(XDistillError, match=r"lacks 1 weights of ESMFold, lddt_head\.1\.weight first"):
        load_backend(path=tmp_path)
    weights.write_bytes((tiny / "model.safetensors").read_bytes()[:5000])
    with pytest.raises(XDistillError, match="cannot load ESMFold from"):
        load_backend(path=tmp_path)
    config.write_text(json.dumps(json.loads(text) | {"is_folding_model": False}))
    with pytest.raises(XDistillError, match="without a folding trunk"):
        load_backend(path=tmp_path)


def test_own_backend_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "my_folding.py").write_text("def factory(path, device):\n    return (path, device)\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert load_backend("my_folding:factory", "weights", "cpu") == ("weights", "cpu")
