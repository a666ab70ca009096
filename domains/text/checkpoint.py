"""Text networks on disk: the four published checkpoint forms (text spec 1.5), and safetensors of our own."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from xdistill.domains.text.build import EMBEDDING, TIME, build, sizes
from xdistill.domains.text.denoiser import TextDenoiser
from xdistill.domains.text.discriminator import TokenDiscriminator, default_trainable
from xdistill.domains.text.network import TextDiT
from xdistill.domains.text.stored import Stored, as_metadata, read_stored
from xdistill.domains.text.tokenizers import TextTokenizer
from xdistill.errors import UsageError, XDistillError
from xdistill.foreign import check_fit

STUDENT_EMA, DISCRIMINATOR = "student_ema.", "discriminator."
# What official Lightning modules keep beside the network.
BESIDE = ("backbone", "student_ema", "teacher", "discriminator", "reward_baseline")
BESIDE_BD3 = ("sampling_eps_min", "sampling_eps_max")


def load_text_model(
    path: str | Path,
    *,
    mask_id: int | None = None,
    ema: bool = True,
    timed: bool | None = None,
    heads: int | None = None,
) -> TextDenoiser:
    """A network in evaluation mode, float32, on the CPU, from any of

    - a Lightning file of MDLM, SDTT, BD3-LM or DiDi-Instruct (read weights-only, see `xdistill.foreign`);
    - a Hub folder: config.json with model.safetensors or pytorch_model.bin, or the file of weights alone;
    - what `save_text_model` wrote, a run folder or a checkpoint folder of xdistill.

    Args:
        mask_id: the absorbing id; default what the file says, else the last one.
        ema: averaged weights where the file has them (`student_ema.`, or the unnamed list `ema.shadow_params`).
        timed: whether the network is told sigma(t); default what the file says (`time_conditioning`), else False.
        heads: number of attention heads, needed only when neither file nor a published size tells it.

    Raises XDistillError, one line, for a missing, damaged or hostile file, or weights that do not fit.
    """
    path = Path(path)
    if (path / "manifest.json").is_file() or (path / "checkpoints").is_dir():
        return _own_run(path, "student_ema" if ema else "student", mask_id, timed)
    stored = read_stored(path, "model")
    return build(_backbone(stored, ema, heads), stored, mask_id=mask_id, timed=timed, heads=heads)


def save_text_model(model: TextDenoiser, path: str | Path) -> Path:
    """Write safetensors under the official names, with what `load_text_model` needs in its metadata; atomic."""
    path = Path(path).with_suffix(".safetensors")
    path.parent.mkdir(parents=True, exist_ok=True)
    c, process = model.net.config, model.process
    config = {
        **{"vocab_size": c.vocabulary, "hidden_size": c.hidden, "n_blocks": c.blocks, "cond_dim": c.cond},
        **{"n_heads": c.heads, "dropout": c.dropout, "time_conditioning": model.timed},
        **{"mask_index": process.mask_id, "noise_eps": process.eps},
    }
    temporary = path.with_suffix(".tmp")
    weights = {k: v.detach().cpu().contiguous() for k, v in model.net.state_dict().items()}
    save_file(weights, temporary, metadata=as_metadata(config))
    os.replace(temporary, path)
    return path


def load_discriminator(
    path: str | Path,
    teacher: TextDenoiser | None = None,
    *,
    trainable: int | None = None,
    timed: bool = True,
    heads: int | None = None,
) -> TokenDiscriminator:
    """The discriminator of a DiDi-Instruct Lightning file, a Hub folder or file, or a role file of xdistill.

    teacher: whose first blocks it borrows; those of the file must be equal. Without, the file's own are used, and
    `discriminator.trunk` must be moved between devices by the caller. trainable: see `TokenDiscriminator`; default
    the blocks that differ from the teacher's, at least those of a new discriminator.
    Raises XDistillError, one line, for a bad file, weights that do not fit, or another teacher's discriminator.
    """
    path = Path(path)
    stored = read_stored(path, "discriminator")
    prefix = DISCRIMINATOR if any(k.startswith(DISCRIMINATOR) for k in stored.state) else ""
    state = {k.removeprefix(prefix): v.float() for k, v in stored.state.items() if k.startswith(prefix)}
    if "output_layer.main.0.weight_orig" not in state:
        raise XDistillError(f"{path} holds no discriminator: expected output_layer.main.0.weight_orig in it")
    if teacher is None:
        teacher = build(_without_head(state, path), stored, mask_id=None, timed=timed, heads=heads)
    net = teacher.net.state_dict()
    own = _own_blocks(state, net, len(teacher.net.blocks)) if trainable is None else trainable
    discriminator = TokenDiscriminator(teacher.requires_grad_(False), trainable=own, timed=timed).eval()
    expected = discriminator.state_dict()
    borrowed = {k: v for k, v in state.items() if k not in expected and k in net}
    check_fit(path, expected, {k: v for k, v in state.items() if k not in borrowed})
    wrong = [k for k, v in borrowed.items() if not _same(v, net[k])]
    if wrong:
        raise XDistillError(f"{path}: {wrong[0]} is not the teacher's: give the teacher it was trained with, or none")
    discriminator.load_state_dict({k: state[k] for k in expected})
    return discriminator


def check_tokenizer(vocabulary: int, tokenizer: TextTokenizer, mask_id: int | None = None) -> None:
    """Raises XDistillError unless a network of `vocabulary` ids, mask included, reads and writes `tokenizer`'s."""
    if vocabulary != tokenizer.vocabulary:
        raise XDistillError(
            f"the network has {vocabulary} ids, the tokenizer {tokenizer.vocabulary} (mask included): "
            "give the tokenizer it was trained with (domain.tokenizer)"
        )
    if mask_id is not None and mask_id != tokenizer.mask_id:
        raise XDistillError(f"the network's mask is id {mask_id}, the tokenizer's {tokenizer.mask_id}: give mask_id")


