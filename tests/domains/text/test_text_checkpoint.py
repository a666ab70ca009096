"""The four published checkpoint forms, built from a recorded network, and files that must be refused."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from torch import Tensor

from xdistill.domains.text import tokenizers
from xdistill.domains.text.build import build
from xdistill.domains.text.checkpoint import check_tokenizer, load_discriminator, load_text_model, save_text_model
from xdistill.domains.text.discriminator import TokenDiscriminator
from xdistill.domains.text.network import SIZES, TextConfig, TextDiT
from xdistill.domains.text.stored import Stored
from xdistill.errors import UsageError, XDistillError
from xdistill.models import NoCond
from xdistill.state import Tokens

FIXTURES = Path(__file__).parents[2] / "fixtures" / "text"
TINY = FIXTURES / "tiny_a"
CONFIG = json.loads((TINY / "config.json").read_text())
WEIGHTS = load_file(TINY / "model.safetensors")
MODELS = load_file(TINY / "didi_models.safetensors")
ORDER = CONFIG["parameter_order"]


class Hostile:
    """Unpickling this calls `Path.touch(marker)`."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


def under(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + k: v for k, v in state.items()}


def part(prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in MODELS.items() if k.startswith(prefix)}


def lightning(path: Path, state: dict[str, Tensor], **extra: Any) -> Path:
    config = OmegaConf.create(
        {"model": {"n_heads": 4, "hidden_size": 64, "dropout": 0.2}, "time_conditioning": True, "dir": "${cwd:}"}
    )
    torch.save({"state_dict": state, "global_step": 7, "hyper_parameters": {"config": config}, **extra}, path)
    return path


def mdlm(path: Path, prefix: str = "backbone.", **extra: Any) -> Path:
    shadow = [WEIGHTS[name] + 1 for name in ORDER]
    return lightning(
        path, under(prefix, WEIGHTS), ema={"decay": 0.9999, "num_updates": 3, "shadow_params": shadow}, **extra
    )


def discriminator_state() -> dict[str, Tensor]:
    body = {k: v for k, v in WEIGHTS.items() if not k.startswith("output_layer.")}
    return {**body, **part("discriminator.")}


