"""Checkpoints: the genuine reference file, LoRA, conversion, and files that must be refused without being executed."""

import importlib.util
import json
import logging
import pickle
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file

from xdistill.domains.protein import checkpoint
from xdistill.domains.protein.labels import ClassMap
from xdistill.domains.protein.parity import load_recorded_network, replay_checkpoints
from xdistill.errors import XDistillError

ROOT = Path(__file__).parents[3]
FIXTURES = ROOT / "tests" / "fixtures" / "protein"
GENUINE = FIXTURES / "tiny_lightning_EMA.ckpt"
SPEC = json.loads((FIXTURES / "denoiser_a_notri.json").read_text())
WEIGHTS = FIXTURES / "denoiser_a_notri.weights.safetensors"


class Hostile:
    """Unpickling this calls `Path.touch(marker)`."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def write_ckpt(path: Path, state=None, **extra) -> Path:
    cfg = OmegaConf.create({"model": {"nn": SPEC["config"], "target_pred": "v"}})
    state = load_file(WEIGHTS) if state is None else state
    torch.save({"state_dict": state, "global_step": 7, "hyper_parameters": {"cfg_exp": cfg}, **extra}, path)
    return path


def refusal(call, *args, **options) -> str:
    """The message of the XDistillError, which must be one line."""
    with pytest.raises(XDistillError) as caught:
        call(*args, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("result", replay_checkpoints(FIXTURES), ids=lambda r: r.name)
def test_genuine_checkpoint(result):
    assert result.ok, result


def test_genuine_checkpoint_description():
    loaded = checkpoint.load_official(GENUINE)
    assert loaded.target_pred == "v"
    assert loaded.net.config.token_dim == 32
    assert loaded.class_map is None
    assert loaded.provenance["global_step"] == 3
    assert not loaded.net.training


def test_conversion_keeps_every_bit(tmp_path):
    classes = tmp_path / "classes.json"
    classes.write_text(json.dumps(SPEC["cath_label_mapping"]))
    source = write_ckpt(tmp_path / "net.ckpt")
    weights = checkpoint.convert(source, tmp_path / "out", class_map=classes)
    loaded = checkpoint.load_network(tmp_path / "out")
    expected = load_file(WEIGHTS)
    assert {f"nn.{k}" for k in loaded.net.state_dict()} == set(expected)
    assert all(torch.equal(v, expected[f"nn.{k}"]) for k, v in loaded.net.state_dict().items())
    assert loaded.class_map == ClassMap.from_dict(SPEC["cath_label_mapping"])
    assert loaded.provenance["source"] == "net.ckpt"
    for other in (weights, weights.with_suffix(".json"), source):
        assert checkpoint.load_network(other).net.config == loaded.net.config


def test_ema_twin_is_preferred_and_announced(tmp_path, caplog):
    plain = write_ckpt(tmp_path / "last.ckpt")
    write_ckpt(tmp_path / "last-EMA.ckpt", {k: v + 1 for k, v in load_file(WEIGHTS).items()})
    with caplog.at_level(logging.WARNING):
        averaged = checkpoint.load_official(plain)
    assert "last-EMA.ckpt" in caplog.text
    assert averaged.provenance["weights"] == "EMA"
    raw = checkpoint.load_official(plain, prefer_ema=False)
    assert torch.equal(averaged.net.registers, raw.net.registers + 1)


def test_configuration_can_be_overridden(tmp_path):
    path = write_ckpt(tmp_path / "net.ckpt")
    assert not checkpoint.load_official(path, config={"residual_mha": False}).net.config.residual_mha
    message = refusal(checkpoint.load_official, path, config={"token_dim": 32})
    assert "linear_3d_embed.weight is (64, 3), expected (32, 3)" in message
    assert "and " in message
    assert "missing transformer_layers.3" in refusal(checkpoint.load_official, path, config={"nlayers": 4})
    assert "unexpected transformer_layers.2" in refusal(checkpoint.load_official, path, config={"nlayers": 2})


@pytest.mark.parametrize("alpha", [None, 4.0])
def test_lora_is_merged(tmp_path, alpha):
    """A layer `W x + alpha/r B A x` and its merged form agree on an input; embeddings use the transpose."""
    state, rank, generator = load_file(WEIGHTS), 3, torch.Generator().manual_seed(0)
    linear, table = "nn.transformer_layers.1.mhba.mha.to_qkv", "nn.cond_factory.feat_creators.1.embedding_A"
    for name, (out, inner) in {linear: (192, 64), table: (8, 7)}.items():
        state[f"{name}.lora_A"] = torch.randn(rank, inner, generator=generator)
        state[f"{name}.lora_B"] = torch.randn(out, rank, generator=generator)
    loaded = checkpoint.load_official(write_ckpt(tmp_path / "lora.ckpt", state), lora_alpha=alpha)
    scale = (alpha or 32.0) / rank
    assert loaded.provenance["lora_layers_merged"] == 2
    x = torch.randn(5, 64, generator=generator)
    a, b, w = (state[f"{linear}.{k}"] for k in ("lora_A", "lora_B", "weight"))
    qkv = loaded.net.get_submodule(linear.removeprefix("nn."))
    torch.testing.assert_close(qkv(x) - qkv.bias, x @ w.T + scale * (x @ a.T) @ b.T, atol=1e-3, rtol=1e-4)
    a, b, w = (state[f"{table}.{k}"] for k in ("lora_A", "lora_B", "weight"))
    rows = loaded.net.get_submodule(table.removeprefix("nn."))(torch.tensor([2]))
    torch.testing.assert_close(rows[0], w[2] + scale * b @ a[:, 2], atol=1e-4, rtol=1e-4)
    del state[f"{linear}.lora_B"]
    assert "lora_A without" in refusal(checkpoint.load_official, write_ckpt(tmp_path / "half.ckpt", state))


def test_hostile_pickle_is_refused_and_not_executed(tmp_path):
    marker = tmp_path / "executed"
    path = write_ckpt(tmp_path / "evil.ckpt", callbacks=Hostile(marker))
    assert "refused" in refusal(checkpoint.load_official, path)
    assert "refused" in refusal(checkpoint.load_class_map, path)
    assert not marker.exists()
    torch.load(path, weights_only=False)  # the attack works on a careless reader
    assert marker.exists()


def test_bare_hostile_pickle_is_not_even_opened(tmp_path):
    marker, path = tmp_path / "executed", tmp_path / "evil.ckpt"
    path.write_bytes(pickle.dumps(Hostile(marker)))
    assert "zip archive" in refusal(checkpoint.load_official, path)
    assert not marker.exists()


def test_missing_truncated_and_foreign_files(tmp_path):
    assert "does not exist" in refusal(checkpoint.load_official, tmp_path / "none.ckpt")
    whole = GENUINE.read_bytes()
    cut = tmp_path / "cut.ckpt"
    cut.write_bytes(whole[: len(whole) // 2])
    assert "truncated" in refusal(checkpoint.load_official, cut)
    with zipfile.ZipFile(tmp_path / "other.ckpt", "w") as archive:
        archive.writestr("readme.txt", "not a checkpoint")
    assert "damaged" in refusal(checkpoint.load_official, tmp_path / "other.ckpt")
    torch.save([1, 2], tmp_path / "list.ckpt")
    assert "no state_dict" in refusal(checkpoint.load_official, tmp_path / "list.ckpt")
    torch.save({"state_dict": {"model.weight": torch.ones(2)}}, tmp_path / "foreign.ckpt")
    assert "no parameters named nn.*" in refusal(checkpoint.load_official, tmp_path / "foreign.ckpt")
    torch.save({"state_dict": load_file(WEIGHTS)}, tmp_path / "bare.ckpt")
    assert "no network configuration" in refusal(checkpoint.load_official, tmp_path / "bare.ckpt")
    assert checkpoint.load_official(tmp_path / "bare.ckpt", config=SPEC["config"]).net.config.nlayers == 3


def test_saved_network_is_checked(tmp_path):
    net, classes = load_recorded_network(SPEC, load_file(WEIGHTS))
    weights = checkpoint.save_network(net, tmp_path / "a" / "net.safetensors", class_map=classes, target_pred="x_1")
    assert checkpoint.load_network(weights).target_pred == "x_1"
    assert sorted(p.name for p in weights.parent.iterdir()) == ["net.json", "net.safetensors"]
    assert "does not exist" in refusal(checkpoint.load_network, tmp_path / "b")
    shutil.copytree(tmp_path / "a", tmp_path / "c")
    damaged = tmp_path / "c" / "net.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-4] + b"\0\0\0\1")
    assert "sha256" in refusal(checkpoint.load_network, damaged)
    damaged.unlink()
    assert "weights beside their JSON" in refusal(checkpoint.load_network, damaged)
    damaged.with_suffix(".json").write_text('{"format": "other"}')
    assert "expected format" in refusal(checkpoint.load_network, damaged)
    damaged.with_suffix(".json").write_text("{")
    assert "not readable JSON" in refusal(checkpoint.load_network, damaged)


def test_class_map_sources(tmp_path):
    expected = ClassMap.from_dict(SPEC["cath_label_mapping"])
    torch.save(SPEC["cath_label_mapping"], tmp_path / "cath_label_mapping.pt")
    assert checkpoint.load_class_map(tmp_path) == expected
    assert checkpoint.load_class_map(tmp_path / "cath_label_mapping.pt") == expected
    small = tmp_path / "small.json"
    small.write_text(json.dumps({"C": {"1": 0}, "A": {}, "T": {}}))
    path = write_ckpt(tmp_path / "net.ckpt")
    assert "the network has (5, 6, 7)" in refusal(checkpoint.load_official, path, class_map=small)
    small.write_text("[]")
    assert "no fold class map" in refusal(checkpoint.load_class_map, small)


def test_command_line(tmp_path, capsys):
    path = ROOT / "tools" / "convert_protein_checkpoint.py"
    spec = importlib.util.spec_from_file_location("convert_protein_checkpoint", path)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    assert tool.main([str(GENUINE), str(tmp_path), "--set", "residual_mha=false"]) == 0
    assert "60,148 parameters" in capsys.readouterr().out
    assert not checkpoint.load_network(tmp_path).net.config.residual_mha
    assert tool.main(["none.ckpt", str(tmp_path)]) == 1
    assert capsys.readouterr().err == "error: none.ckpt does not exist; expected a checkpoint file\n"
    assert tool.main([str(GENUINE), str(tmp_path), "--set", "nlayers"]) == 2
