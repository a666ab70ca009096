"""Metrics that need the model itself: the validation bound, and how well it fills gaps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from xdistill import rng
from xdistill.domain import Metric
from xdistill.domains.text.judges import Judge, Span, marked
from xdistill.domains.text.metrics import exponential, real_sequences
from xdistill.domains.text.packing import Packed
from xdistill.domains.text.passage import spans_of
from xdistill.domains.text.tokenizers import TextTokenizer
from xdistill.evaluation import Draw
from xdistill.intervals import bootstrap_sums
from xdistill.models import Batch, NoCond
from xdistill.objectives.mdlm import LEAST, mdlm_loss
from xdistill.process import MaskProcess
from xdistill.state import Tokens

Ids = NDArray[np.int64]
VISIBLE = (25, 50, 75)  # percent
GAP = 8  # tokens of a gap that `infilling` leaves, at least
ROWS = 32  # sequences of a network call


@torch.no_grad()
def validation_nelbo(
    model: nn.Module, process: MaskProcess, packed: Packed, n: int = 256, seed: int = 0, times: int = 4
) -> Metric:
    """The negative ELBO in nats a token of held-out sequences, specials included (2406.07524 eq. 10).

    Each of at most n sequences is masked at `times` times, of which each part of [LEAST, 1] has one, whatever the order
    of `process` independently: of other masks the same sum is no bound. Of a distilled student the bound is loose:
    report it, rank nothing by it (text spec 4).
    """
    process = replace(process, order="independent")
    ids = torch.from_numpy(np.stack(real_sequences(packed, n)))
    order = torch.randperm(times * len(ids), generator=rng.generator("nelbo order", seed))
    u = rng.rand(len(order), rng.generator("nelbo times", seed))
    t = (LEAST + (1 - LEAST) * (order + u) / len(order)).view(times, len(ids))
    device, total = next(model.parameters()).device, np.zeros(len(ids))
    model.eval()
    for k in range(times):
        for at in torch.arange(len(ids)).split(ROWS):
            x0 = _tokens(ids[at]).to(device)
            gen = rng.generator("nelbo", seed, k, int(at[0]))
            total[at.numpy()] += mdlm_loss(model, process, x0, t[k, at], NoCond(), gen).double().cpu().numpy()
    table = np.column_stack([total, np.full(len(ids), times * ids.shape[1])])
    return replace(bootstrap_sums(table, np.random.default_rng(rng.derive_seed("nelbo", seed))), better="low")


def visible(length: int, percent: int, generator: torch.Generator) -> NDArray[np.bool_]:
    """[length] which tokens are shown: both ends, and `percent` of the blocks of GAP tokens between, at random."""
    blocks = -(-(length - 2) // GAP)
    shown = torch.zeros(blocks, dtype=torch.bool)
    shown[torch.randperm(blocks, generator=generator)[: round(blocks * percent / 100)]] = True
    body = shown.repeat_interleave(GAP)[: length - 2].numpy()
    return np.concatenate([[True], body, [True]])


@torch.no_grad()
def infilling(
    model: nn.Module | None,
    draw: Draw | None,
    packed: Packed,
    tokenizer: TextTokenizer,
    judge: Judge,
    n: int = 64,
    seed: int = 0,
) -> dict[str, Metric]:
    """infill_25, infill_50, infill_75: judge perplexity of what fills held-out sequences with so many percent visible.

    All text is context for the judge, which reads from left to right; only what fills counts. Of no model: what the
    held-out text itself scores in the same gaps, which is what to compare with.
    """
    real = real_sequences(packed, n)
    found = {}
    for percent in VISIBLE:
        shown = [visible(len(ids), percent, rng.generator("gaps", seed, percent, i)) for i, ids in enumerate(real)]
        filled = real if model is None or draw is None else _fill(model, draw, real, shown, seed)
        pieces = [gaps(ids, given, tokenizer) for ids, given in zip(filled, shown, strict=True)]
        sums = judge([text for text, _ in pieces], [spans for _, spans in pieces])
        m = bootstrap_sums(sums, np.random.default_rng(rng.derive_seed("infilling", seed)))
        found[f"infill_{percent}"] = replace(exponential(m), better="low")
    return found


def gaps(ids: Ids, shown: NDArray[np.bool_], tokenizer: TextTokenizer) -> tuple[str, list[Span]]:
    """The text of ids, and the half-open spans of its characters that were not shown."""
    edges = sorted({0, len(ids), *(edge for span in spans_of(shown.tolist()) for edge in span)})
    text, spans = "", []
    for a, b in pairwise(edges):
        piece = marked(ids[a:b].tolist(), tokenizer)
        if not shown[a]:
            spans.append((len(text), len(text) + len(piece)))
        text += piece
    return text, spans


def _fill(
    model: nn.Module, draw: Draw, real: Sequence[Ids], shown: Sequence[NDArray[np.bool_]], seed: int
) -> list[Ids]:
    device, found = next(model.parameters()).device, []
    model.eval()
    for at in range(0, len(real), ROWS):
        rows = range(at, min(at + ROWS, len(real)))
        ids, given = (torch.from_numpy(np.stack([group[i] for i in rows])) for group in (real, shown))
        like = Tokens(ids, torch.ones_like(given), given)
        state = draw(model, Batch(like, NoCond(), real=False).to(device), rng.per_sample(seed, rows))
        found += list(state.ids.cpu().numpy())
    return found


def _tokens(ids: torch.Tensor) -> Tokens:
    return Tokens(ids, torch.ones_like(ids, dtype=torch.bool))