def refusal(call: Any, *args: Any, **options: Any) -> str:
    with pytest.raises(XDistillError) as caught:
        call(*args, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def same(model: Any, expected: dict[str, Tensor], shift: float = 0.0) -> bool:
    state = model.net.state_dict()
    names = set(state) - {"rotary_emb.inv_freq"}
    return names == set(ORDER) and all(torch.equal(state[k], expected[k] + shift) for k in names)


@pytest.mark.parametrize(
    "prefix", ["backbone.", "backbone.backbone.", "_orig_mod.backbone.", "backbone._orig_mod.", ""]
)
def test_lightning_and_sdtt_files(tmp_path: Path, prefix: str) -> None:
    path = mdlm(tmp_path / "mdlm.ckpt", prefix)
    averaged, raw = load_text_model(path), load_text_model(path, ema=False)
    assert same(averaged, WEIGHTS, 1.0)
    assert same(raw, WEIGHTS)
    assert averaged.timed
    assert not load_text_model(path, timed=False).timed
    assert averaged.net.config == TextConfig(97, 64, 2, 4, 32, 0.2)
    assert averaged.process.mask_id == 96
    assert load_text_model(path, mask_id=3).process.mask_id == 3
    assert not averaged.training


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("inv_freq", [True, False])
def test_hub_folder(tmp_path: Path, file: str, inv_freq: bool) -> None:
    state = under("backbone.", {k: v for k, v in WEIGHTS.items() if inv_freq or not k.startswith("rotary")})
    save_file(state, tmp_path / file) if file.endswith("tensors") else torch.save(state, tmp_path / file)
    hub = {"vocab_size": 97, "model_length": 16, "hidden_dim": 64, "n_heads": 4, "time_conditioning": False}
    (tmp_path / "config.json").write_text(json.dumps({**hub, "auto_map": {"AutoModelForMaskedLM": "x.y"}}))
    for path in (tmp_path, tmp_path / file):
        model = load_text_model(path)
        assert same(model, WEIGHTS)
        assert not model.timed
    torch.testing.assert_close(model.net.rotary_emb.inv_freq, WEIGHTS["rotary_emb.inv_freq"])
    (tmp_path / "config.json").write_text(json.dumps({**hub, "vocab_size": 98}))
    assert "vocab_size=98" in refusal(load_text_model, tmp_path)
    (tmp_path / "config.json").write_text("{")
    assert "JSON" in refusal(load_text_model, tmp_path)


def test_didi_lightning_file(tmp_path: Path) -> None:
    student, teacher = part("student_ema."), part("teacher.")
    state = under("backbone.", teacher) | under("student_ema.", student)
    state |= under("discriminator.", discriminator_state()) | {"reward_baseline": torch.zeros(())}
    path = lightning(tmp_path / "didi.ckpt", state)
    assert same(load_text_model(path), student)
    assert same(load_text_model(path, ema=False), teacher)
    alone = load_discriminator(path)
    borrowing = load_discriminator(path, load_text_model(TINY), trainable=1)
    check_discriminators(alone, borrowing)


def test_didi_hub_folder(tmp_path: Path) -> None:
    save_file(part("student_ema."), tmp_path / "model.safetensors")
    save_file(discriminator_state(), tmp_path / "discriminator.safetensors")
    assert same(load_text_model(tmp_path), part("student_ema."))
    check_discriminators(load_discriminator(tmp_path), load_discriminator(tmp_path, load_text_model(TINY)))


def check_discriminators(*found: TokenDiscriminator) -> None:
    io = load_file(TINY / "didi_io.safetensors")
    z = Tokens(io["disc.x"], torch.ones_like(io["disc.x"], dtype=torch.bool))
    t = (1 - (-io["disc.sigma"].double()).exp()) / (1 - 1e-3)
    for discriminator in found:
        assert not discriminator.training
        torch.testing.assert_close(discriminator(z, t, NoCond()), io["disc.logits"][..., 0], rtol=1e-4, atol=1e-5)


def test_role_file_of_a_discriminator_needs_its_teacher(tmp_path: Path) -> None:
    teacher = load_text_model(TINY)
    fresh = TokenDiscriminator(teacher, trainable=2)
    save_file(fresh.state_dict(), tmp_path / "discriminator.safetensors")
    loaded = load_discriminator(tmp_path, teacher)
    assert loaded.first == 0
    assert all(torch.equal(v, fresh.state_dict()[k]) for k, v in loaded.state_dict().items())
    assert "give its teacher" in refusal(load_discriminator, tmp_path)


def test_discriminator_of_another_teacher_is_refused(tmp_path: Path) -> None:
    state = discriminator_state()
    save_file({**state, "blocks.0.norm1.weight": state["blocks.0.norm1.weight"] + 1}, tmp_path / "d.safetensors")
    teacher = load_text_model(TINY)
    assert load_discriminator(tmp_path / "d.safetensors", teacher).first == 0  # that block can only be its own
    assert "not the teacher's" in refusal(load_discriminator, tmp_path / "d.safetensors", teacher, trainable=1)
    assert "no discriminator" in refusal(load_discriminator, TINY / "model.safetensors", teacher)


@pytest.mark.parametrize("size", ["small", "medium"])
def test_official_names_and_shapes_on_meta(size: str) -> None:
    official = json.loads((FIXTURES / "official_keys.json").read_text())[size]
    state = {name: torch.empty(shape, device="meta") for name, shape in official["state_dict"]}
    model = build(state, Stored(Path(size), state))
    assert [n for n, _ in model.net.named_parameters()] == official["ema_order"]
    assert sum(p.numel() for p in model.parameters()) == official["n_params"]
    assert model.net.config.heads == official["n_heads"]
    assert model.process.mask_id == official["mask_index"]
    head = [[k, list(v.shape)] for k, v in TokenDiscriminator(model).state_dict().items() if k.startswith("output")]
    assert head == official["discriminator_head"]
    del state["rotary_emb.inv_freq"]
    assert build(state, Stored(Path(size), state)).net.config.heads == official["n_heads"]


def test_heads_of_an_unknown_size_must_be_given(tmp_path: Path) -> None:
    state = {k: v for k, v in WEIGHTS.items() if not k.startswith("rotary")}
    save_file(state, tmp_path / "m.safetensors")
    assert "heads=N" in refusal(load_text_model, tmp_path / "m.safetensors")
    assert load_text_model(tmp_path / "m.safetensors", heads=4).net.config.heads == 4
    assert "inv_freq" in refusal(load_text_model, TINY, heads=2)
    assert 64 not in [s["hidden"] for s in SIZES.values()]


def test_own_file(tmp_path: Path) -> None:
    model = load_text_model(FIXTURES / "tiny_b")
    path = save_text_model(model, tmp_path / "deep" / "net")
    loaded = load_text_model(path)
    assert (loaded.net.config, loaded.timed, loaded.process) == (model.net.config, True, model.process)
    assert loaded.process.mask_id == 5
    assert all(torch.equal(v, model.net.state_dict()[k]) for k, v in loaded.net.state_dict().items())
    assert [p.name for p in path.parent.iterdir()] == ["net.safetensors"]


def test_what_does_not_fit_is_one_line(tmp_path: Path) -> None:
    def stored(name: str, **changes: Tensor | None) -> Path:
        state = {**under("backbone.", WEIGHTS), **changes}
        return lightning(tmp_path / name, {k: v for k, v in state.items() if v is not None})

    bias = "backbone.output_layer.linear.bias"
    assert "missing output_layer.linear.bias" in refusal(load_text_model, stored("a.ckpt", **{bias: None}))
    assert "(96,), expected (97,)" in refusal(load_text_model, stored("b.ckpt", **{bias: torch.ones(96)}))
    extra = {"backbone.blocks.0.extra": torch.ones(1)}
    assert "unexpected blocks.0.extra" in refusal(load_text_model, stored("c.ckpt", **extra))
    assert "unexpected model.x" in refusal(load_text_model, stored("d.ckpt", **{"model.x": torch.ones(1)}))
    assert "no text network" in refusal(load_text_model, lightning(tmp_path / "e.ckpt", {"w": torch.ones(1)}))
    assert "mask_id=97" in refusal(
        load_text_model, lightning(tmp_path / "g.ckpt", under("backbone.", WEIGHTS)), mask_id=97
    )
    assert "says that its mask is id 96" in refusal(load_text_model, TINY, mask_id=5)
    half = mdlm(tmp_path / "f.ckpt")
    content = torch.load(half, weights_only=False)
    broken: list[Any] = [[], content["ema"]["shadow_params"][:-1], {"a": 1}]
    for shadow in broken:
        torch.save({**content, "ema": {"shadow_params": shadow}}, half)
        assert "ema=False" in refusal(load_text_model, half)
        assert same(load_text_model(half, ema=False), WEIGHTS)


def test_damaged_and_foreign_files(tmp_path: Path) -> None:
    assert "does not exist" in refusal(load_text_model, tmp_path / "none.ckpt")
    assert "does not exist" in refusal(load_text_model, tmp_path / "none.safetensors")
    assert "model.safetensors" in refusal(load_text_model, tmp_path)
    for source in (TINY / "model.safetensors", mdlm(tmp_path / "whole.ckpt")):
        cut = tmp_path / f"cut{source.suffix}"
        cut.write_bytes(source.read_bytes()[:5000])
        assert "copy it again" in refusal(load_text_model, cut)
    torch.save([1, 2], tmp_path / "list.ckpt")
    assert "no checkpoint" in refusal(load_text_model, tmp_path / "list.ckpt")
    torch.save({"state_dict": {"w": 3}}, tmp_path / "numbers.ckpt")
    assert "no checkpoint" in refusal(load_text_model, tmp_path / "numbers.ckpt")


def test_hostile_pickle_is_refused_and_not_executed(tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    path = mdlm(tmp_path / "evil.ckpt", callbacks=Hostile(marker))
    assert "refused" in refusal(load_text_model, path)
    (tmp_path / "bare.ckpt").write_bytes(pickle.dumps(Hostile(marker)))
    assert "zip archive" in refusal(load_text_model, tmp_path / "bare.ckpt")
    assert not marker.exists()
    torch.load(path, weights_only=False)  # the attack works on a careless reader
    assert marker.exists()


def test_pickled_tokenizer_of_the_official_file_is_ignored(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    text = tokenizers.train_bpe(["a small text"], 300)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=text.fast)
    path = mdlm(tmp_path / "mdlm.ckpt", tokenizer=fast, callbacks={"where": Path("/x")})
    assert same(load_text_model(path), WEIGHTS, 1.0)


def test_vocabulary_must_be_the_tokenizers() -> None:
    bpe = tokenizers.train_bpe(["a small text"], 300)
    check_tokenizer(bpe.vocabulary, bpe, bpe.mask_id)
    assert "50258 ids" in refusal(check_tokenizer, 50258, bpe)
    assert "mask is id 5" in refusal(check_tokenizer, bpe.vocabulary, bpe, 5)


def test_heads_that_do_not_divide_are_usage_errors(tmp_path: Path) -> None:
    save_file({k: v for k, v in WEIGHTS.items() if not k.startswith("rotary")}, tmp_path / "m.safetensors")
    with pytest.raises(UsageError, match="heads=5"):
        load_text_model(tmp_path / "m.safetensors", heads=5)


def test_training_starts_from_a_loaded_network() -> None:
    model = load_text_model(TINY)
    assert isinstance(model.net, TextDiT)
    assert all(p.requires_grad and p.is_leaf for p in model.parameters())
