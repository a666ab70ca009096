"""F5Net: recorded activations, padding, second time, derivatives."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from xdistill.assemble import build_networks
from xdistill.config import compose
from xdistill.domains.speech.network import F5Config, F5Net
from xdistill.errors import UsageError, XDistillError
from xdistill.sections import build_domain, build_objective

TINY = {"mel_dim": 8, "dim": 32, "depth": 2, "heads": 2, "dim_head": 16, "text_dim": 16, "vocab_size": 12}


def build(seed: int = 0, **options: object) -> F5Net:
    """A tiny network whose zero-initialised layers are drawn too, but for those of the second time."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = F5Net(F5Config.from_dict({**TINY, "conv_layers": 2, "dropout": 0.0, **options}))
        for name, p in net.named_parameters():
            if not p.any() and "interval" not in name and "guidance" not in name:
                nn.init.normal_(p, std=0.1)
    return net.eval()


def draw(batch: int = 2, frames: int = 14, seed: int = 1) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    mel = torch.randn(batch, frames, 8, generator=g)
    return {
        "z": torch.randn(batch, frames, 8, generator=g),
        "s": torch.rand(batch, generator=g),
        "mel": mel,
        "ids": torch.randint(1, 12, (batch, frames), generator=g),
        "frames": torch.rand(batch, frames, 3, generator=g),
    }


def run(net: F5Net, d: dict[str, Tensor], mask: Tensor | None = None, **options: Tensor) -> Tensor:
    text = net.embed_text(d["ids"], d["z"].shape[1] if mask is None else mask, frames=d["frames"])
    return net(d["z"], d["s"], d["mel"], text, mask, **options)


@pytest.mark.parametrize("pe_attn_head", [None, 1])
def test_padding_of_aligned_networks_never_matters(pe_attn_head: int | None) -> None:
    net, d = build(aligned=True, pe_attn_head=pe_attn_head), draw()
    mask = torch.arange(14)[None] < torch.tensor([14, 9])[:, None]
    padded = run(net, d, mask)
    single = run(net, {k: v[1:, :9] if v.ndim > 1 else v[1:] for k, v in d.items()})
    torch.testing.assert_close(padded[1:, :9], single, atol=1e-5, rtol=0)
    other = {k: torch.where(mask.view(2, 14, *[1] * (v.ndim - 2)), v, v + 3) if v.ndim > 1 else v for k, v in d.items()}
    assert torch.equal(run(net, other | {"ids": d["ids"]}, mask)[mask], padded[mask])


def test_official_networks_see_their_padding() -> None:
    net, d = build(), draw()
    mask = torch.arange(14)[None] < torch.tensor([14, 9])[:, None]
    single = run(net, {k: v[1:, :9] if v.ndim > 1 else v[1:] for k, v in d.items()})
    assert (run(net, d, mask)[1:, :9] - single).abs().max() > 1e-3


def test_key_mask_hides_padded_frames() -> None:
    d, mask = draw(), torch.arange(14)[None] < torch.tensor([14, 9])[:, None]
    far = d | {"z": torch.where(mask[..., None], d["z"], d["z"] + 5)}
    for hidden in (True, False):
        net = build(attn_mask_enabled=hidden)
        assert torch.equal(run(net, d, mask)[1, :9], run(net, far, mask)[1, :9]) is hidden


@pytest.mark.parametrize("second_time", ["added", "mixer"])
def test_second_time_has_no_effect_at_initialisation(second_time: str) -> None:
    d = draw()
    plain, student = build(), build(second_time=second_time, guidance_input=2.0)
    missing, unexpected = student.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected
    assert {name.split(".")[0] for name in missing} >= {"guidance_embed"}
    interval, scale = torch.tensor([0.3, 0.7]), torch.tensor([1.0, 4.0])
    expected = run(plain, d)
    assert torch.equal(run(student, d, interval=interval, guidance=scale), expected)
    assert torch.equal(run(student, d), expected)
    for p in student.parameters():
        nn.init.normal_(p, std=0.1)
    moved = run(student, d, interval=interval)
    assert not torch.equal(moved, run(student, d)), "a trained second time has an effect"
    assert torch.equal(run(student, d), run(student, d, interval=torch.zeros(2), guidance=torch.full((2,), 2.0)))
    assert not torch.equal(run(student, d), run(student, d, guidance=scale)), "and so has a trained scale"


