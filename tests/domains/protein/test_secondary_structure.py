"""Our P-SEA against biotite's, on real chains, on noisy ones and on mirror images."""

from __future__ import annotations

import biotite.structure as struc
import numpy as np
import pytest

from xdistill.domains.protein.chains import load_embedded
from xdistill.domains.protein.codec import NM, ca_array
from xdistill.domains.protein.geometry import secondary_structure


@pytest.mark.parametrize(("noise", "sign"), [(0.0, 1), (0.4, 1), (0.0, -1)], ids=["real", "noisy", "mirror"])
def test_letters_are_those_of_biotite(noise: float, sign: int) -> None:
    chains, rng, seen = load_embedded("val"), np.random.default_rng(0), set()
    for i in range(100 if noise == 0 and sign == 1 else 30):
        x = NM * sign * chains.coords(i).astype(np.float64)
        x += noise * rng.normal(size=x.shape)
        found = secondary_structure(x)
        assert found == "".join(struc.annotate_sse(ca_array(x / NM))), i
        seen |= set(found)
    assert seen == set("abc")


def test_short_chains_are_coil() -> None:
    for n in range(6):
        assert secondary_structure(np.zeros((n, 3))) == "c" * n
    assert len(secondary_structure(np.zeros((6, 3)))) == 6