def _backbone(stored: Stored, ema: bool, heads: int | None) -> dict[str, Tensor]:
    """The network's own weights by their plain names."""
    prefixes = [STUDENT_EMA] * ema + ["backbone.backbone.", "backbone.", ""]
    prefix = next((p for p in prefixes if p + EMBEDDING in stored.state), None)
    if prefix is None:
        raise XDistillError(f"{stored.path} holds no text network: expected {EMBEDDING}, as it is or after backbone.")
    state = {k.removeprefix(prefix): v for k, v in stored.state.items() if k.startswith(prefix)}
    known = {*BESIDE, *BESIDE_BD3} - ({"backbone"} if prefix.startswith("backbone.") else set())
    strange = [k for k in stored.state if not k.startswith(prefix) and k.partition(".")[0] not in known]
    if strange:
        raise XDistillError(f"{stored.path}: unexpected {strange[0]} beside the network {prefix}*")
    if ema and prefix != STUDENT_EMA and stored.ema is not None:
        state |= _averaged(state, stored, heads)
    return state


def _averaged(state: Mapping[str, Tensor], stored: Stored, heads: int | None) -> dict[str, Tensor]:
    """The unnamed averages under their names: the network's parameters in order, buffers excluded."""
    shadow = stored.ema.get("shadow_params") if isinstance(stored.ema, Mapping) else None
    if not isinstance(shadow, list | tuple) or not all(isinstance(v, Tensor) for v in shadow):
        raise XDistillError(f"{stored.path}: its averaged weights are no list ema.shadow_params: use ema=False")
    with torch.device("meta"):
        names = [name for name, _ in TextDiT(sizes(state, stored, heads)).named_parameters()]
    if len(names) != len(shadow):
        raise XDistillError(
            f"{stored.path}: {len(shadow)} averaged tensors for {len(names)} parameters: use ema=False for the raw ones"
        )
    return dict(zip(names, shadow, strict=True))


def _without_head(state: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The trunk of a complete discriminator file, with an output layer of zeros that nothing reads."""
    trunk = {k: v for k, v in state.items() if not k.startswith("output_layer.")}
    if EMBEDDING not in trunk or TIME not in trunk:
        raise XDistillError(f"{path} holds the trained part of a discriminator alone: give its teacher")
    (vocabulary, hidden), cond = trunk[EMBEDDING].shape, len(trunk[TIME])
    shapes: dict[str, tuple[int, ...]] = {
        "norm_final.weight": (hidden,),
        "linear.weight": (vocabulary, hidden),
        "linear.bias": (vocabulary,),
        "adaLN_modulation.weight": (2 * hidden, cond),
        "adaLN_modulation.bias": (2 * hidden,),
    }
    return trunk | {f"output_layer.{k}": torch.zeros(()).expand(size) for k, size in shapes.items()}


def _own_blocks(state: Mapping[str, Tensor], teacher: Mapping[str, Tensor], blocks: int) -> int:
    """How many last blocks are a discriminator's own: those that differ, or all of a file that lacks the others."""
    found = {int(k.split(".")[1]) for k in state if k.startswith("blocks.")}
    if EMBEDDING not in state:
        return blocks - min(found, default=blocks)
    other = [int(k.split(".")[1]) for k, v in state.items() if k.startswith("blocks.") and not _same(v, teacher.get(k))]
    return max(blocks - min(other, default=blocks), default_trainable(blocks))


def _same(a: Tensor, b: Tensor | None) -> bool:
    return b is not None and a.shape == b.shape and bool(torch.equal(a, b.to(a)))


def _own_run(path: Path, role: str, mask_id: int | None, timed: bool | None) -> TextDenoiser:
    """The student of a run or checkpoint of xdistill, which knows its own mask and time."""
    from xdistill.student import load_student

    model: Any = load_student(path, "text", role).model
    if mask_id not in (None, model.process.mask_id) or timed not in (None, model.timed):
        raise UsageError(f"{path} says mask_id={model.process.mask_id}, timed={model.timed}: leave both out")
    return model
