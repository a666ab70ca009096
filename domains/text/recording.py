"""One folder of recorded numbers of the reference implementations: its networks, tensors, and what was checked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from xdistill.domains.text.build import build
from xdistill.domains.text.denoiser import TextDenoiser
from xdistill.domains.text.discriminator import TokenDiscriminator
from xdistill.domains.text.stored import Stored
from xdistill.errors import XDistillError
from xdistill.process import MaskProcess
from xdistill.state import Tokens
from xdistill.testing.results import CaseResult, compare

RTOL, ATOL = 1e-4, 1e-5
HEAD = "output_layer."


class Recording:
    """Tensors by name, each of them marked when it is read or checked; networks are built as the recording used them.

    Networks are in evaluation mode, the student's dropout is 0; teacher, averaged student and discriminator are told
    the true sigma, the student what `time_conditioning` says (tests/fixtures/text/README.md).
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.name = folder, folder.name
        self.config: dict[str, Any] = json.loads((folder / "config.json").read_text())
        self.stored = load_file(folder / "mdlm_io.safetensors")
        self.didi = (folder / "didi_io.safetensors").is_file()
        if self.didi:
            self.stored |= load_file(folder / "didi_io.safetensors")
        self.seen: set[str] = set()
        self.weights = load_file(folder / "model.safetensors")
        self.process = MaskProcess(self.config["mask_index"], self.config["noise_eps"])

    def __getitem__(self, key: str) -> Tensor:
        self.seen.add(key)
        return self.stored[key]

    def keys(self, prefix: str) -> list[str]:
        """Names with this beginning, sorted, which is removed from them."""
        return sorted(k.removeprefix(prefix) for k in self.stored if k.startswith(prefix))

    def tokens(self, key: str) -> Tokens:
        """Recorded ids without padding."""
        ids = self[key]
        return Tokens(ids, torch.ones_like(ids, dtype=torch.bool))

    def hidden(self, key: str) -> Tensor:
        """[..., 1] bool: where recorded ids are masked."""
        return (self[key] == self.process.mask_id)[..., None]

    def time(self, key: str) -> Tensor:
        """Core times [B] float64 of recorded sigmas."""
        return (1 - (-self[key].double()).exp()) / (1 - self.process.eps)

    def check(self, key: str, found: Tensor, rtol: float = RTOL, atol: float = ATOL) -> CaseResult:
        """Floats within tolerance; ids and masks equal. A different shape of equally many numbers is accepted."""
        expected, name = self[key], f"{self.name}/{key}"
        if found.numel() != expected.numel():
            raise XDistillError(f"{name}: got shape {tuple(found.shape)}, recorded {tuple(expected.shape)}")
        exact = not expected.is_floating_point()
        found = found.detach().reshape(expected.shape)
        return compare(name, found, expected, 0.0 if exact else atol, 0.0 if exact else rtol)

    def check_log(self, key: str, found: Tensor) -> CaseResult:
        """Log-probabilities, of which those that stand for minus infinity need not be equally low."""
        expected = self[key].clamp(min=-1e3)
        return compare(f"{self.name}/{key}", found.detach().float().clamp(min=-1e3), expected, ATOL, RTOL)

    def unchecked(self) -> CaseResult:
        """The number of recorded tensors that no check has looked at: 0 of all."""
        left = sorted(self.stored.keys() - self.seen)
        name = f"{self.name}/tensors that nothing looks at" + (f" ({', '.join(left)})" if left else "")
        return CaseResult(name, float(len(left)), 0.0, not left)

    def network(self, weights: Mapping[str, Tensor], *, timed: bool) -> TextDenoiser:
        """A frozen network of these weights."""
        stored = Stored(self.folder, dict(weights), self.config)
        return build(weights, stored, timed=timed).requires_grad_(False)

    @cached_property
    def student(self) -> TextDenoiser:
        """The live student, which is the network of the first file too."""
        return self.network(self.weights, timed=self.config["time_conditioning"])

    @cached_property
    def models(self) -> dict[str, Tensor]:
        """Weights of the other roles, after their names."""
        return load_file(self.folder / "didi_models.safetensors")

    def role(self, name: str) -> TextDenoiser:
        """`teacher` or `student_ema`."""
        weights = {k.removeprefix(f"{name}."): v for k, v in self.models.items() if k.startswith(f"{name}.")}
        return self.network({**self.weights, **weights}, timed=True)

    def discriminator(self, head: Mapping[str, Tensor] | None = None) -> TokenDiscriminator:
        """Head `output_layer.*` on the first file's blocks; default the recorded head."""
        trunk = self.network(self.weights, timed=True)
        net = TokenDiscriminator(trunk, trainable=self.config["discriminator_unfreeze_blocks"])
        prefix = "discriminator."
        if head is None:
            head = {k.removeprefix(prefix): v for k, v in self.models.items() if k.startswith(prefix)}
        own = {k: v for k, v in self.weights.items() if not k.startswith(HEAD)} | dict(head)
        net.load_state_dict({k: own[k] for k in net.state_dict()})
        return net.eval().requires_grad_(False)
