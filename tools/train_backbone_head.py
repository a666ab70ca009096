"""Train the head that places N, C and O on CA traces, on the full backbones of the embedded chains' train split.

    python tools/train_backbone_head.py --database structure_db.dat        # or without: 371 MB through apt
    python tools/train_backbone_head.py --database structure_db.dat --fixture   # chains of the tests instead

Writes domains/protein/assets/backbone_head.safetensors and prints the held-out metrics of assets/BACKBONE.md.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from build_protein_dataset import fetch, read_database
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import normalize

from xdistill import rng
from xdistill.domains.protein.backbone import WEIGHTS, BackboneHead, assemble
from xdistill.domains.protein.backbone_head import HeadConfig, Planes
from xdistill.domains.protein.backbone_quality import report
from xdistill.domains.protein.chains import Split, load_embedded

FIXTURE = Path(__file__).parents[1] / "tests/fixtures/protein/full_backbones.npz"
FIXTURE_CHAINS = 20
N, CA, C, O = range(4)
Chains = dict[str, NDArray[np.int32]]


def full_chains(database: Path, split: Split) -> Chains:
    """Id -> N, CA, C, O [n, 4, 3] in 1/100 A of the embedded chains of one split."""
    db, wanted = read_database(database), load_embedded(split)
    place = {name: i for i, name in enumerate(db.ids)}
    spans = ((name, db.offset[place[name]], db.length[place[name]]) for name in wanted.ids)
    chains = {name: db.atoms[start : start + n].astype(np.int32) for name, start, n in spans}
    for i, (name, atoms) in enumerate(chains.items()):
        embedded = wanted.coords(i) * 1000
        if np.abs(np.diff(atoms[:, CA], axis=0) - np.diff(embedded, axis=0)).max() > 0.1:
            raise SystemExit(f"error: {name} of the database is not the embedded chain")
    return chains


def draw(chains: list[Tensor], size: int, noise: float, g: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Atoms [b, n, 4, 3] in A, mask, and noisy CA.

    Half of the chains are cut at random places, so that ends are seen often enough; half carry noise of up to `noise`
    A a coordinate, as generated traces do.
    """
    picked = [chains[i] for i in torch.randint(len(chains), (size,), generator=g).tolist()]
    for k, cut in enumerate(torch.rand(size, 3, generator=g).tolist()):
        if cut[0] < 0.5:
            n = int(len(picked[k]) * (0.4 + 0.6 * cut[1]))
            start = int(cut[2] * (len(picked[k]) - n + 1))
            picked[k] = picked[k][start : start + n]
    atoms = torch.nn.utils.rnn.pad_sequence(picked, batch_first=True)
    mask = torch.arange(atoms.shape[1]) < torch.tensor([len(c) for c in picked])[:, None]
    sigma = noise * torch.rand(size, 1, 1, generator=g) * (torch.rand(size, 1, 1, generator=g) < 0.5)
    return atoms, mask, atoms[:, :, CA] + sigma * torch.randn(atoms.shape[0], atoms.shape[1], 3, generator=g)


