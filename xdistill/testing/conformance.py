"""Does a model or a domain keep the contracts the core relies on? Named results with a message each."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from xdistill import rng
from xdistill.derivatives import safe_step, total_derivative
from xdistill.domain import Domain
from xdistill.errors import UsageError
from xdistill.guidance import Guided
from xdistill.models import Cond, denoise, tell, velocity
from xdistill.process import GaussianProcess
from xdistill.state import Field, Padded
from xdistill.times import shared

#: Relative error of a finite difference that training does not notice.
TOLERATED = 0.05


@dataclasses.dataclass(frozen=True)
class Check:
    """One contract: whether it holds (also when it does not apply), and what was seen."""

    name: str
    ok: bool
    message: str


def check_model(model: nn.Module, process: GaussianProcess, like: Field, cond: Cond) -> list[Check]:
    """The contracts of a trained FlowModel; `like` holds clean data, with samples of different length if any vary."""
    checks: dict[str, Callable[..., Check]] = {
        "finite": _finite,
        "layout": _layout,
        "deterministic": _deterministic,
        "time_sign": _time_sign,
        "mask_invariance": _mask_invariance,
        "guidance": _guidance,
        "derivative": _derivative,
    }
    with torch.no_grad():
        return [_guarded(name, f, model, process, like.project(), cond) for name, f in checks.items()]


def check_domain(domain: Domain, *, seed: int = 0, atol: float = 2e-3) -> list[Check]:
    """The contracts of a domain: batches, plans, files; atol is the precision of its file format.

    Samples a few items with the teacher's reference sampler at four network calls.
    """
    checks: dict[str, Callable[..., Check]] = {
        "batches": _batches,
        "null_batches": _null_batches,
        "student_is_teacher": _student_is_teacher,
        "new_inputs": _new_inputs,
        "plan": _plan,
        "files": _files,
        "metrics": _metrics,
    }
    with torch.no_grad():
        return [_guarded(name, f, domain, seed, atol) for name, f in checks.items()]


def _guarded(name: str, check: Callable[..., Check], *args: Any) -> Check:
    try:
        return check(*args)
    except Exception as error:  # a contract that raises is a contract broken, and the report goes on
        return Check(name, False, f"raised {type(error).__name__}: {error}")


def _noised(process: GaussianProcess, like: Field, t: float, seed: int = 0) -> tuple[Field, Tensor]:
    tb = shared(t, like.batch, like.value.device)
    return process.corrupt(like, tb, rng.generator("conformance", seed, device=like.value.device)), tb


def _finite(model: nn.Module, process: GaussianProcess, like: Field, cond: Cond) -> Check:
    bad = []
    for t in (1e-3, 0.02, 0.5, 0.98, 1 - 1e-3, 1.0):
        x_t, tb = _noised(process, like, t)
        if not torch.isfinite(denoise(model, process, x_t, tb, cond).value).all():  # type: ignore[arg-type]
            bad.append(t)
    return Check(
        "finite", not bad, f"clean estimate is not finite at t = {bad}" if bad else "finite from t = 0.001 to 1"
    )


def _layout(model: nn.Module, process: GaussianProcess, like: Field, cond: Cond) -> Check:
    x_t, t = _noised(process, like, 0.5)
    out = model(x_t, t, cond)
    same = isinstance(out, Field) and out.value.shape == like.value.shape
    seen = tuple(out.value.shape) if isinstance(out, Field) else type(out).__name__
    return Check("layout", same, f"returns {seen} for a state of shape {tuple(like.value.shape)}")


def _deterministic(model: nn.Module, process: GaussianProcess, like: Field, cond: Cond) -> Check:
    x_t, t = _noised(process, like, 0.5)
    gap = _gap(model(x_t, t, cond), model(x_t, t, cond))
    return Check("deterministic", gap == 0, f"two calls on one input differ by {gap:.1e} (dropout left on? eval() it)")


def _time_sign(model: nn.Module, process: GaussianProcess, like: Field, cond: Cond) -> Check:
    """At low noise the posterior mean beats the noised input itself; a network told 1 - t, or -v, does not."""
    t = _time_of_noise(process, 0.15)
    x_t, tb = _noised(process, like, t)
    error = float((denoise(model, process, x_t, tb, cond) - like).mean_square().mean())  # type: ignore[arg-type]
    identity = float((x_t.scale(1 / process.coeffs(tb).alpha) - like).mean_square().mean())
    hint = "" if error < 1.02 * identity else ": is t reversed, the velocity negated, or the data unscaled?"
    return Check(
        "time_sign",
        not hint,
        f"at t = {t:.3f} the clean estimate is off by {error:.2e}, the input by {identity:.2e}{hint}",
    )


def _time_of_noise(process: GaussianProcess, ratio: float) -> float:
    """The smallest grid time with sigma / alpha >= ratio."""
    grid = torch.linspace(1e-3, 1, 1000, dtype=torch.float64)
    c = process.coeffs(grid)
    return float(grid[int((c.sigma / c.alpha >= ratio).int().argmax())])


def _mask_invariance(model: nn.Module, process: GaussianProcess, like: Field, cond: Cond) -> Check:
    if not isinstance(like.layout, Padded) or bool(like.layout.mask.all()):
        return Check("mask_invariance", True, "does not apply: this batch has no padding")
    x_t, t = _noised(process, like, 0.5)
    junk = torch.where(like.layout.mask[..., None], x_t.value, torch.full_like(x_t.value, 37.0))
    gap = _gap(model(x_t, t, cond).project(), model(Field(junk, like.layout), t, cond).project())
    return Check("mask_invariance", gap < 1e-5, f"values in the padding change the prediction by {gap:.1e}")


def _guidance(model: nn.Module, process: GaussianProcess, like: Field, cond: Cond) -> Check:
    x_t, t = _noised(process, like, 0.5)
    given, none = model(x_t, t, cond), model(x_t, t, cond.drop())
    off = _gap(Guided(model, 1.0)(x_t, t, cond), given)
    twice = _gap(Guided(model, 2.0)(x_t, t, cond), given * 2.0 - none)
    message = f"guidance 1 differs from the conditional model by {off:.1e}, guidance 2 from 2 c - u by {twice:.1e}"
    return Check("guidance", off == 0 and twice < 1e-4, message)


@dataclasses.dataclass(frozen=True)
class Slopes:
    """How a velocity changes along its own flow: sizes of its parts |d_t v| and |d_x v . v|, and the relative errors of
    central differences by their steps in time.
    """

    time: float
    space: float
    errors: Mapping[float, float]

    @property
    def safe(self) -> float | None:
        """The largest of those steps that is off by at most 5 %."""
        return max((step for step, error in self.errors.items() if error <= TOLERATED), default=None)


def slopes(
    model: nn.Module, process: GaussianProcess, like: Field, cond: Cond, steps: Sequence[float] = (5e-3, 1e-3, 1e-4)
) -> Slopes:
    """Measure them at t = 1/2 against forward mode; raises UsageError for a network it cannot follow.

    A network that sees sinusoids of 1000 t has |d_t v| far above |d_x v . v|, and differences whose step is not below
    its period are noise (speech spec 2.8).
    """
    x_t, t = _noised(process, like, 0.5)
    t = t.clone()  # forward mode wants memory of its own for each sample's time

    def f(value: Tensor, time: Tensor) -> Tensor:
        return velocity(model, process, Field(value, x_t.layout), time, cond).value  # type: ignore[arg-type]

    v, still = f(x_t.value, t), torch.zeros_like(t)
    in_time = total_derivative(f, (x_t.value, t), (torch.zeros_like(v), torch.ones_like(t)))
    in_space = total_derivative(f, (x_t.value, t), (v, still))
    whole = in_time + in_space
    errors = {}
    for step in steps:
        near = total_derivative(f, (x_t.value, t), (v, torch.ones_like(t)), backend="finite_difference", step=step)
        errors[step] = float((near - whole).norm() / whole.norm())
    return Slopes(float(in_time.norm()), float(in_space.norm()), errors)


def _derivative(model: nn.Module, process: GaussianProcess, like: Field, cond: Cond) -> Check:
    """Which derivative along the flow an objective may ask of this network.

    A `time_scale` whose difference fails where a smaller one works is a fault; where none works, the network jumps.
    """
    scale = getattr(model, "time_scale", None)
    promised = safe_step(scale or 1.0)
    try:
        found = slopes(model, process, like, cond, sorted({5e-3, 1e-3, 1e-4, promised}, reverse=True))
    except UsageError:
        return Check("derivative", True, "forward mode cannot follow this network: derivative=finite_difference")
    seen = f"|d_t v| = {found.time:.3g}, |d_x v . v| = {found.space:.3g}; central differences are off by " + ", ".join(
        f"{100 * error:.2g} % at {step:g}" for step, error in found.errors.items()
    )
    if found.safe is None:
        return Check(
            "derivative", True, f"{seen}: no difference is safe (binned features?), derivative=func sees no bins"
        )
    way = f", or finite_difference with difference_step={found.safe:g}"
    ok = scale is None or found.errors[promised] <= TOLERATED
    hint = "" if ok else f"; time_scale={scale:g} of this network promises {promised:g}"
    return Check("derivative", ok, f"{seen}: derivative=func{way}{hint}")


def _gap(a: Field, b: Field) -> float:
    return float((a - b).value.abs().max())


def _batches(domain: Domain, seed: int, atol: float) -> Check:
    source, again = domain.data(4, seed), domain.data(4, seed)
    source.batch(0, 0, 2)  # history must not matter
    same = _close(source.batch(3, 1, 2), again.batch(3, 1, 2), 0.0)
    others = [source.batch(4, 1, 2), source.batch(3, 0, 2), domain.data(4, seed + 1).batch(3, 1, 2)]
    fresh = all(not _close(source.batch(3, 1, 2), other, 0.0) for other in others)
    message = "a batch must depend on (seed, index, rank, world) alone, and on each of them"
    return Check("batches", same and fresh, f"{message}: repeatable {same}, distinct {fresh}")


def _null_batches(domain: Domain, seed: int, atol: float) -> Check:
    a, b = (domain.null_data(4, seed).batch(2, 0, 1) for _ in range(2))
    ok = not a.real and not b.real and _close(a, b, 0.0) and domain.data(4, seed).batch(2, 0, 1).real
    return Check("null_batches", ok, f"null_data must be repeatable and marked real=False (it says {a.real})")


def _student_is_teacher(domain: Domain, seed: int, atol: float) -> Check:
    teacher = domain.teacher()
    mine, theirs = domain.student(teacher).state_dict(), teacher.state_dict()
    if mine.keys() != theirs.keys():
        return Check("student_is_teacher", True, "does not apply: the student has its own architecture")
    equal = all(torch.equal(mine[k], theirs[k]) for k in mine)
    alias = any(mine[k].data_ptr() == theirs[k].data_ptr() for k in mine if mine[k].numel())
    return Check("student_is_teacher", equal and not alias, f"equal weights {equal}, shared memory {alias}")


def _new_inputs(domain: Domain, seed: int, atol: float) -> Check:
    """The end of a jump and a guidance scale change nothing until they are trained."""
    offers = [name for name in ("flow_map", "told") if getattr(type(domain), name) is not getattr(Domain, name)]
    batch = domain.data(2, seed).batch(0, 0, 1)
    if not offers or not isinstance(batch.like, Field):
        return Check("new_inputs", True, "does not apply: a student gets no new inputs")
    student, t, r = domain.student(domain.teacher()).eval(), *(shared(at, batch.like.batch) for at in (0.6, 0.2))
    model, cond = student, batch.cond
    if "flow_map" in offers:
        model = domain.flow_map(model).eval()
    if "told" in offers:
        model, cond = domain.told(model, 2.0).eval(), tell(cond, torch.full((batch.like.batch,), 3.0))
    jump = {"r": r} if getattr(model, "flow_map", False) else {}
    off = float((model(batch.like, t, cond, **jump) - student(batch.like, t, batch.cond)).value.abs().max())
    return Check("new_inputs", off < 1e-5, f"new inputs of {' and '.join(offers)} change a prediction by {off:.1e}")


def _samples(domain: Domain, indices: Sequence[int], seed: int) -> list[Any]:
    batch, draws = domain.plan(indices, seed), rng.per_sample(seed, indices)
    few = list(domain.teacher_samplers().values())[-1]  # the reference sampler may diverge in so few steps
    return domain.decode(few(domain.teacher().eval(), batch, draws, steps=4))


def _plan(domain: Domain, seed: int, atol: float) -> Check:
    many, one = _samples(domain, [3, 8, 5], seed), _samples(domain, [8], seed)
    ok = len(many) == 3 and len(one) == 1 and _close(many[1], one[0], atol)
    return Check("plan", ok, "sample 8 of a batch must be sample 8 alone: " + ("it is" if ok else "it differs"))


def _files(domain: Domain, seed: int, atol: float) -> Check:
    """Formats may lose something, as sound does of a mel, but not all of them."""
    samples, equal = _samples(domain, range(3), seed), []
    for suffix in domain.formats or [""]:
        with tempfile.TemporaryDirectory() as folder:
            names = [f"sample_{i}{suffix and '.'}{suffix}" for i in range(3)]
            written = sorted(domain.write(s, Path(folder) / n).name for s, n in zip(samples, names, strict=True))
            left, back = sorted(p.name for p in Path(folder).iterdir()), domain.read(Path(folder))
        if left != written or len(back) != 3:
            return Check("files", False, f"{suffix}: wrote {written}, found {left}, read {len(back)} samples back")
        if all(_close(a, b, atol) for a, b in zip(samples, back, strict=True)):
            equal.append(suffix)
    said = f"samples come back from {', '.join(equal)}" if equal else "no format gives back what was written"
    return Check("files", bool(equal), f"of the formats {', '.join(domain.formats) or '(own)'}: {said}")


def _metrics(domain: Domain, seed: int, atol: float) -> Check:
    metrics = domain.metrics(_samples(domain, range(8), seed), seed=seed)
    ok = "score" in metrics and all(np.isfinite(m.value) for m in metrics.values())
    return Check(
        "metrics", ok, f"needs a finite 'score': {', '.join(f'{k} {m.value:.3g}' for k, m in metrics.items())}"
    )


def _close(a: Any, b: Any, atol: float) -> bool:
    left, right = list(_leaves(a)), list(_leaves(b))
    return len(left) == len(right) and all(_leaf_close(x, y, atol) for x, y in zip(left, right, strict=True))


def _leaf_close(x: Any, y: Any, atol: float) -> bool:
    if isinstance(x, np.ndarray) and isinstance(y, np.ndarray):
        return x.shape == y.shape and bool(np.allclose(x, y, atol=atol, rtol=0 if atol == 0 else 1e-5, equal_nan=True))
    return bool(x == y)


def _leaves(value: Any) -> Iterator[Any]:
    """Arrays and plain values inside containers and dataclasses, in order."""
    if isinstance(value, Tensor):
        yield value.detach().cpu().numpy()
    elif isinstance(value, Mapping):
        for key in sorted(value, key=str):
            yield from _leaves(value[key])
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _leaves(item)
    elif dataclasses.is_dataclass(value):
        for item in dataclasses.fields(value):
            yield from _leaves(getattr(value, item.name))
    else:
        yield value
