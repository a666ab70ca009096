"""`xdistill extract`: samples of packed shards as files, the same that generate would have written one by one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from xdistill.cli.keys import read, split
from xdistill.config import ExtractConfig, compose
from xdistill.errors import UsageError
from xdistill.registry import nearest

LISTED = 5  # missing samples that a message names
BY_NAME = ("all", "passed", "shortlist")


def run(args: Sequence[str]) -> int:
    """Check the request, then write the files; a repeated command writes the same ones again."""
    if not args or "=" in args[0]:
        raise UsageError("extract from where? Give the folder first: xdistill extract DIR out=OUT")
    folder, pairs = Path(args[0]), split(args[1:])
    own = {f.name for f in fields(ExtractConfig)}
    cfg, _ = read(ExtractConfig, {k: v for k, v in pairs.items() if k in own})
    if not folder.is_dir():
        raise UsageError(f"no folder {folder}: give one of xdistill generate format=packed")
    if cfg.out is None:
        raise UsageError("extract to where? Give out=OUT, a folder for the files")
    from xdistill.generation.shards import find_shards, read_shard, write_design
    from xdistill.sections import build_domain

    domain = build_domain(compose([f"domain={_domain(folder, cfg.domain)}"]))
    _, files = read(ExtractConfig, pairs, {k: domain.request_keys[k] for k in domain.file_keys})
    domain = domain.for_request(**{k: v for k, v in _request(folder).items() if k in domain.file_keys} | files)
    format = cfg.format or domain.formats[0]
    if format not in domain.formats:
        raise UsageError(f"unknown format '{format}'{nearest(format, domain.formats)}")
    shards, wanted, out = find_shards(folder, domain), _wanted(folder, cfg.index), Path(cfg.out)
    found: set[int] = set()
    for path in track(shards, "extract", console=Console(stderr=True), disable=len(shards) == 1):
        for index, sample in read_shard(path, domain).items():
            if wanted is None or index in wanted:
                write_design(out, domain, index, sample, format)
                found.add(index)
        if found == wanted:
            break
    if wanted is not None and (missing := sorted(wanted - found)):
        some = ", ".join(map(str, missing[:LISTED])) + (", ..." if len(missing) > LISTED else "")
        raise UsageError(
            f"{folder} does not hold {len(missing)} of the samples asked for ({some}): ask for others, or index=all"
        )
    print(f"{len(found)} samples in {out}")
    return 0


def _domain(folder: Path, name: str | None) -> str:
    """What was asked for, or what the folder's request says."""
    if name:
        return name
    request = _request(folder)
    if "domain" not in request:
        raise UsageError(f"{folder} has no request.json of generate: say of which domain it is, domain=NAME")
    return str(request["domain"])


def _request(folder: Path) -> dict[str, Any]:
    """What generate was asked for; empty when the folder does not say."""
    try:
        return dict(json.loads((folder / "request.json").read_text()))
    except (OSError, ValueError, TypeError):
        return {}


def _wanted(folder: Path, index: str) -> set[int] | None:
    """Indices that were asked for, none for all; raises UsageError when the folder has no such list."""
    from xdistill.generation import manifest
    from xdistill.generation.shards import parse_indices

    if index == "all":
        return None
    if index not in BY_NAME:
        return parse_indices(index)
    path = folder / ("shortlist.parquet" if index == "shortlist" else "manifest.parquet")
    if not path.exists():
        how = "generate with keep=NUMBER by=COLUMN" if index == "shortlist" else "let generate finish"
        raise UsageError(f"index={index}: there is no {path}: {how} first")
    rows = manifest.read(path)
    return set((rows if index == "shortlist" else rows.filter(rows["passed"]))["index"].to_pylist())
