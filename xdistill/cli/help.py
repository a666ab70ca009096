"""What `--help` prints, from the dataclasses' docstrings and the comments of the group files: nothing is said twice."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from importlib.resources import files
from textwrap import fill
from typing import Any, get_type_hints

from omegaconf import DictConfig, OmegaConf

from xdistill import config
from xdistill.config import compose
from xdistill.overrides import GROUPS, parse

WIDTH = 110
ABOUT = {
    "fit": (
        "xdistill fit domain=NAME [group=CHOICE ...] [key=value ...]",
        "Distil the domain's teacher into a few-step student: train, save checkpoints, end with a table and a figure.\n"
        "objective=flow_matching trains a teacher instead. Ctrl-C saves; resume=auto continues.",
        (
            "xdistill fit domain=protein",
            "xdistill fit domain=toy objective=dmd train.steps=500 optim.student.lr=5e-4 out=runs/first",
            "xdistill fit domain=toy objective=sid strategy=deepspeed_z2 strategy.devices=2 resume=auto",
        ),
    ),
    "generate": (
        "xdistill generate domain=NAME [ckpt=RUN] [key=value ...]",
        "Draw samples into files, with a manifest (Parquet). The same command continues an interrupted\n"
        "or killed one. Under torchrun or Slurm ranks share the work; engine=ray spreads it over a cluster.",
        (
            "xdistill generate domain=protein num=16 length=64-128 steps=8 noise_scale=0.45 out=samples",
            "xdistill generate domain=protein ckpt=runs/protein_sid num=100 length=100 format=cif out=hundred",
            "xdistill generate domain=protein num=100000 length=60-128 format=packed filter=geometry keep=500 "
            "by=compactness diversity=0.5 out=night",
            "xdistill generate domain=toy ckpt=runs/toy_sid num=1000 batch=250 seed=1 out=points",
            "xdistill generate domain=speech text='Please hold the line.' steps=2 format=flac out=speech",
            "xdistill generate domain=speech text='Thank you. Please hold.' stream=true out=speech.wav",
        ),
    ),
    "extract": (
        "xdistill extract DIR out=OUT [key=value ...]",
        "Write samples of packed shards (generate format=packed) as files, the same that generate would have written.",
        (
            "xdistill extract candidates index=3,17,100-120 out=some",
            "xdistill extract candidates index=shortlist format=cif out=keepers",
        ),
    ),
    "evaluate": (
        "xdistill evaluate domain=NAME ckpt=RUN[,RUN] | dir=DIR[,DIR] | teacher=SAMPLER[,SAMPLER] [key=value ...]",
        "Measure samples with the domain's metrics and their 95 % intervals; print a table and save it as JSON.",
        (
            "xdistill evaluate domain=protein ckpt=runs/protein_sid num=100",
            "xdistill evaluate domain=toy ckpt=runs/toy_sid,runs/toy_dmd json=compare.json",
            "xdistill evaluate domain=protein dir=my_structures,samples metrics=mpnn,novelty html=report.html",
            "xdistill evaluate domain=protein ckpt=runs/student teacher=reference,ode teacher_steps=16 metrics=full",
            "xdistill evaluate domain=protein dir=samples metrics=designability domain.esmfold=weights/esmfold",
            "xdistill evaluate domain=text ckpt=runs/student teacher=reference,ancestral@8 curve=0.7,0.8,0.9,1 num=512",
        ),
    ),
    "bench": (
        "xdistill bench domain=NAME [ckpt=RUN] [key=value ...]",
        "Time the student against its teacher's reference sampler on this machine: network calls and seconds a sample.",
        (
            "xdistill bench domain=protein steps=16,8 json=bench.json",
            "xdistill bench domain=toy ckpt=runs/toy_sid batch=64 repeats=5",
            "xdistill bench domain=protein ckpt=runs/protein_sid length=128 steps=8",
            "xdistill bench domain=text num=512 domain.judge=ngram json=bench.json",
        ),
    ),
    "search-steps": (
        "xdistill search-steps domain=NAME ckpt=RUN [key=value ...]",
        "Place the times of a flow-map student's calls by ternary search (O3S), and keep them in the run's\n"
        "steps.json, where generate, evaluate and bench of that checkpoint find them; without it steps are equal.",
        (
            "xdistill search-steps domain=toy ckpt=runs/toy_interval steps=4",
            "xdistill search-steps domain=protein ckpt=runs/protein_interval steps=4 length=64 num=16",
            "xdistill search-steps domain=protein ckpt=runs/protein_interval steps=2 metric=score",
        ),
    ),
    "list": ("xdistill list", "The registered domains and objectives.", ("xdistill list",)),
    "doctor": (
        "xdistill doctor | doctor teacher domain=NAME | doctor run DIR",
        "Check this machine; run the conformance suite on a domain's teacher; or read a run's health log and name\n"
        "likely causes of trouble. Exits with 1 when something is wrong.",
        ("xdistill doctor", "xdistill doctor teacher domain=protein", "xdistill doctor run runs/protein_sid"),
    ),
}
SCHEMAS = {
    "generate": config.GenerateConfig,
    "extract": config.ExtractConfig,
    "evaluate": config.EvaluateConfig,
    "bench": config.BenchConfig,
    "search-steps": config.SearchStepsConfig,
}


def verb_help(verb: str, args: Sequence[str]) -> str:
    """The help of a verb; `domain=` and other group choices among `args` show their keys and values."""
    usage, purpose, examples = ABOUT[verb]
    parts = [f"usage: {usage}\n\n{purpose}"]
    if verb == "fit":
        parts += [_groups(), _fit_keys(args)]
    elif verb in SCHEMAS:
        parts.append(_schema_keys(SCHEMAS[verb], args))
    parts.append("examples\n" + "\n".join(f"  {e}" for e in examples))
    return "\n\n".join(parts)


def group_line(group: str, choice: str) -> str:
    """The leading comment of a group file; says so when a registered class ships none."""
    file = files("xdistill.configs") / group / f"{choice}.yaml"
    if not file.is_file():
        return "(an extension without a configuration file)"
    lines = (m[1] for line in file.read_text().splitlines() if (m := re.match(r"# (?!@package)(.*)", line)))
    return next(lines, "")


def meanings(choices: Mapping[str, str]) -> dict[str, str]:
    """Key path -> meaning, from the schema and from the chosen group files."""
    optim = _comments(files("xdistill.configs") / "fit.yaml")
    found = {
        f"optim.{'' if k in ('student', 'critic', 'discriminator') else 'default.'}{k}": v for k, v in optim.items()
    }
    found |= dict(_documented(config.FitConfig))
    for group, choice in choices.items():
        file = files("xdistill.configs") / group / f"{choice}.yaml"
        if file.is_file():
            found |= {f"{group}.{k}": v for k, v in _comments(file).items()}
    return found


def _groups() -> str:
    rows = []
    for group in GROUPS:
        folder = files("xdistill.configs") / group
        for choice in sorted(p.name.removesuffix(".yaml") for p in folder.iterdir()):
            rows.append((group, choice, group_line(group, choice)))
    lines, before = ["groups (group=choice; the recipe experiment=DOMAIN_OBJECTIVE is taken by itself)"], ""
    for group, choice, line in rows:
        name = group if group != before else ""
        lines.append(fill(line, WIDTH, initial_indent=f"  {name:11}{choice:20} ", subsequent_indent=" " * 34))
        before = group
    return "\n".join(lines)


def _fit_keys(args: Sequence[str]) -> str:
    given = {o.key_or_group: str(o.value()) for o in parse(args) if o.key_or_group in GROUPS}
    bare = [] if "domain" in given else ["domain=toy", *([] if "experiment" in given else ["experiment=none"])]
    cfg = compose([*bare, *args])
    choices = {"teacher": "shipped", "student": "teacher", "objective": str(cfg.objective.name), **given}
    known, lines = meanings(choices), ["keys (key=value; values shown are those of this command)"]
    for path, value in leaves(cfg):
        if path.startswith("domain.") and bare:
            continue
        name = f"set by {path.partition('.')[0]}=CHOICE" if path.endswith(".name") else ""
        lines.append(_key(path, value, known.get(path, name)))
    if bare:
        lines.append("  domain.*, and each recipe's own values: xdistill fit domain=NAME objective=NAME --help")
    return "\n".join(lines)


def leaves(cfg: DictConfig, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(path, value) of every key a user may set; sections that are one value (laws, anchors) stay whole."""
    for key, value in cfg.items():
        path = f"{prefix}{key!s}"
        if isinstance(value, DictConfig) and (not prefix or path == "optim.default"):
            yield from leaves(value, f"{path}.")
        else:
            yield path, OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def _schema_keys(schema: type[Any], args: Sequence[str]) -> str:
    from xdistill.cli.keys import domain_class, split

    docs = dict(_documented(schema))
    lines = ["keys (key=value)"]
    for f in fields(schema):
        lines.append(_key(f.name, "required" if f.default is MISSING else f.default, docs[f.name]))
    lines += [_key(key, None, docs[key]) for key in ("domain.KEY", "method.OPTION") if key in docs]
    if (pairs := split([a for a in args if "=" in a])).get("domain"):
        domain = domain_class(pairs)
        keys = domain.file_keys if schema is config.ExtractConfig else domain.request_keys
        lines += [_key(k, None, domain.request_keys[k]) for k in keys]
        if schema is config.GenerateConfig:
            lines += _filter_keys(domain)
        lines.append(f"  formats of {domain.name}: {', '.join(domain.formats)}")
    else:
        lines.append("  a domain's own keys: add domain=NAME to this --help")
    return "\n".join(lines)


