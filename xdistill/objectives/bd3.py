"""BD3: trains models that write block after block, by masked diffusion inside a block (BD3-LM, 2503.09573)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from xdistill.blocks import EarlierBlocks
from xdistill.errors import UsageError
from xdistill.models import Batch, Cond, TokenModel
from xdistill.objectives.base import LossOut, Needs, Phase
from xdistill.objectives.mdlm import LEAST, MDLM, clean, stratified, token_nll
from xdistill.process import MaskProcess
from xdistill.process.mask import uniforms
from xdistill.rng import Generator
from xdistill.roles import RoleView
from xdistill.samplers.block import Stop, by_blocks
from xdistill.state import Tokens


def bd3_loss(
    model: TokenModel,
    process: MaskProcess,
    x0: Tokens,
    t: Tensor,
    block: int,
    generator: torch.Generator,
    weight_floor: float = 0.0,
) -> Tensor:
    """The negative ELBO in nats of each sample, sum over blocks of weight(t_b) sum_masked -log p(x0 | blocks before),
    [B] (2503.09573 eq. 8). t: [B, blocks], a time for every block; all blocks are learnt in one call of 2 L tokens.
    """
    times = t.repeat_interleave(block, 1)[:, : x0.ids.shape[1]].to(x0.ids.device)
    kept = uniforms(x0, generator) < process.keep(times)
    z_t = process.corrupt(x0, t[:, 0], generator, noise=Tokens(x0.ids, kept))
    nll = token_nll(model, process, x0, z_t, t.mean(1), EarlierBlocks(x0.ids, block))
    weight = process.weight(times) * times / times.clamp(min=weight_floor)
    return (weight.to(nll) * nll).sum(1)


class BD3(MDLM):
    """Block diffusion: p(x) as a product over blocks of masked diffusions given all clean blocks before (2503.09573).

    block: tokens of a block; 1 is an autoregressive model, the whole sequence is `mdlm`. times: range of the training
    times; clipped, e.g. to [0.3, 0.8], it has less variance (text spec 3; `noise_variance` says of which range).
    weight_floor: as in `mdlm`. sample_steps: network calls that reveal, in all blocks together; each block costs one
    more, which fills the cache. end_id: the token behind which a text ends (None: it is as long as asked for).
    stop_entropy: least nats of the last 256 tokens, below which a text ends.
    The network must not be told the time: blocks of one sequence have different ones.
    """

    needs = Needs(data=True, process=MaskProcess, blocks=True)
    any_length = True

    def __init__(
        self,
        process: MaskProcess,
        *,
        block: int = 16,
        sample_steps: int = 128,
        times: Sequence[float] = (LEAST, 1.0),
        weight_floor: float = 0.0,
        end_id: int | None = None,
        stop_entropy: float = 0.0,
    ) -> None:
        super().__init__(process, sample_steps=sample_steps, times=times, weight_floor=weight_floor)
        if isinstance(block, bool) or not isinstance(block, int) or block < 1:
            raise UsageError(f"block={block}: expected a number of tokens, at least 1")
        self.block, self.stop = block, Stop(end_id, stop_entropy)

    def phases(self, macro_step: int) -> Sequence[Phase]:
        return (Phase("bd3", "student"),)

    def loss(self, phase: Phase, batch: Batch[Tokens], net: RoleView, generator: torch.Generator) -> LossOut:
        x0 = clean(batch)
        low, high = self.times
        # Stratified for each block by itself: over all at once, a block's place would say something of its time.
        columns = [stratified(x0.batch, net.shared) for _ in range(-(-x0.ids.shape[1] // self.block))]
        t = low + (high - low) * torch.stack(columns, 1)
        nelbo = bd3_loss(net.train("student"), self.process, x0, t, self.block, generator, self.weight_floor)
        per_sample = nelbo / x0.elements.float().mean()  # a token counts the same in every sequence
        return LossOut(per_sample, {"loss": per_sample.detach()})

    def default_calls(self, like: Tokens) -> int:
        return max(self.sample_steps, -(-like.ids.shape[1] // self.block))

    def reveal(
        self,
        model: TokenModel,
        like: Tokens,
        cond: Cond,
        generator: Generator,
        steps: int,
        chosen: Mapping[str, Any],
        options: Mapping[str, Any],
    ) -> Tokens:
        """Block after block, which share the calls; rows may end before their length."""
        z = self.process.prior(like, generator)
        own = (self.process, steps, z, generator)
        return by_blocks(model, *own, block=self.block, stop=self.stop, options=options, **chosen)


@torch.no_grad()
def noise_variance(
    model: TokenModel,
    process: MaskProcess,
    x0: Tokens,
    block: int,
    ranges: Sequence[Sequence[float]],
    generator: torch.Generator,
    draws: int = 8,
) -> list[float]:
    """Variance over `draws` of the loss of a batch, in nats a token, with times in each of `ranges` (low, high).

    The range of least variance is the one to train with: the clipped schedules of 2503.09573, section 4.
    """
    count, tokens = -(-x0.ids.shape[1] // block), x0.elements.sum()
    found = []
    for low, high in ranges:
        losses = []
        for _ in range(draws):
            t = low + (high - low) * torch.stack([stratified(x0.batch, generator) for _ in range(count)], 1)
            losses.append(bd3_loss(model, process, x0, t, block, generator).sum() / tokens)
        found.append(float(torch.stack(losses).var()))
    return found