def test_second_inputs_that_a_network_does_not_have() -> None:
    d = draw()
    with pytest.raises(UsageError, match="second_time"):
        run(build(), d, interval=torch.zeros(2))
    with pytest.raises(UsageError, match="told no guidance"):
        run(build(), d, guidance=torch.ones(2))
    with pytest.raises(XDistillError, match="position-in-phone"):
        build(aligned=True).embed_text(d["ids"], 14)


@pytest.mark.parametrize("options", [{}, {"aligned": True}, {"qk_norm": "rms_norm", "pe_attn_head": 1}])
def test_forward_mode_derivative(options: dict[str, object]) -> None:
    net, d = build(second_time="added", time_scale=1.0, **options).double(), draw()
    nn.init.normal_(net.interval_embed.time_mlp[2].weight, std=0.1)
    d = {k: v.double() if v.is_floating_point() else v for k, v in d.items()}
    text = net.embed_text(d["ids"], 14, frames=d["frames"]).detach()
    mask = torch.arange(14)[None] < torch.tensor([14, 9])[:, None]

    def f(z: Tensor, s: Tensor, interval: Tensor) -> Tensor:
        return net(z, s, d["mel"], text, mask, interval=interval)

    primals = (d["z"], d["s"], torch.tensor([0.2, 0.5]).double())
    tangents = (torch.ones_like(d["z"]), -torch.ones(2).double(), torch.ones(2).double())
    with torch.no_grad():
        value, slope = torch.func.jvp(f, primals, tangents)[:2]
        ahead, behind = (f(*(p + e * t for p, t in zip(primals, tangents, strict=True))) for e in (1e-5, -1e-5))
    torch.testing.assert_close(value, f(*primals))
    torch.testing.assert_close(slope, (ahead - behind) / 2e-5, atol=1e-7, rtol=1e-6)
    with_graph = torch.func.jvp(f, primals, tangents)[1]
    torch.testing.assert_close(with_graph, slope)
    with_graph.square().sum().backward()
    assert net.proj_out.weight.grad is not None


@pytest.mark.parametrize("options", [{}, {"aligned": True, "second_time": "mixer", "guidance_input": 2.0}])
def test_bf16_autocast_trains(options: dict[str, object]) -> None:
    net, d = build(**options).train(), draw()
    with torch.autocast("cpu", torch.bfloat16):
        out = run(net, d)
    torch.testing.assert_close(out.float(), run(net, d), atol=0.1, rtol=0.1)
    out.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_whole_network_in_bf16_keeps_the_time() -> None:
    net = build().to(torch.bfloat16)
    a, b = (net.condition(torch.tensor([s])) for s in (0.5, 0.5005))
    assert (a - b).abs().max() > 1e-2, "half a millisecond of time is seen"


def test_dropped_text_by_sample() -> None:
    net, d = build(), draw()
    mixed = net.embed_text(d["ids"], 14, torch.tensor([True, False]))
    assert torch.equal(mixed[0], net.embed_text(d["ids"], 14, True)[0])
    assert torch.equal(mixed[1], net.embed_text(d["ids"], 14)[1])


def test_checkpointed_activations_have_the_same_gradient() -> None:
    grads = []
    for checkpointing in (False, True):
        net = build(long_skip=True)
        net.activation_checkpointing = checkpointing
        run(net, draw()).square().sum().backward()
        grads.append(torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None]))
    assert torch.equal(*grads)


def test_kept_rotary_tables() -> None:
    net, d = build(), draw()
    assert torch.equal(run(net, d, rotary=net.rotary(14)), run(net, d))  # type: ignore[arg-type]


def test_unknown_configuration() -> None:
    with pytest.raises(UsageError, match="did you mean 'long_skip'"):
        F5Config.from_dict({"long_skp": True})
    with pytest.raises(UsageError, match="F5TTS_Base"):
        F5Config.preset("F5TTS_base")
    with pytest.raises(UsageError, match="second_time"):
        F5Config(second_time="plus")
    assert F5Config(second_time=True).second_time == "added"
    assert F5Config.from_dict(F5Config.preset("mini").to_dict()) == F5Config.preset("mini")


def test_a_network_without_teacher_recomputes_too() -> None:
    """What `strategy.activation_checkpointing` asks for holds for every objective."""
    cfg = compose(["domain=speech", "objective=flow_matching", "strategy.activation_checkpointing=true"])
    domain = build_domain(cfg)
    (student,) = build_networks(cfg, domain, build_objective(cfg, domain)).values()
    assert student.net.activation_checkpointing