def _filter_keys(domain: type[Any]) -> Iterator[str]:
    """Options of the domain's filters; a filter that is no dataclass has its names and defaults shown."""
    filters: Mapping[str, Any] = domain({}).filters()
    for name, factory in filters.items():
        known = dict(_documented(factory)) if isinstance(factory, type) and is_dataclass(factory) else {}
        options = inspect.signature(factory).parameters.items()
        yield from (_key(f"filter.{name}.{k}", p.default, known.get(k, "")) for k, p in options)


def _key(path: str, value: Any, meaning: str) -> str:
    shown = value
    if value is None or isinstance(value, bool):
        shown = str(value).lower().replace("none", "null")
    elif isinstance(value, dict):
        shown = "{" + ", ".join(f"{k}: {v}" for k, v in value.items()) + "}"
    head = f"  {path}={shown}"
    if len(head) > 32:
        return f"{head}\n" + fill(meaning, WIDTH, initial_indent=" " * 34, subsequent_indent=" " * 34)
    return fill(meaning, WIDTH, initial_indent=f"{head:33} ", subsequent_indent=" " * 34) or head


def _documented(schema: type[Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """(path, meaning) of a dataclass's fields, from a docstring of the form `a: meaning. b, c: meaning.`"""
    types, text = get_type_hints(schema), " ".join((schema.__doc__ or "").split())
    sections = [k for k, t in types.items() if is_dataclass(t)]
    names = [re.escape(k) for k in types if k not in sections] + [r"\w+\.\w+"]
    name = f"(?:{'|'.join(sorted(names, key=len, reverse=True))})"
    pieces = re.split(rf"(?:^|(?<=[.;] ))({name}(?:, {name})*): ", text)
    for keys, meaning in zip(pieces[1::2], pieces[2::2], strict=True):
        yield from ((f"{prefix}{key}", meaning.strip().rstrip(".;")) for key in keys.split(", "))
    for section in sections:
        yield from _documented(types[section], f"{prefix}{section}.")


def _comments(file: Any) -> dict[str, str]:
    """Key -> trailing comment of a YAML file."""
    found = {}
    for line in file.read_text().splitlines():
        if match := re.match(r"\s*(\w+):.*?\s#\s(.*)$", line):
            found[match[1]] = match[2]
    return found
