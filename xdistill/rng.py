"""Random numbers as a pure function of named keys: nothing depends on call order, batch size or resume."""

import hashlib
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


class Recorded:
    """Stands in for a generator and replays recorded draws in order: how fixtures of other programs are checked."""

    def __init__(self, draws: Iterable[Tensor]) -> None:
        self._draws = iter(draws)

    def next(self) -> Tensor:
        """The next recorded tensor, in the state's own shape."""
        return next(self._draws)


Generator = torch.Generator | Sequence[torch.Generator] | Recorded


def derive_seed(*keys: int | str) -> int:
    """A 63-bit seed from a tuple of keys, the same on every machine and in every process."""
    digest = hashlib.blake2b(repr(keys).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(*keys: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator whose stream depends on `keys` alone."""
    return torch.Generator(device).manual_seed(derive_seed(*keys))


def per_sample(seed: int, indices: Sequence[int]) -> list[torch.Generator]:
    """One generator a sample: sample i depends on (seed, i), never on the batch it was drawn in."""
    return [generator("sample", seed, int(i)) for i in indices]


def randn(shape: Sequence[int], gen: torch.Generator, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Standard normal of `shape` on `device`, drawn where the generator lives."""
    return torch.randn(tuple(shape), generator=gen, device=gen.device, dtype=dtype).to(device)


def rand(n: int, gen: torch.Generator | Recorded) -> Tensor:
    """`n` uniforms in [0, 1) as float64 on the generator's device."""
    if isinstance(gen, Recorded):
        return gen.next().double()
    return torch.rand(n, generator=gen, device=gen.device, dtype=torch.float64)


def randint(low: int, high: int, gen: torch.Generator) -> int:
    """One integer in [low, high)."""
    return int(torch.randint(low, high, (), generator=gen, device=gen.device))
