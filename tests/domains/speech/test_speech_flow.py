"""The adapter: sign and direction of time, jumps, lengths, conditions, guidance in one call."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from xdistill.domains.speech.flow import SpeechCond, SpeechFlow
from xdistill.domains.speech.network import F5Config, F5Net
from xdistill.errors import XDistillError
from xdistill.guidance import Guided
from xdistill.models import FlowMapModel, NoCond
from xdistill.state import Dense, Field, Padded

LENGTHS = [12, 9, 12]


def build(**options: object) -> SpeechFlow:
    """A tiny network with every layer drawn."""
    sizes = {"mel_dim": 8, "dim": 32, "depth": 2, "heads": 2, "dim_head": 16, "text_dim": 16, "vocab_size": 12}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = F5Net(F5Config.from_dict({**sizes, "conv_layers": 1, "dropout": 0.0, **options}))
        for name, p in net.named_parameters():
            if not p.any() or "mixer" in name:
                nn.init.normal_(p, std=0.1)
    return SpeechFlow(net).eval().requires_grad_(False)


def draw(aligned: bool = False, lengths: list[int] | None = None) -> tuple[Field, Tensor, SpeechCond]:
    g, layout = torch.Generator().manual_seed(1), Padded.from_lengths(lengths or LENGTHS)
    shape = layout.mask.shape
    x = Field(torch.randn(*shape, 8, generator=g), layout).project()
    mel = Field(torch.randn(*shape, 8, generator=g), layout).project().value
    ids = torch.randint(1, 12, shape, generator=g) * layout.mask
    frames = torch.rand(*shape, 3, generator=g) if aligned else None
    return x, torch.tensor([0.9, 0.5, 0.2]).double(), SpeechCond(ids, frames=frames, mel=mel)


def test_time_runs_the_other_way() -> None:
    flow, (x, t, cond) = build(), draw(lengths=[12, 12, 12])
    text = flow.net.embed_text(cond.ids, 12)
    native = flow.net(x.value, (1 - t).float(), cond.mel, text)
    torch.testing.assert_close(flow(x, t, cond).value, -native)


@pytest.mark.parametrize("second_time", ["added", "mixer"])
def test_jumps(second_time: str) -> None:
    flow, (x, t, cond) = build(second_time=second_time), draw(lengths=[12, 12, 12])
    assert isinstance(flow, FlowMapModel)
    assert flow.flow_map
    r = torch.tensor([0.1, 0.5, 0.0]).double()
    text = flow.net.embed_text(cond.ids, 12)
    native = flow.net(x.value, (1 - t).float(), cond.mel, text, interval=(t - r).float())
    torch.testing.assert_close(flow(x, t, cond, r=r).value, -native)
    here = flow(x, t, cond)
    torch.testing.assert_close(flow(x, t, cond, r=t).value, here.value)
    assert ((flow(x, t, cond, r=r) - here).mean_square() > 1e-6).tolist() == [True, False, True]


@pytest.mark.parametrize("aligned", [False, True])
def test_neighbours_and_padding_never_matter(aligned: bool) -> None:
    flow, (x, t, cond) = build(aligned=aligned), draw(aligned)
    together = flow(x, t, cond)
    for i, n in enumerate(LENGTHS):
        c = cond.take(slice(i, i + 1))._each(lambda v, n=n: v[:, :n])  # type: ignore[misc]
        alone = flow(Field(x.value[i : i + 1, :n], Padded.from_lengths([n])), t[i : i + 1], c)
        torch.testing.assert_close(together.value[i, :n], alone.value[0], atol=1e-5, rtol=0)
    prepared = flow.prepare(cond, x.layout)  # type: ignore[arg-type]
    torch.testing.assert_close(flow(x, t, prepared).project().value, together.project().value)
    torch.testing.assert_close(flow(x, t, prepared.drop()).project().value, flow(x, t, cond.drop()).project().value)


def test_the_reference_sees_its_padding_on_request() -> None:
    flow, (x, t, cond) = build(), draw()
    assert isinstance(x.layout, Padded)
    masked = flow(x, t, replace(cond, mask=x.layout.mask)).project()
    assert (masked - flow(x, t, cond)).project().mean_square()[1] > 1e-8


@pytest.mark.parametrize("aligned", [False, True])
def test_a_condition_tells_the_teacher_a_scale_for_each_sample(aligned: bool) -> None:
    flow, (x, t, cond) = build(aligned=aligned), draw(aligned)
    scales = torch.tensor([1.0, 2.5, 4.0])
    found = Guided(flow, 2.0)(x, t, cond.with_guidance(scales))
    for i, scale in enumerate(scales.tolist()):
        torch.testing.assert_close(found.value[i], Guided(flow, scale)(x, t, cond).value[i], atol=1e-5, rtol=1e-5)
    outside = Guided(flow, 2.0, interval=(0.9, 1.0))(x, 0 * t, cond.with_guidance(scales))
    torch.testing.assert_close(outside.value, flow(x, 0 * t, cond).value)


def test_conditions_join_and_part() -> None:
    _, _, cond = draw(aligned=True)
    both = SpeechCond.cat([cond, replace(cond.drop(), mel=None)])
    assert both.mel is not None
    assert both.dropped is not None
    assert both.dropped.tolist() == [False] * 3 + [True] * 3
    assert not both.mel[3:].any()
    again = both.take(torch.tensor([0, 1, 2]))
    assert torch.equal(again.ids, cond.ids)
    assert cond.repeat(2).ids[1].equal(cond.ids[0])
    guided = cond.with_guidance(torch.ones(3))
    with pytest.raises(XDistillError, match="'guidance'"):
        SpeechCond.cat([guided, cond])


def test_gradients_reach_the_text_of_every_length() -> None:
    flow, (x, t, cond) = build().requires_grad_(True), draw()
    flow(x, t, cond).mean_square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in flow.parameters())


def test_other_states_are_refused() -> None:
    flow, (x, t, cond) = build(), draw()
    with pytest.raises(XDistillError, match="padded mels"):
        flow(Field(x.value, Dense(3)), t, cond)
    with pytest.raises(XDistillError, match="SpeechCond"):
        flow(x, t, NoCond())