def losses(planes: Planes, ca: Tensor, atoms: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """plane: squared error of the side vectors, which makes them posterior means, rounds before the last at 0.3.
    ends: of the first N and the last C and O. angle: of cos(N-CA-C) as assembled, which ties planes to each other.
    """
    unit = (mask[:, 1:] & mask[:, :-1]).to(ca)
    to_o = torch.einsum("buij,buj->bui", planes.frames, atoms[:, :-1, O] - ca[:, :-1])
    truth = normalize(to_o[..., 1:], dim=-1)
    errors = [((s - truth).square().sum(-1) * unit).sum() / unit.sum() for s in planes.sides]
    row, last = torch.arange(len(ca)), mask.sum(1) - 1
    ends = torch.zeros(())
    for k, unit_of, a, b, at in ((0, last * 0, CA, N, last * 0), (1, last - 1, CA, C, last), (2, last - 1, C, O, last)):
        bond = torch.einsum("bij,bj->bi", planes.frames[row, unit_of], atoms[row, at, b] - atoms[row, at, a])
        ends = ends + (planes.ends[row, unit_of, k] - normalize(bond, dim=-1)).square().sum(-1).mean()
    inner = mask[:, 2:].to(ca)
    placed = assemble(ca, mask, planes)
    gap = (_cosine(placed) - _cosine(atoms))[:, 1:-1]
    angle = (gap.square() * inner).sum() / inner.sum()
    return {"plane": errors[-1] + 0.3 * sum(errors[:-1]) / (len(errors) - 1), "ends": ends, "angle": angle}


def _cosine(atoms: Tensor) -> Tensor:
    return torch.cosine_similarity(atoms[:, :, N] - atoms[:, :, CA], atoms[:, :, C] - atoms[:, :, CA], dim=-1)


def train(args: argparse.Namespace, chains: list[Tensor], val: Chains) -> BackboneHead:
    """AdamW with a cosine schedule; validation is printed, it decides nothing."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(args.seed)
        head = BackboneHead(HeadConfig())
    optimizer = torch.optim.AdamW(head.parameters(), args.lr, weight_decay=0.01)
    weight, began, seen = {"plane": 1.0, "ends": 0.03, "angle": 2.0}, time.perf_counter(), 0.0
    for step in range(args.steps):
        lr = args.lr * min(1.0, (step + 1) / 100) * (0.5 + 0.5 * math.cos(math.pi * step / args.steps))
        for group in optimizer.param_groups:
            group["lr"] = lr
        atoms, mask, ca = draw(chains, args.batch, args.noise, rng.generator("backbone", args.seed, step))
        terms = losses(head(ca, mask), ca, atoms, mask)
        optimizer.zero_grad()
        sum(weight[k] * v for k, v in terms.items()).backward()  # type: ignore[union-attr]
        torch.nn.utils.clip_grad_norm_(head.parameters(), 1.0)
        optimizer.step()
        seen += int(mask.sum())
        if (step + 1) % args.log_every == 0:
            values = " ".join(f"{k} {float(v.detach()):.4f}" for k, v in terms.items())
            rmsd = report(val, head)["rmsd_mean"]
            print(f"{step + 1} {time.perf_counter() - began:.0f} s {values} val RMSD {rmsd:.4f}", flush=True)
            save(head, {**vars(args), "step": step + 1, "residues": seen})
    return head


def save(head: BackboneHead, facts: dict[str, object]) -> None:
    """float16 weights with configuration and provenance in the metadata."""
    weights = {k: v.detach().half().contiguous() for k, v in head.state_dict().items()}
    save_file(weights, WEIGHTS, {"config": json.dumps(asdict(head.config)), "run": json.dumps(facts, default=str)})


def write_fixture(test: Chains) -> None:
    """Every k-th test chain, CA-centred steps of 1/100 A as int16."""
    names = list(test)[:: max(1, len(test) // FIXTURE_CHAINS)][:FIXTURE_CHAINS]
    atoms = [test[n] - np.round(test[n][:, CA].mean(0)).astype(np.int32) for n in names]
    FIXTURE.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        FIXTURE,
        ids=np.array(names),
        length=np.array([len(a) for a in atoms], np.int16),
        atoms=np.concatenate(atoms).astype(np.int16),
    )
    print(f"{FIXTURE}: {len(names)} chains, {FIXTURE.stat().st_size / 1000:.0f} kB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--database", type=Path, help="structure_db.dat, instead of a download")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=24, help="chains a batch")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--noise", type=float, default=0.15, help="A, the largest noise of training traces")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--log-every", type=int, default=250)
    parser.add_argument("--fixture", action="store_true", help="write the chains of the tests and end")
    parser.add_argument("--report", action="store_true", help="measure the shipped head on the test split and end")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        database = args.database or fetch(Path(folder))
        if args.fixture:
            write_fixture(full_chains(database, "test"))
            return
        if not args.report:
            chains = full_chains(database, "train").values()
            centred = [torch.from_numpy((a - a[:, CA].mean(0)) / 100).float() for a in chains]
            train(args, centred, full_chains(database, "val"))
        test = full_chains(database, "test")
        for noise in (0.0, 0.1, 0.2):
            print(json.dumps({"noise": noise, **report(test, noise=noise)}, indent=1))


if __name__ == "__main__":
    main()
