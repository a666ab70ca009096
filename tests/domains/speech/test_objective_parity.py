"""Every recorded case of the average-velocity objectives, through the core's own functions, to 1e-12."""

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from xdistill.domains.speech.parity_objectives import replay

FIXTURES = Path(__file__).parents[2] / "fixtures" / "speech"


@pytest.fixture(scope="module")
def results():
    return replay(FIXTURES)


def test_all_agree(results):
    assert [r for r in results if not r.ok] == []
    assert len(results) > 200
    assert max(r.max_error for r in results) < 1e-12


@pytest.mark.parametrize("case", ["meanflow.p1", "mfd.fd", "imf.boundary_tangent", "split.mixed", "intmf.K8", "cmt"])
def test_every_objective_is_there(results, case):
    names = [r.name.removeprefix("objectives/") for r in results]
    assert any(name.startswith(case) and ".grad." in name for name in names)


def test_an_unread_tensor_fails_and_a_changed_one_too(tmp_path):
    shutil.copy(FIXTURES / "objectives.json", tmp_path)
    stored = load_file(FIXTURES / "objectives.safetensors")
    stored["extra"] = stored["t"].clone()
    stored["sampler.2"] = stored["sampler.2"] + 1e-9
    save_file(stored, tmp_path / "objectives.safetensors")
    wrong = [r.name for r in replay(tmp_path) if not r.ok]
    assert wrong == ["objectives/sampler.2", "objectives/tensors that nothing looks at (extra)"]


def test_a_folder_without_recordings(tmp_path):
    assert replay(tmp_path) == []
