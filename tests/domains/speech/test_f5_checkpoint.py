"""F5 checkpoints: official forms, full-size key lists, our own file, and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from xdistill.domains.speech.checkpoint import load_network, load_official, save_network
from xdistill.domains.speech.network import F5Config, F5Net
from xdistill.domains.speech.teacher import load
from xdistill.errors import UsageError, XDistillError

FIXTURES = Path(__file__).parents[2] / "fixtures/speech"
V0, V1 = FIXTURES / "f5_tiny_v0_ckpt.safetensors", FIXTURES / "f5_tiny_v1_ckpt.safetensors"
LINEAR = ("weight", "bias")


def official_names(config: F5Config) -> dict[str, tuple[int, ...]]:
    """Names and shapes of speech spec 1.4, written out."""
    d, inner, wide, t = config.dim, config.heads * config.dim_head, int(config.dim * config.ff_mult), config.text_dim
    linear: dict[str, tuple[int, ...]] = {
        "time_embed.time_mlp.0": (d, 256),
        "time_embed.time_mlp.2": (d, d),
        "input_embed.proj": (d, 2 * config.mel_dim + t),
        "input_embed.conv_pos_embed.conv1d.0": (d, d // 16, 31),
        "input_embed.conv_pos_embed.conv1d.2": (d, d // 16, 31),
        "norm_out.linear": (2 * d, d),
        "proj_out": (config.mel_dim, d),
    }
    for i in range(config.depth):
        b = f"transformer_blocks.{i}."
        linear |= {f"{b}attn_norm.linear": (6 * d, d), f"{b}attn.to_out.0": (d, inner)}
        linear |= {f"{b}attn.to_{x}": (inner, d) for x in "qkv"}
        linear |= {f"{b}ff.ff.0.0": (wide, d), f"{b}ff.ff.2": (d, wide)}
    names = {
        "text_embed.text_embed.weight": (config.vocab_size + 1, t),
        "rotary_embed.inv_freq": (config.dim_head // 2,),
    }
    for i in range(config.conv_layers):
        b = f"text_embed.text_blocks.{i}."
        linear |= {f"{b}dwconv": (t, 1, 7), f"{b}norm": (t,), f"{b}pwconv1": (2 * t, t), f"{b}pwconv2": (t, 2 * t)}
        names |= {f"{b}grn.gamma": (1, 1, 2 * t), f"{b}grn.beta": (1, 1, 2 * t)}
    for name, shape in linear.items():
        names |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return names


@pytest.mark.parametrize(
    ("preset", "millions"),
    [("F5TTS_Base", 337.1), ("F5TTS_v1_Base", 337.1), ("F5TTS_Small", 159.2), ("F5TTS_v1_Small", 159.2)],
)
def test_full_size_names(preset: str, millions: float) -> None:
    config = F5Config.preset(preset)
    with torch.device("meta"):
        state = F5Net(config).state_dict()
    assert {k: tuple(v.shape) for k, v in state.items()} == official_names(config)
    count = sum(v.numel() for v in state.values()) / 1e6
    print(f"{preset}: {count:.1f} M parameters")
    assert count == pytest.approx(millions, abs=0.1)


@pytest.mark.parametrize(("path", "name", "heads"), [(V0, "v0", 1), (V1, "v1", None)])
def test_official_safetensors(path: Path, name: str, heads: int | None) -> None:
    loaded = load_network(path, name=name)
    config, stored = loaded.net.config, load_file(path)
    assert (config.pe_attn_head, config.text_mask_padding) == (heads, name == "v1")
    assert (config.depth, config.conv_layers, config.dim_head) == (2 if name == "v0" else 3, 2, 16)
    for key, value in loaded.net.state_dict().items():
        assert torch.equal(value, stored[f"ema_model.transformer.{key}"])
    assert "CC-BY-NC" in loaded.provenance["licence"]
    assert not loaded.net.training


def test_full_training_checkpoint(tmp_path: Path) -> None:
    averaged = load_file(V1)
    averaged["ema_model.mel_spec.mel_stft.mel_scale.fb"] = torch.zeros(3)
    raw = {k.removeprefix("ema_model."): v + 1 for k, v in averaged.items() if "transformer" in k}
    path = tmp_path / "F5TTS_v1_Base" / "model_last.pt"
    path.parent.mkdir()
    optimizer = {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-4, "betas": (0.9, 0.999)}]}
    content = {
        "ema_model_state_dict": averaged,
        "model_state_dict": raw,
        "optimizer_state_dict": optimizer,
        "update": 9,
    }
    torch.save(content, path)
    (path.parent / "vocab.txt").write_text(" \n" + "\n".join("abcdefghijklmnopqrstuvwxyz0123456789.,?") + "\n")
    loaded = load_network(path)
    assert torch.equal(loaded.net.proj_out.weight, averaged["ema_model.transformer.proj_out.weight"])
    assert loaded.vocabulary is not None
    assert loaded.vocabulary[:2] == (" ", "a")
    plain = load_official(path, ema=False)
    assert torch.equal(plain.net.proj_out.weight, raw["transformer.proj_out.weight"])
    (path.parent / "vocab.txt").write_text("a\nb\n")
    with pytest.raises(XDistillError, match="2 symbols, the network 40"):
        load_network(path)


def test_own_file_and_mel_kinds(tmp_path: Path) -> None:
    net = load_official(V0, name="v0", mel_spec_type="bigvgan").net
    path = save_network(net, tmp_path / "student", vocabulary=["a", "ä"], provenance={"steps": 3})
    loaded = load_network(path, mel_spec_type="bigvgan")
    assert loaded.net.config == net.config
    assert loaded.vocabulary == ("a", "ä")
    assert loaded.provenance == {"steps": 3}
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in loaded.net.state_dict().items())
    with pytest.raises(XDistillError, match="trained on bigvgan mels, vocos ones are asked for"):
        load_network(path, mel_spec_type="vocos")
    with pytest.raises(UsageError, match="leave out name"):
        load_network(path, name="v0")
    half = load_network(save_network(net, tmp_path / "half", dtype=torch.bfloat16)).net
    assert torch.equal(half.rotary_embed.inv_freq, net.rotary_embed.inv_freq)
    assert torch.equal(half.proj_out.weight, net.proj_out.weight.bfloat16().float())


@pytest.mark.parametrize(("folder", "kind"), [("v1", "vocos"), ("F5TTS_v1_Base_bigvgan", "bigvgan")])
def test_the_folder_tells_version_and_mel_kind(tmp_path: Path, folder: str, kind: str) -> None:
    (tmp_path / folder).mkdir()
    config = load_network(shutil.copy(V1, tmp_path / folder / "model_1250000.safetensors")).net.config
    assert (config.mel_spec_type, config.text_mask_padding) == (kind, True)


def broken(tmp_path: Path, change: dict[str, Tensor | None]) -> Path:
    state = load_file(V1) | {k: v for k, v in change.items() if v is not None}
    path = tmp_path / "broken.safetensors"
    save_file({k: v for k, v in state.items() if k not in change or change[k] is not None}, path)
    return path


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("ema_model.transformer.proj_out.bias", None, "missing proj_out.bias"),
        ("ema_model.transformer.proj_out.weight", None, "no complete F5 network: missing proj_out.weight"),
        ("ema_model.transformer.extra", torch.zeros(1), "unexpected extra"),
        ("ema_model.transformer.norm_out.linear.bias", torch.zeros(7), r"norm_out.linear.bias is \(7,\), expected"),
        ("discriminator.weight", torch.zeros(1), "no F5-TTS checkpoint: discriminator.weight"),
    ],
)
def test_weights_that_do_not_fit(tmp_path: Path, key: str, value: Tensor | None, message: str) -> None:
    with pytest.raises(XDistillError, match=message) as caught:
        load_network(broken(tmp_path, {key: value}), name="v1")
    assert "\n" not in str(caught.value)


class Hostile:
    def __reduce__(self) -> tuple[object, ...]:
        return (print, ("executed",))


def test_bad_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(XDistillError, match="does not exist"):
        load_network(tmp_path / "none.safetensors")
    with pytest.raises(UsageError, match="put it into a folder F5TTS_v1_Base"):
        load_network(V1)
    (tmp_path / "v1").mkdir()
    shutil.copy(V1, tmp_path / "v1")
    with pytest.raises(XDistillError, match="of 20 mel bands, but vocos mels have 100"):
        load(str(tmp_path / "v1" / V1.name))
    with pytest.raises(UsageError, match="did you mean 'F5TTS_Base'"):
        load_network(V1, name="F5TTS_Bas")
    (tmp_path / "cut.safetensors").write_bytes(V1.read_bytes()[:5000])
    with pytest.raises(XDistillError, match="damaged"):
        load_network(tmp_path / "cut.safetensors", name="v1")
    torch.save({"ema_model_state_dict": {"a": Hostile()}}, tmp_path / "hostile.pt")
    with pytest.raises(XDistillError, match="refused"):
        load_network(tmp_path / "hostile.pt", name="v1")
    assert "executed" not in capsys.readouterr().out
