"""Griffin-Lim, Vocos and BigVGAN: known signals, recorded outputs of official networks, official files, refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.utils.parametrizations import weight_norm

from xdistill.domains.speech import SpeechDomain, corpus
from xdistill.domains.speech import vocoder as vocoders
from xdistill.domains.speech.bigvgan import BigVGAN, BigVGANConfig, fold, load_bigvgan
from xdistill.domains.speech.griffin_lim import GriffinLim, magnitudes
from xdistill.domains.speech.mel import KINDS, MelSpec, bank_tensor, mel
from xdistill.domains.speech.network import F5Config
from xdistill.domains.speech.resampling import resample
from xdistill.domains.speech.stft import istft, stft
from xdistill.domains.speech.vocoder import load_vocoder, vocode
from xdistill.domains.speech.vocos import Vocos, VocosConfig, load_vocos, official_config, save_vocos
from xdistill.domains.speech.weights import read_weights
from xdistill.errors import UsageError, XDistillError

FIXTURES = Path(__file__).parents[2] / "fixtures/speech"
TINY = VocosConfig(dim=16, intermediate=32, layers=2)


def recorded(name: str, part: str = "") -> tuple[dict[str, Tensor], Tensor, Tensor, dict]:
    """Official weights, mel, waveform and configuration of a recorded network."""
    found = load_file(FIXTURES / f"{name}_tiny.safetensors")
    with safe_open(FIXTURES / f"{name}_tiny.safetensors", "pt") as file:
        config = json.loads(file.metadata()[part.strip("/") or "config"])
    weights = {k.removeprefix(f"{part}weights/"): v for k, v in found.items() if k.startswith(f"{part}weights/")}
    return weights, found[f"{part}mel"], found[f"{part}waveform"], config


def glide(seconds: float) -> Tensor:
    """A voiced-like sound: eight harmonics of a gliding pitch."""
    t = torch.arange(int(24000 * seconds), dtype=torch.float64) / 24000
    phase = 2 * torch.pi * (140 * t + 60 * t.square())
    voice = torch.stack([torch.sin(k * phase) / k for k in range(1, 9)]).sum(0)
    return (0.4 * voice * (3 * torch.pi * t).sin().square()).float()


@pytest.mark.parametrize("pad", [512, 384])
def test_istft_undoes_stft(pad: int) -> None:
    waveform = torch.randn(2, 256 * 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    spectrum = stft(waveform, 1024, 256, pad)
    back = istft(spectrum, 1024, 256, pad)
    torch.testing.assert_close(back, waveform[:, : back.shape[1]], atol=1e-12, rtol=0)
    if pad == 512:
        window = torch.hann_window(1024, dtype=torch.float64)
        theirs = torch.istft(spectrum + 0.1, 1024, 256, window=window, center=True)
        torch.testing.assert_close(istft(spectrum + 0.1, 1024, 256, pad), theirs, atol=1e-12, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_magnitudes_fit_the_mel(kind: str) -> None:
    spec = MelSpec(kind)
    target = mel(glide(0.5), spec)
    errors = []
    for updates in (0, 100):
        banded = bank_tensor(spec, torch.float32, target.device) @ magnitudes(target, spec, updates)
        errors.append(float((banded.clamp(min=1e-5).log() - target).square().mean().sqrt()))
    assert errors[1] < 0.05 < errors[0]
    assert (target.max() > 4) == (kind == "vocos"), "loud speech of the vocos kind must be among what is fitted"
    wild = target.clone()
    wild[0, 0], wild[5, 2] = 1e4, -1e4
    assert magnitudes(wild, spec).isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_griffin_lim_resynthesises(kind: str) -> None:
    spec = MelSpec(kind)
    target = mel(glide(0.7), spec)
    found = GriffinLim(spec)(target)
    assert found.shape == (spec.samples(target.shape[1]),)
    wanted = stft(glide(0.7)[None, : len(found)], spec.n_fft, spec.hop, spec.pad).abs()
    errors = []
    for change in ({}, {"momentum": 0.0}, {"iterations": 0}):
        sound = GriffinLim(spec, **change)(target)
        errors.append(float((stft(sound[None], spec.n_fft, spec.hop, spec.pad).abs() - wanted).norm() / wanted.norm()))
    assert errors[0] < 0.1
    assert errors[0] < errors[1] < errors[2]
    assert torch.equal(found, GriffinLim(spec)(target))
    assert not torch.equal(found, GriffinLim(spec, seed=1)(target))
    torch.testing.assert_close(GriffinLim(spec)(target.bfloat16()), GriffinLim(spec)(target.bfloat16().float()))


def test_neighbours_and_padding_are_never_heard() -> None:
    spec = MelSpec("vocos")
    network = Vocos(TINY, torch.Generator().manual_seed(0)).eval()
    batch = torch.randn(2, 100, 30, generator=torch.Generator().manual_seed(1)) - 6
    other = torch.cat([batch[:, :, :20], batch.flip(0)[:, :, :10] * 3], dim=2)
    for vocoder in (GriffinLim(spec, iterations=4), vocoders.NeuralVocoder("tiny", spec, network)):
        alone = vocoder(batch[0, :, :20])
        assert torch.equal(vocode(vocoder, batch, [20, 30])[0], alone)
        assert torch.equal(vocode(vocoder, other, torch.tensor([20, 30]))[0], alone)


def test_vocos_is_the_official_one(tmp_path: Path) -> None:
    weights, mels, waveform, config = recorded("vocos")
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    more = {**weights, "feature_extractor.mel_spec.spectrogram.window": torch.ones(1)}
    torch.save(more, tmp_path / "pytorch_model.bin")
    network = load_vocos(tmp_path)
    torch.testing.assert_close(network(mels), waveform, atol=1e-5, rtol=0)
    assert official_config(network.config) == config
    saved = tmp_path / "saved"
    save_vocos(network, saved)
    assert torch.equal(load_vocos(saved / "model.safetensors")(mels), network(mels))


@pytest.mark.parametrize("part", ["v2/", "v1/"])
def test_bigvgan_is_the_official_one(part: str, tmp_path: Path) -> None:
    weights, mels, waveform, config = recorded("bigvgan", part)
    (tmp_path / "config.json").write_text(json.dumps(config))
    torch.save({"generator": weights}, tmp_path / "bigvgan_generator.pt")
    torch.testing.assert_close(load_bigvgan(tmp_path)(mels), waveform[:, 0], atol=1e-5, rtol=0)
    torch.save({"generator": fold(weights)}, tmp_path / "bigvgan_generator.pt")
    torch.testing.assert_close(load_bigvgan(tmp_path)(mels), waveform[:, 0], atol=1e-5, rtol=0)


def test_weight_norm_folds_under_its_new_names() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = weight_norm(torch.nn.ConvTranspose1d(4, 2, 6, 3))
    folded = fold({f"up.{k}": v * 2 for k, v in layer.state_dict().items()})
    assert set(folded) == {"up.weight", "up.bias"}
    torch.testing.assert_close(folded["up.weight"], layer.weight.detach() * 2)


def test_official_sizes() -> None:
    with torch.device("meta"):
        vocos, bigvgan = Vocos(VocosConfig()), BigVGAN(BigVGANConfig())
    assert sum(p.numel() for p in vocos.parameters()) == 13_531_650
    assert 110e6 < sum(p.numel() for p in bigvgan.parameters()) < 115e6
    assert bigvgan.resblocks[17].convs2[2].weight.shape == (24, 24, 11)


def test_a_head_that_knows_the_spectrum_is_exact() -> None:
    spec = MelSpec("vocos")
    waveform = 0.3 * glide(0.3)[: 256 * 27]  # the head cuts magnitudes at 100
    spectrum = stft(waveform[None], spec.n_fft, spec.hop, spec.pad)
    network = Vocos(VocosConfig(dim=spec.n_fft + 2, intermediate=1, layers=1))
    torch.nn.init.eye_(network.head.out.weight)
    torch.nn.init.zeros_(network.head.out.bias)
    features = torch.cat([spectrum.abs().clamp(min=1e-9).log(), spectrum.angle()], dim=1).transpose(1, 2)
    torch.testing.assert_close(network.head(features)[0], waveform, atol=1e-5, rtol=0)


def test_refusals(tmp_path: Path) -> None:
    vocos, bigvgan = MelSpec("vocos"), MelSpec("bigvgan")
    save_vocos(Vocos(TINY, torch.Generator().manual_seed(0)), tmp_path)
    assert load_vocoder(f"vocos:{tmp_path}", vocos).mel_kind == "vocos"
    assert load_vocoder("griffin_lim", bigvgan).mel_kind == "bigvgan"
    with pytest.raises(XDistillError, match=r"mel kind 'bigvgan' met 'vocos'.*4 nats"):
        load_vocoder(f"vocos:{tmp_path}", bigvgan)
    for choice in ("grifin_lim", "vocos", "vocos:", "griffin_lim:x", ""):
        with pytest.raises(UsageError, match="unknown vocoder"):
            load_vocoder(choice, vocos)
    with pytest.raises(XDistillError, match=r"no vocoder at .*config.json"):
        load_vocoder(f"bigvgan:{tmp_path}", bigvgan)
    for wrong in (torch.zeros(80, 9), torch.zeros(1, 100, 9), torch.zeros(100, 1)):
        with pytest.raises(XDistillError, match="a mel of shape"):
            GriffinLim(vocos)(wrong)
    with pytest.raises(XDistillError, match="too short"):
        GriffinLim(vocos)(torch.zeros(100, 3))


def test_foreign_and_damaged_files_are_refused(tmp_path: Path) -> None:
    save_vocos(Vocos(TINY, torch.Generator().manual_seed(0)), tmp_path)
    config, weights = tmp_path / "config.yaml", tmp_path / "model.safetensors"
    text = config.read_text()
    for change in (("ISTFTHead", "IMDCTCosHead"), ("MelSpectrogramFeatures", "EncodecFeatures"), ("center", "same")):
        config.write_text(text.replace(*change))
        with pytest.raises(XDistillError, match="describes another vocoder"):
            load_vocos(tmp_path)
    config.write_text(text.replace("num_layers: 2", "num_layers: 3"))
    with pytest.raises(XDistillError, match="do not fit"):
        load_vocos(tmp_path)
    config.write_text("a: [")
    with pytest.raises(XDistillError, match=r"no config.yaml of a mel Vocos"):
        load_vocos(tmp_path)
    config.write_text(text)
    weights.write_bytes(b"{}")
    with pytest.raises(XDistillError, match="no file of plain weights"):
        load_vocos(tmp_path)
    weights.unlink()
    torch.save({"backbone.x": Path("code")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(XDistillError, match="no file of plain weights"):
        load_vocos(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello",
        b"text",
        b"Not found\n",
        b"version https://git-lfs.github.com/spec/v1\n",
        b"{}",
        b"ca",
        b"X",
        b"\xff",
    ],
)
def test_any_other_file_is_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "w.pt").write_bytes(content)
    with pytest.raises(XDistillError, match=r"w\.pt is no file of plain weights \(\w+\): fetch it again$"):
        read_weights(tmp_path / "w.pt")


def test_cut_and_altered_weights_are_refused(tmp_path: Path) -> None:
    """Torch's old files, at whose pickles it looks byte by byte."""
    file = tmp_path / "w.pt"
    torch.save({"a": torch.ones(3)}, file, _use_new_zipfile_serialization=False)
    whole, refused = file.read_bytes(), 0
    damaged = [whole[:n] for n in range(0, len(whole), 7)]
    damaged += [whole[:n] + b"h" + whole[n + 1 :] for n in range(0, len(whole), 7)]
    for content in damaged:
        file.write_bytes(content)
        try:
            read_weights(file)
        except XDistillError:
            refused += 1
    assert refused > len(damaged) / 2


def test_the_shipped_vocoder_is_for_the_shipped_voice() -> None:
    """Its mels are not the nearest (Griffin-Lim fits magnitudes alone), but near; other voices keep Griffin-Lim."""
    shipped, own, other = SpeechDomain({}), SpeechDomain({}), SpeechDomain({})
    own.data_path, other.teacher_weights = "recordings", "F5TTS_v1_Base/model.safetensors"
    other.network_config = F5Config.preset("F5TTS_v1_Base")
    assert [d.vocoder for d in (shipped, own, other)] == ["mini", "griffin_lim", "griffin_lim"]
    assert SpeechDomain({"vocoder": "griffin_lim"}).vocoder == "griffin_lim"
    clip = next(c for c in corpus.clips("heldout") if 2 < c.seconds < 4)
    spec = MelSpec("vocos")
    wanted = mel(torch.from_numpy(resample(clip.audio(), corpus.RATE, spec.sample_rate)), spec)
    wave = load_vocoder("mini", spec)(wanted)
    assert len(wave) == spec.samples(wanted.shape[1])
    assert (mel(wave, spec) - wanted).square().mean().sqrt() < 0.55
