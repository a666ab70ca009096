"""The relational network: graph, invariances, names of official parameters, files."""

from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from xdistill.domains.protein.chains import load_embedded
from xdistill.domains.protein.data import random_rotations
from xdistill.domains.protein.gearnet import (
    ORIENTED_EDGE,
    ORIENTED_NODE,
    GearNet,
    GearNetConfig,
    load_gearnet,
    save_gearnet,
)
from xdistill.errors import XDistillError

ORIENTED = GearNetConfig(
    input_dim=ORIENTED_NODE,
    hidden_dim=16,
    layers=2,
    edge_dim=ORIENTED_EDGE,
    radius=8.0,
    nearest=4,
    separation=3,
    geometry="oriented",
    readout="mean",
    dropout=0.0,
    heads={"C": 4},
)
SMALL_OFFICIAL = GearNetConfig(input_dim=16, hidden_dim=16, layers=2, edge_dim=32, dropout=0.0, heads={"C": 5})


def network(config: GearNetConfig = ORIENTED) -> GearNet:
    """Random weights; batch statistics of real chains, so that every layer passes on what it sees."""
    torch.manual_seed(0)
    net = GearNet(config).requires_grad_(False)
    for _ in range(8):
        run(net, real(range(10, 18)))
    return net.eval()


def real(index: Iterable[int]) -> list[Tensor]:
    """Held-out chains in Angstrom."""
    return [torch.tensor(load_embedded("test").coords(i)) * 10 for i in index]


def run(net: GearNet, chains: list[Tensor]) -> Tensor:
    return net(net.graph(chains))


@pytest.fixture(scope="module")
def chains() -> list[Tensor]:
    return real((0, 3, 50, 51, 120))


def test_edges_of_a_straight_chain():
    """Six residues 3.8 A apart: 10 A reach two neighbours on each side; relations say receiver - sender + 2, or 5."""
    line = torch.arange(6)[:, None] * torch.tensor([3.8, 0.0, 0.0])
    graph = network(SMALL_OFFICIAL).graph([line])
    edges = set(zip(*graph.edge_index.tolist(), graph.edge_type.tolist(), strict=True))
    near = {(i, j) for i in range(6) for j in range(6) if 0 < abs(i - j) <= 2}
    assert edges == {(i, j, j - i + 2) for i, j in near} | {(i, j, 5) for i, j in near}
    assert graph.edge_index.shape[1] == len(edges)


def test_nearest_neighbours_reach_where_the_radius_does_not():
    line = torch.arange(9)[:, None] * torch.tensor([3.8, 0.0, 0.0])
    graph = network().graph([line])
    nearest = graph.edge_index[:, graph.edge_type == 6]
    assert not (graph.edge_type == 5).any()  # three steps are 11.4 A
    assert sorted(nearest[0][nearest[1] == 0].tolist()) == [3, 4, 5, 6]
    assert ((nearest[0] - nearest[1]).abs() >= 3).all()


def test_crowded_residues_keep_the_first_neighbours(chains):
    crowd = chains[0] * 0.05
    net = network(GearNetConfig(input_dim=16, hidden_dim=16, layers=1, edge_dim=32, heads={}, max_neighbours=7))
    graph = net.graph([crowd])
    spatial = graph.edge_index[:, graph.edge_type == 5]
    assert spatial[1].bincount().tolist() == [7] * len(crowd)
    assert sorted(spatial[0][spatial[1] == 20].tolist()) == list(range(7))
    assert run(net, [crowd]).isfinite().all()


@pytest.mark.parametrize("config", [ORIENTED, SMALL_OFFICIAL], ids=["oriented", "official"])
def test_a_chain_does_not_see_its_batch(config, chains):
    net = network(config)
    together = run(net, chains)
    assert together.shape == (5, 16)
    torch.testing.assert_close(run(net, chains[::-1]).flip(0), together, atol=2e-5, rtol=2e-5)
    for i in (1, 4):
        torch.testing.assert_close(run(net, [chains[i]])[0], together[i], atol=2e-5, rtol=2e-5)
    assert (together[0] - together[1]).abs().max() > 1e-2


