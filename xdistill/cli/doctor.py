"""`xdistill doctor`: is this machine, this teacher or this run well?"""

from __future__ import annotations

import hashlib
import platform
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import as_file, files
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console
from rich.table import Table

from xdistill import machine, registry
from xdistill.cli.keys import domain_class, split
from xdistill.config import compose
from xdistill.errors import UsageError, XDistillError

MARKS = {True: "[green]ok[/]", False: "[red]wrong[/]", None: "-"}
UNITS = {"AVX-512": "avx512f", "bf16": "avx512_bf16", "AMX": "amx_bf16"}
PACKAGES = ("xdistill", "torch", "lightning", "hydra-core", "numpy", "safetensors", "biotite", "deepspeed", "ray")


@dataclass(frozen=True)
class Finding:
    """One line of a diagnosis; ok is None for plain information."""

    what: str
    ok: bool | None
    message: str


def run(args: Sequence[str]) -> int:
    """Print the findings; 1 when any is wrong."""
    match list(args):
        case []:
            title, findings = "this machine", [*environment(), *assets()]
        case ["teacher", *rest]:
            title, findings = "teacher", teacher(rest)
        case ["run", folder]:
            title, findings = folder, run_health(Path(folder))
        case _:
            raise UsageError("doctor takes nothing, `teacher domain=NAME`, or `run DIR`")
    table = Table(title=title, show_header=False)
    for finding in findings:
        table.add_row(finding.what, MARKS[finding.ok], finding.message)
    Console().print(table)
    return 1 if any(f.ok is False for f in findings) else 0


def environment() -> Iterator[Finding]:
    """Versions, processor, accelerator, DeepSpeed and disk."""
    import torch

    yield Finding("python", None, f"{platform.python_version()} on {platform.platform()}")
    yield Finding("packages", None, ", ".join(f"{p} {_version(p)}" for p in PACKAGES))
    flags = machine.cpu_flags()
    units = [
        name for name, flag in (("AVX-512", "avx512f"), ("bf16", "avx512_bf16"), ("AMX", "amx_bf16")) if flag in flags
    ]
    yield Finding(
        "processor", None, f"{machine.cpu_name()}: {machine.cores()} cores, {', '.join(units) or 'no AVX-512'}"
    )
    if "amx_bf16" not in flags and "avx512_bf16" not in flags:
        yield Finding("bf16", None, "no bf16 units: precision=fp32 is likely faster on this processor")
    if torch.cuda.is_available():
        gib = torch.cuda.get_device_properties(0).total_memory / 2**30
        yield Finding("GPU", True, f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}, {gib:.0f} GiB")
    else:
        yield Finding(
            "GPU", None, f"none seen by torch (built for CUDA {torch.version.cuda or 'no'}): runs use the CPU"
        )
    yield _deepspeed()
    free = shutil.disk_usage(".").free / 2**30
    yield Finding("disk", free > 1, f"{free:.1f} GiB free in {Path.cwd()}")


def _deepspeed() -> Finding:
    if find_spec("deepspeed") is None:
        return Finding("deepspeed", None, "not installed: strategy=deepspeed_* needs pip install 'xdistill[deepspeed]'")
    try:
        import deepspeed
    except Exception as error:  # its import compiles and probes; whatever fails there is the finding
        return Finding("deepspeed", False, f"installed but not importable: {type(error).__name__}: {error}")
    return Finding("deepspeed", True, f"{deepspeed.__version__}: strategy=deepspeed_z0 to z3")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(none)"


def assets() -> Iterator[Finding]:
    """Shipped files against their checksums (`<sha256>  <name>`): a row for each in README.md, one for a SHA256SUMS."""
    for name in registry.names("domains"):
        folder = files("xdistill.domains") / name / "assets"
        if not folder.is_dir():
            continue
        with as_file(folder) as path:
            shipped = {str(p.relative_to(path)): p for p in path.rglob("*") if p.is_file() and p.suffix != ".md"}
            for sums in sorted(path.rglob("SHA256SUMS")):
                known = listed(sums)
                wrong = [f for f, digest in known.items() if not _matches(sums.with_name(f), digest)]
                fine = f"{len(known)} checksums match"
                said = f"{wrong[0]} is missing or differs: reinstall xdistill" if wrong else fine
                yield Finding(f"{name}/{sums.parent.relative_to(path)}", not wrong, said)
                for file in [sums.name, *known]:
                    shipped.pop(str(sums.with_name(file).relative_to(path)), None)
            single = listed(path / "README.md")
            for file in sorted({*single, *shipped}):
                yield _asset(f"{name}/{file}", path / file, single.get(file))


def listed(file: Path) -> dict[str, str]:
    """Name -> SHA-256 of the files that a text lists, as `sha256sum` prints them."""
    text = file.read_text() if file.exists() else ""
    return {m[2]: m[1] for m in re.finditer(r"^([0-9a-f]{64})  (\S+)$", text, re.MULTILINE)}


def _matches(file: Path, digest: str) -> bool:
    return file.is_file() and hashlib.sha256(file.read_bytes()).hexdigest() == digest


def _asset(name: str, file: Path, digest: str | None) -> Finding:
    if not file.is_file():
        return Finding(name, False, "missing: reinstall xdistill")
    if digest is None:
        return Finding(name, None, "shipped without a checksum")
    same = _matches(file, digest)
    return Finding(name, same, "checksum matches" if same else "differs from its checksum: reinstall xdistill")


def teacher(args: Sequence[str]) -> list[Finding]:
    """The conformance suite on the domain's real teacher; `domain.*` and `teacher.*` overrides choose another one."""
    domain_class(split(args))
    cfg = compose(args)
    from xdistill.process import GaussianProcess
    from xdistill.sections import build_domain
    from xdistill.testing.conformance import check_domain, check_model

    domain = build_domain(cfg)
    checks = check_domain(domain)
    if isinstance(domain.process, GaussianProcess):
        batch = domain.data(32, seed=0).batch(0, 0, 1)
        checks += check_model(domain.teacher().eval(), domain.process, batch.like, batch.cond)
    return [Finding(c.name, c.ok, c.message) for c in checks]


def run_health(folder: Path) -> list[Finding]:
    """Likely causes of trouble in a run's health log, and whether its checkpoints are intact."""
    from xdistill import checkpoint
    from xdistill.health import diagnose

    log = folder / "health.jsonl"
    if not log.exists():
        raise XDistillError(f"no health.jsonl in {folder}: give the folder of a run of xdistill fit that has logged")
    findings = [Finding("health", False, line) for line in diagnose(log)] or [Finding("health", True, "nothing wrong")]
    for path in checkpoint.latest(folder / "checkpoints"):
        try:
            checkpoint.open_checkpoint(path)
            findings.append(Finding(path.name, True, "intact"))
        except XDistillError as error:
            findings.append(Finding(path.name, False, str(error)))
    return findings
