"""What few-step objectives over masked diffusion share: a number of calls, and the sampler they train for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor

from xdistill.errors import UsageError
from xdistill.models import Cond, TokenModel
from xdistill.objectives.base import Needs, Objective
from xdistill.process import MaskProcess
from xdistill.rng import Generator
from xdistill.samplers.mask import TOKEN_KEYS, TokenDraw, grid, sample_tokens
from xdistill.state import Tokens


@dataclass(eq=False)
class FewStepTokens(Objective):
    """A student that reveals a sequence in `steps` network calls."""

    process: MaskProcess
    _: KW_ONLY
    steps: int = 8

    needs: ClassVar[Needs] = Needs(data=True, process=MaskProcess)  # type: ignore[misc]
    sample_keys: ClassVar[Sequence[str]] = TOKEN_KEYS  # type: ignore[misc]

    def __post_init__(self) -> None:
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            raise UsageError(f"steps={self.steps}: expected a number of network calls, at least 1")

    def anchors(self, device: torch.device | str = "cpu") -> Tensor:
        """[steps] times of the student's calls, 1 first."""
        return grid(self.steps)[:-1].to(device)

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
        draw = TokenDraw(temperature, top_p)
        fixed = (model, self.process, steps or self.steps, like, cond, generator)
        return sample_tokens(*fixed, method=method, draw=draw, **method_options)


def token_sums(values: Tensor, at: Tensor) -> Tensor:
    """[N] values of the True positions of `at` [B, L], summed by sample, [B]."""
    return values.new_zeros(len(at)).index_add(0, at.nonzero()[:, 0], values)