def test_motions_change_nothing_and_mirror_images_do(chains):
    net = network()
    turn = random_rotations(1, torch.Generator().manual_seed(1))[0]
    before = run(net, chains)
    torch.testing.assert_close(run(net, [x @ turn.T + 30.0 for x in chains]), before, atol=1e-3, rtol=1e-3)
    mirrored = run(net, [x * torch.tensor([1.0, 1.0, -1.0]) for x in chains])
    assert ((mirrored - before).norm(dim=1) > 0.05 * before.norm(dim=1)).all()


def test_official_features_see_the_pose_but_not_the_hand(chains):
    """The sign of (a x b)_z turns with the chain and is even under inversion: FPSD cannot tell left from right."""
    net = network(SMALL_OFFICIAL)
    before = run(net, chains)
    assert (run(net, [x[:, [2, 0, 1]] for x in chains]) - before).abs().max() > 1e-2
    torch.testing.assert_close(run(net, [-x for x in chains]), before)


def test_coinciding_atoms_give_finite_features():
    assert run(network(), [torch.zeros(8, 3), torch.arange(12.0).view(4, 3)]).isfinite().all()


def test_names_and_sizes_of_official_parameters():
    with torch.device("meta"):
        shapes = {k: tuple(v.shape) for k, v in GearNet().state_dict().items()}
    assert shapes["atom_embedding.weight"] == (1, 256)
    assert shapes["layers.7.input.module.3.weight"] == (512, 512)
    assert shapes["layers.0.edge_input.module.0.running_mean"] == (256,)
    assert shapes["layers.0.edge_input.module.3.weight"] == (512, 256)
    assert shapes["layers.3.linear.module.3.weight"] == (512, 6 * 512)
    assert shapes["layers.3.output.module.3.weight"] == (512, 512)
    assert shapes["mlp.module.4.bias"] == (512,)
    assert [shapes[f"pred_head_{k}.weight"][0] for k in "CAT"] == [5, 43, 1336]
    assert not any("identity" in k or k.endswith("output.module.3.bias") for k in shapes)
    assert len(shapes) == 1 + 8 * (2 * 12 + 2 * 6) + 12 + 6


def test_files_come_back(tmp_path: Path, chains):
    net = network()
    save_gearnet(net, tmp_path / "a.safetensors", {"seed": 0})
    again = load_gearnet(tmp_path / "a.safetensors")
    assert again.config == net.config
    assert not again.official_geometry
    torch.testing.assert_close(run(again, chains), run(net, chains), atol=5e-2, rtol=5e-2)  # float16 on disk


def test_official_weights_load_and_are_known_as_such(tmp_path: Path):
    torch.manual_seed(0)
    net = GearNet()
    torch.save(net.state_dict(), tmp_path / "gearnet_ca.pth")
    loaded = load_gearnet(tmp_path / "gearnet_ca.pth")
    assert loaded.official_geometry
    assert not loaded.training
    assert torch.equal(loaded.state_dict()["pred_head_T.weight"], net.state_dict()["pred_head_T.weight"])


class Hostile:
    def __reduce__(self):
        return print, ("executed",)


def test_wrong_files_are_refused_in_one_line(tmp_path: Path, capsys):
    small = network(SMALL_OFFICIAL).state_dict()
    torch.save(small, tmp_path / "small.pth")
    torch.save({"x": Hostile()}, tmp_path / "hostile.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    (tmp_path / "text.pth").write_text("no weights")
    (tmp_path / "text.safetensors").write_text("no weights")
    save_file({"x": torch.zeros(2)}, tmp_path / "other.safetensors")
    cases = {
        "none.pth": "does not exist",
        "small.pth": "no CA GearNet classifier",
        "hostile.pth": "not a weights-only",
        "list.pth": "no state dict",
        "text.pth": "not a weights-only",
        "text.safetensors": "not a readable",
        "other.safetensors": "expected xdistill-gearnet-1",
    }
    for name, message in cases.items():
        with pytest.raises(XDistillError, match=message) as error:
            load_gearnet(tmp_path / name)
        assert "\n" not in str(error.value)
    assert "executed" not in capsys.readouterr().out
