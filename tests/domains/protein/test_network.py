"""The Proteina network: recorded parity, invariances, every switch of the family, fast paths against slow ones."""

import copy
import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from xdistill.domains.protein.network import Proteina, ProteinaConfig, straightforward
from xdistill.domains.protein.network.features import (
    Inputs,
    PairFactory,
    distance_bins,
    equidistant_bins,
    separation_bins,
)
from xdistill.domains.protein.parity import replay_denoisers
from xdistill.errors import XDistillError

FIXTURES = Path(__file__).parents[2] / "fixtures" / "protein"
BASE = {
    "token_dim": 32,
    "nlayers": 4,
    "nheads": 4,
    "pair_repr_dim": 16,
    "dim_cond": 24,
    "t_emb_dim": 16,
    "idx_emb_dim": 8,
    "fold_emb_dim": 4,
    "feats_init_seq": ["res_seq_pdb_idx", "chain_break_per_res", "x_sc"],
    "feats_cond_seq": ["time_emb", "fold_emb"],
    "feats_pair_repr": ["rel_seq_sep", "x_sc_pair_dists", "xt_pair_dists"],
    "feats_pair_cond": ["time_emb"],
    "num_registers": 3,
}
SIMPLE = {
    "feats_init_seq": ["res_seq_pdb_idx"],
    "feats_pair_repr": ["rel_seq_sep", "xt_pair_dists"],
    "feats_pair_cond": [],
}
TRIANGLES = {"update_pair_repr": True, "use_tri_mult": True}
VECTORS = {**SIMPLE, "feats_init_seq": ["res_seq_pdb_idx"], "vector_channels": 2, "refine_after": 2}
CLASSES = (5, 4, 3)


def make(**changes) -> Proteina:
    """A network whose every parameter is random, so that no branch is switched off by its initial value."""
    torch.manual_seed(0)
    net = Proteina(ProteinaConfig.from_dict({**BASE, **changes}), CLASSES).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=generator))
    return net


def batch(lengths: list[int], n: int, seed: int = 2) -> dict[str, Tensor]:
    """Inputs with every optional entry; sample i depends on (seed, i) only, padding is zero."""
    rows = []
    for i, length in enumerate(lengths):
        g = torch.Generator().manual_seed(100 * seed + i)
        row = {
            "x_t": torch.randn(length, 3, generator=g),
            "x_sc": torch.randn(length, 3, generator=g),
            "residue_pdb_idx": torch.randint(1, 3, (length,), generator=g).cumsum(0),
            "chain_breaks": torch.rand(length, generator=g).gt(0.9).float(),
            "mask": torch.ones(length, dtype=torch.bool),
        }
        fill = {"residue_pdb_idx": -1}
        row = {k: F.pad(v, (0, 0) * (v.ndim - 1) + (0, n - length), value=fill.get(k, 0)) for k, v in row.items()}
        row["t"] = torch.rand((), generator=g)
        row["labels"] = torch.stack([torch.randint(k + 1, (), generator=g) for k in CLASSES])
        rows.append(row)
    return {k: torch.stack([row[k] for row in rows]) for k in rows[0]}


