"""What objectives over masked diffusion share: the samplers they train for, and students of few calls."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from xdistill.errors import UsageError
from xdistill.models import Cond, TokenModel
from xdistill.objectives.base import Needs, Objective
from xdistill.process import MaskProcess
from xdistill.rng import Generator
from xdistill.samplers.mask import TOKEN_KEYS, TokenDraw, grid, sample_tokens
from xdistill.state import Tokens


class TokenSampling(Objective):
    """An objective over masked sequences, which are drawn by the samplers of `samplers.mask`."""

    process: MaskProcess
    needs = Needs(data=True, process=MaskProcess)
    sample_keys = TOKEN_KEYS

    @abstractmethod
    def default_calls(self, like: Tokens) -> int:
        """Network calls that reveal `like` where nobody says how many."""

    def sample(
        self,
        model: TokenModel,
        like: Tokens,
        cond: Cond,
        generator: Generator,
        *,
        steps: int | None = None,
        temperature: float = 1.0,
        top_p: float = 1.0,
        method: str = "ancestral",
        method_options: Mapping[str, Any] = MappingProxyType({}),
    ) -> Tokens:
        """`steps` calls of a sampler of `samplers.mask`, with options of its own."""
        chosen = {"method": method, "draw": TokenDraw(temperature, top_p)}
        return self.reveal(model, like, cond, generator, steps or self.default_calls(like), chosen, method_options)

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
        """All of `like` at once; chosen: method and draw, options: of the method."""
        return sample_tokens(model, self.process, steps, like, cond, generator, **chosen, **options)


@dataclass(eq=False)
class FewStepTokens(TokenSampling):
    """A student that reveals a sequence in `steps` network calls."""

    process: MaskProcess
    _: KW_ONLY
    steps: int = 8

    def __post_init__(self) -> None:
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            raise UsageError(f"steps={self.steps}: expected a number of network calls, at least 1")

    def anchors(self, device: torch.device | str = "cpu") -> Tensor:
        """[steps] times of the student's calls, 1 first."""
        return grid(self.steps)[:-1].to(device)

    def default_calls(self, like: Tokens) -> int:
        return self.steps


def token_sums(values: Tensor, at: Tensor) -> Tensor:
    """[N] values of the True positions of `at` [B, L], summed by sample, [B]."""
    return values.new_zeros(len(at)).index_add(0, at.nonzero()[:, 0], values)