def gradients(net: Proteina, inputs: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    net.zero_grad()
    out = net(**inputs)["coors_pred"]
    out.square().sum().backward()
    return out.detach(), {k: p.grad.clone() for k, p in net.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("result", replay_denoisers(FIXTURES), ids=lambda r: r.name)
def test_recorded_calls(result):
    assert result.ok, f"{result.name}: error {result.max_error:.2e}, tolerance {result.tolerance:.0e}"


@pytest.mark.parametrize("changes", [{}, SIMPLE, TRIANGLES, VECTORS], ids=["plain", "simple", "triangles", "vectors"])
def test_padding_does_not_matter(changes):
    net, lengths = make(**changes), [20, 13]
    short, long = batch(lengths, 20), batch(lengths, 33)
    long["x_t"][~long["mask"]] = float("nan")
    long["x_sc"][~long["mask"]] = 1e4
    with torch.no_grad():
        a, b = net(**short), net(**long)
    assert (b["coors_pred"][~long["mask"]] == 0).all()
    torch.testing.assert_close(b["coors_pred"][:, :20], a["coors_pred"], atol=1e-5, rtol=1e-5)
    if changes is TRIANGLES:
        torch.testing.assert_close(b["pair_pred"][:, :20, :20], a["pair_pred"], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("changes", [{}, SIMPLE, TRIANGLES, VECTORS], ids=["plain", "simple", "triangles", "vectors"])
def test_batch_composition_does_not_matter(changes):
    net = make(**changes)
    inputs = batch([20, 13, 17], 20)
    with torch.no_grad():
        together = net(**inputs)["coors_pred"]
        alone = torch.cat([net(**{k: v[i : i + 1] for k, v in inputs.items()})["coors_pred"] for i in range(3)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_empty_sample_gives_zeros():
    net = make(num_registers=0)
    inputs = batch([6, 0], 6)
    out = net(**inputs)["coors_pred"]
    assert out.isfinite().all()
    assert (out[1] == 0).all()
    out.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())


def test_feature_order_only_permutes_columns():
    """Reordering the features of a factory and the columns of its Linear alike leaves the network unchanged."""
    net, inputs = make(), batch([12, 9], 12)
    expected = net(**inputs)["coors_pred"]
    orders = {
        "feats_init_seq": ("init_repr_factory", (2, 0, 1), [8, 1, 3]),
        "feats_cond_seq": ("cond_factory", (1, 0), [16, 12]),
        "feats_pair_repr": ("pair_repr_builder.init_repr_factory", (2, 0, 1), [127, 128, 64]),
    }
    for field, (module, order, widths) in orders.items():
        state = dict(net.state_dict())
        columns = state[f"{module}.linear_out.weight"].split(widths, dim=1)
        state[f"{module}.linear_out.weight"] = torch.cat([columns[i] for i in order], dim=1)
        if field == "feats_cond_seq":
            state = {k.replace("feat_creators.1", "feat_creators.0"): v for k, v in state.items()}
        other = Proteina(ProteinaConfig.from_dict({**BASE, field: [BASE[field][i] for i in order]}), CLASSES)
        other.load_state_dict(state)
        torch.testing.assert_close(other(**inputs)["coors_pred"], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("update", "triangles", "every", "buckets"),
    [(False, True, 2, 16), *itertools.product([True], [False, True], [1, 2, 3], [None, 16])],
)
def test_pair_updates(update, triangles, every, buckets):
    net = make(
        update_pair_repr=update,
        use_tri_mult=triangles,
        update_pair_repr_every_n=every,
        num_buckets_predict_pair=buckets,
    )
    slots = {k.split(".")[1] for k in net.state_dict() if k.startswith("pair_update_layers")}
    assert slots == ({str(i) for i in range(0, 3, every)} if update else set())
    out = net(**batch([7, 5], 7))
    assert ("pair_pred" in out) == (update and buckets is not None)
    sum(v.square().sum() for v in out.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize(
    "changes",
    [
        {"num_registers": 0},
        {"use_qkln": False},
        {"parallel_mha_transition": True},
        {"parallel_mha_transition": True, "residual_mha": False},
        {"residual_mha": False},
        {"residual_transition": False},
        {"feats_pair_cond": []},
        {"feats_pair_cond": ["xt_pair_dists", "time_emb"]},
        {"feats_pair_repr": ["time_emb", "xt_pair_dists"]},
        {"feats_init_seq": []},
        {"feats_init_seq": ["fold_emb", "time_emb"]},
        {"feats_cond_seq": ["res_seq_pdb_idx", "time_emb"]},
        {"feats_cond_seq": []},
        {"use_attn_pair_bias": False},
        {"vector_channels": 2},
        VECTORS,
        {"vector_channels": 2, "use_attn_pair_bias": False},
    ],
    ids=str,
)
def test_every_switch_trains_and_changes_the_output(changes):
    net, inputs = make(**changes), batch([7, 5], 7)
    out, grads = gradients(net, inputs)
    assert out.isfinite().all()
    assert all(g.isfinite().all() for g in grads.values())
    reference = make()
    for name, p in net.named_parameters():
        mine = dict(reference.named_parameters()).get(name)
        if mine is not None and mine.shape == p.shape:
            p.data.copy_(mine.data)
    assert not torch.allclose(net(**inputs)["coors_pred"], reference(**inputs)["coors_pred"], atol=1e-4)


def test_parallel_form_adds_the_input_once():
    both, one = make(parallel_mha_transition=True), make(parallel_mha_transition=True, residual_transition=False)
    inputs = batch([7, 5], 7)
    assert torch.equal(both(**inputs)["coors_pred"], one(**inputs)["coors_pred"])


def test_pair_features_are_one_hot_columns():
    """The gathers equal the definition: concatenated one-hot bins, Linear, LayerNorm."""
    config = ProteinaConfig.from_dict(BASE)
    factory, given = PairFactory(config.feats_pair_repr, 16, config), batch([9, 6], 9)
    inputs = Inputs(**given)
    one_hot = [
        F.one_hot(separation_bins(given["residue_pdb_idx"], 127), 127),
        F.one_hot(distance_bins(given["x_sc"], 0.1, 3, 128), 128),
        F.one_hot(distance_bins(given["x_t"], 0.1, 3, 64), 64),
    ]
    expected = factory.ln_out(factory.linear_out(torch.cat(one_hot, dim=-1).float()))
    torch.testing.assert_close(factory(inputs), expected)


def test_bins_are_half_open_and_signed():
    x = torch.tensor([[[0.0, 0, 0], [0.1, 0, 0], [0.1 + 1e-6, 0, 0], [5.0, 0, 0]]])
    assert distance_bins(x, 0.1, 3.0, 64)[0, 0].tolist() == [0, 0, 1, 63]
    index = torch.tensor([[1, 2, 4, 300]])
    assert separation_bins(index, 127)[0].tolist()[2] == [66, 65, 63, 0]
    assert separation_bins(index, 127)[0, 3, 0] == 126


@pytest.mark.parametrize("with_x_sc", [False, True])
def test_table_of_biases_equals_the_pairwise_form(with_x_sc, monkeypatch):
    sizes = {"seq_sep_dim": 9, "xt_pair_dist_dim": 7, "x_sc_pair_dist_dim": 5}
    net = make(**{**SIMPLE, "feats_pair_repr": BASE["feats_pair_repr"]}, **sizes)
    inputs = batch([20, 13], 20)
    if not with_x_sc:
        inputs.pop("x_sc")
    used = []
    original = PairFactory.rows
    monkeypatch.setattr(PairFactory, "rows", lambda *a, **k: used.append(original(*a, **k)) or used[-1])
    out, grads = gradients(net, inputs)
    assert len(used[0]) == 63 * (5 if with_x_sc else 1)
    with straightforward(net):
        slow, slow_grads = gradients(net, inputs)
    assert len(used) == 1
    torch.testing.assert_close(out, slow, atol=1e-5, rtol=1e-5)
    assert grads.keys() == slow_grads.keys()
    for name in grads:
        torch.testing.assert_close(grads[name], slow_grads[name], atol=1e-3, rtol=1e-3, msg=name)


@pytest.mark.parametrize("changes", [SIMPLE, TRIANGLES, VECTORS], ids=["simple", "triangles", "vectors"])
def test_activation_checkpointing_changes_nothing(changes):
    net, inputs = make(**changes), batch([12, 9], 12)
    out, grads = gradients(net, inputs)
    net.activation_checkpointing = True
    again, grads_again = gradients(net, inputs)
    assert torch.equal(out, again)
    assert all(torch.equal(grads[k], grads_again[k]) for k in grads)


@pytest.mark.parametrize("changes", [SIMPLE, TRIANGLES, VECTORS], ids=["simple", "triangles", "vectors"])
def test_bfloat16_autocast_stays_close(changes):
    net, inputs = make(**changes), batch([12, 9], 12)
    exact = net(**inputs)["coors_pred"]
    with torch.autocast("cpu", torch.bfloat16):
        out, grads = gradients(net, inputs)
    assert out.dtype == torch.float32
    assert (out - exact).norm() < 0.05 * exact.norm()
    assert all(g.isfinite().all() and g.dtype == torch.float32 for g in grads.values())


def test_whole_network_in_bfloat16():
    net, inputs = make(**TRIANGLES), batch([12, 9], 12)
    exact = net(**inputs)["coors_pred"]
    out = net.bfloat16()(**inputs)["coors_pred"]
    assert (out - exact).norm() < 0.1 * exact.norm()


def test_no_label_equals_null_rows():
    net, inputs = make(), batch([7, 5], 7)
    inputs["labels"] = torch.tensor(CLASSES).expand(2, 3)
    null = net(**inputs)["coors_pred"]
    inputs["labels"] = None
    torch.testing.assert_close(net(**inputs)["coors_pred"], null)


def released(token: int, layers: int, heads: int, pair: int, every: int | None, triangles: bool) -> ProteinaConfig:
    sizes = {"token_dim": token, "nlayers": layers, "nheads": heads, "pair_repr_dim": pair, "num_registers": 10}
    widths = {"dim_cond": 512, "t_emb_dim": 256, "idx_emb_dim": 128, "fold_emb_dim": 256}
    update = {"update_pair_repr": every is not None, "update_pair_repr_every_n": every or 2, "use_tri_mult": triangles}
    return ProteinaConfig.from_dict({**BASE, **sizes, **widths, **update})


@pytest.mark.parametrize(
    ("shape", "millions"),
    [
        ((768, 15, 12, 512, 3, True), 208.0),
        ((768, 15, 12, 512, None, False), 191.1),
        ((512, 10, 8, 256, None, False), 65.0),
        ((1024, 18, 16, 512, 5, True), 397.6),
        ((512, 10, 8, 256, 2, True), 70.8),
    ],
    ids=["200M_tri", "200M_notri", "60M_notri", "400M_tri", "60M_tri"],
)
def test_released_sizes(shape, millions):
    with torch.device("meta"):
        net = Proteina(released(*shape), (5, 43, 1336))
    # The table is rounded to 0.1; with the widths common to all, the 400M network counts 397.545.
    assert sum(p.numel() for p in net.parameters()) / 1e6 == pytest.approx(millions, abs=0.06)


def test_config_round_trip_and_errors():
    config = ProteinaConfig.from_dict(BASE)
    assert ProteinaConfig.from_dict(config.to_dict()) == config
    with pytest.raises(XDistillError, match=r"unknown key 'nlayer' .*'nlayers'\?\); missing key 'nlayers'"):
        ProteinaConfig.from_dict({"nlayer" if k == "nlayers" else k: v for k, v in BASE.items()})
    for changes, message in [
        ({"feats_init_seq": ["index"]}, "feats_init_seq: unknown feature 'index'"),
        ({"nheads": 5}, "not a multiple"),
        ({"seq_sep_dim": 64}, "must be odd"),
        ({"t_emb_dim": 15}, "must be even"),
        ({"multilabel_mode": "average"}, "not supported"),
        ({"refine_after": 2}, "needs vector_channels"),
        ({"refine_after": 4, "vector_channels": 2}, "a layer below 4"),
        ({"vector_channels": 2, **TRIANGLES}, "cannot be combined"),
    ]:
        with pytest.raises(XDistillError, match=message):
            ProteinaConfig.from_dict({**BASE, **changes})


@pytest.mark.parametrize("changes", [SIMPLE, TRIANGLES, VECTORS], ids=["simple", "triangles", "vectors"])
def test_forward_mode_derivative_agrees_with_reverse_mode(changes):
    """`<u, J v> = <J^T u, v>` for the Jacobian with respect to (x_t, t), as mean-flow objectives need it."""
    net, inputs = make(**changes), batch([7, 5], 7)
    x, t, rest = inputs.pop("x_t"), inputs.pop("t"), inputs
    generator = torch.Generator().manual_seed(3)
    v_x, u = (torch.randn(x.shape, generator=generator) for _ in range(2))
    v_t = torch.randn(t.shape, generator=generator) / 1000

    def call(x: Tensor, t: Tensor) -> Tensor:
        return net(x, t, **rest)["coors_pred"]

    _, forward = torch.func.jvp(call, (x, t), (v_x, v_t))
    _, pullback = torch.func.vjp(call, x, t)
    g_x, g_t = pullback(u)
    torch.testing.assert_close((u * forward).sum(), (g_x * v_x).sum() + (g_t * v_t).sum(), atol=1e-4, rtol=1e-3)


def rotation(seed: int = 4) -> Tensor:
    q = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(seed)))[0]
    return q * torch.linalg.det(q)


def test_vector_channels_turn_with_the_chain_and_know_its_hand():
    net, inputs = make(**VECTORS).double(), batch([20, 13], 20)
    given, turn = inputs.pop("x_t"), rotation()
    with torch.no_grad():
        out, turned, mirrored = (net(x, **inputs)["coors_pred"] for x in (given, given @ turn, -given))
    scale = out.abs().max()
    torch.testing.assert_close(turned / scale, out @ turn / scale, atol=1e-5, rtol=0)
    assert (mirrored + out).abs().max() > 0.01 * scale


def test_refined_distances_are_those_of_the_estimate(monkeypatch):
    """Layers from `refine_after` on read the distances of x_t + (1 - t) v, by the table and by the pairwise form."""
    net, inputs = make(**VECTORS, seq_sep_dim=9, xt_pair_dist_dim=7), batch([20, 13], 20)
    seen, original = [], PairFactory._bins
    monkeypatch.setattr(
        PairFactory,
        "_bins",
        lambda s, name, i: (seen.append(i.x_t) if "dists" in name else None, original(s, name, i))[1],
    )
    fast = net(**inputs)["coors_pred"]
    assert len(seen) == 2
    torch.testing.assert_close(seen[0], inputs["x_t"])
    assert (seen[1] - seen[0]).abs().max() > 0.1
    with straightforward(net):
        torch.testing.assert_close(fast, net(**inputs)["coors_pred"], atol=1e-4, rtol=1e-4)


def test_number_of_steps_conditions_the_student():
    net, inputs = make(step_conditioning=True), batch([7, 5], 7)
    told = {k: torch.tensor([k, k]) for k in (1.0, 8.0)}
    assert (
        net(**inputs, steps=told[1.0])["coors_pred"] - net(**inputs, steps=told[8.0])["coors_pred"]
    ).abs().max() > 1e-3
    fresh = Proteina(ProteinaConfig.from_dict({**BASE, "step_conditioning": True}), CLASSES)
    assert torch.equal(fresh(**inputs, steps=told[8.0])["coors_pred"], fresh(**inputs)["coors_pred"])


@pytest.mark.parametrize(("low", "high", "bins"), [(0.1, 3.3, 128), (-62.5, 62.5, 127), (0.0, 1.0, 3), (0.0, 1.0, 2)])
def test_equidistant_bins_are_those_of_bucketize(low, high, bins):
    edges, generator = torch.linspace(low, high, bins - 1), torch.Generator().manual_seed(0)
    between = low + (high - low) * (1.4 * torch.rand(20_000, generator=generator) - 0.2)
    beside = [edges, torch.nextafter(edges, edges + 1), torch.nextafter(edges, edges - 1)]
    values = torch.cat([between, *beside, torch.tensor([torch.inf, -torch.inf, torch.nan, 1e30])])
    assert torch.equal(equidistant_bins(values, low, high, bins), torch.bucketize(values, edges))


def _optimizer_step(net: Proteina) -> None:
    weights = [net.pair_repr_builder.init_repr_factory.ln_out.bias, net.transformer_layers[0].mhba.mha.to_bias.weight]
    for w in weights:
        w.grad = torch.ones_like(w)
    torch.optim.SGD(weights, lr=0.3).step()


def _flat_buffer(net: Proteina) -> None:
    """As DeepSpeed does it: neither the parameter's version nor its address change."""
    weight = net.transformer_layers[3].mhba.mha.pair_norm.weight
    before = weight._version
    weight.data.add_(torch.linspace(-2, 2, len(weight)))
    assert weight._version == before


def _load(net: Proteina) -> None:
    net.load_state_dict({k: v + 0.1 if "pair" in k or "to_bias" in k else v for k, v in net.state_dict().items()})


def _round_trip(net: Proteina) -> None:
    net.to(torch.bfloat16).to(torch.float32)


@pytest.mark.parametrize("change", [_optimizer_step, _flat_buffer, _load, _round_trip])
def test_kept_tables_follow_the_weights(change):
    net, inputs = make(**VECTORS), batch([9, 6], 9)
    with torch.no_grad():
        old = net(**inputs)["coors_pred"]
        assert torch.equal(net(**inputs)["coors_pred"], old)
        assert len(net._tables._entries) == 2
        change(net)
        new = net(**inputs)["coors_pred"]
        fresh = copy.deepcopy(net)
        assert not fresh._tables._entries
        assert torch.equal(new, fresh(**inputs)["coors_pred"])
        assert (new - old).abs().max() > 1e-4


def test_a_frozen_network_reads_the_kept_tables(monkeypatch):
    """As the teacher that SiD differentiates through; one that trains makes its table at every call."""
    made, original = [], PairFactory.rows
    monkeypatch.setattr(PairFactory, "rows", lambda *a: made.append(1) or original(*a))
    net, inputs = make(**VECTORS, seq_sep_dim=9, xt_pair_dist_dim=7), batch([20, 13], 20)
    inputs["x_t"].requires_grad_()
    trained = torch.autograd.grad(net(**inputs)["coors_pred"].square().sum(), inputs["x_t"])[0]
    net(**inputs)
    assert len(made) == 4
    net.requires_grad_(False)
    for _ in range(2):
        frozen = torch.autograd.grad(net(**inputs)["coors_pred"].square().sum(), inputs["x_t"])[0]
    assert len(made) == 6
    torch.testing.assert_close(frozen, trained)
