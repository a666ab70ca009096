"""Command-line overrides -> a checked configuration: Hydra composes, and every mistake becomes one line."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from xdistill import registry
from xdistill.config import FitConfig
from xdistill.errors import UsageError

GROUPS = (
    "domain",
    "objective",
    "experiment",
    "teacher",
    "student",
    "data",
    "sampler",
    "strategy",
    "precision",
    "ema",
    "guidance",
    "eval",
    "logger",
)
LAWS = ("anchors", "time_law", "critic_time", "student_time", "lam")
CHOICES = {
    "resume": ("never", "auto", "previous"),
    "strategy.name": ("single", "ddp", "deepspeed"),
    "train.guard": ("off", "warn", "stop"),
    "strategy.accelerator": ("auto", "cpu", "gpu"),
    "guidance.name": ("none", "cfg", "autoguidance", "lsg", "short", "zero_cfg", "anti_cfg"),
}
POSITIVE = (
    "train.steps",
    "train.checkpoint_every",
    "train.log_every",
    "train.keep",
    "train.skip_limit",
    "train.guard_every",
    "data.batch",
    "strategy.devices",
    "strategy.nodes",
    "objective.steps",
    "objective.critic_updates",
    "objective.sample_steps",
)
KINDS = {bool: "true or false", int: "an integer", float: "a number", str: "a text", list: "a list", dict: "a mapping"}


def composed(overrides: Sequence[str]) -> DictConfig:
    """See `xdistill.config.compose`."""
    parsed = parse(overrides)
    _register()
    with initialize_config_module("xdistill.configs", version_base="1.3"):
        choices = [o for o in parsed if o.key_or_group in GROUPS]
        for o in choices:
            _check_choice(o)
        if not any(o.key_or_group == "domain" for o in choices):
            raise UsageError(f"which domain? Give domain=NAME: {', '.join(options('domain'))}")
        base = _chosen({o.key_or_group: str(o.value()) for o in choices})
    values = [o for o in parsed if o.key_or_group not in GROUPS]
    for o in values:
        _check_value(base, o.key_or_group.split("."), o.value())
    cfg = _updated(base, values)
    _normalise(base, cfg)
    _check_whole(cfg)
    OmegaConf.resolve(cfg)
    return cfg


def parse(overrides: Sequence[str]) -> list[Override]:
    """`key=value` strings in Hydra's grammar; raises UsageError for anything else, sweeps included."""
    parsed = []
    for text in overrides:
        try:
            override = OverridesParser.create().parse_override(text)
        except HydraException as error:
            raise UsageError(f"cannot read '{text}': expected key=value (quote special characters)") from error
        if override.type is None or override.type.name != "CHANGE":
            raise UsageError(f"cannot use '{text}': write {override.key_or_group}=value without + or ~")
        if override.is_sweep_override():
            raise UsageError(f"'{text}' gives several values: one run takes one; a list is written [a,b]")
        parsed.append(override)
    return parsed


def options(group: str) -> list[str]:
    """Choices of a group: its files, plus registered domains and objectives that have none.

    Call it inside an initialised Hydra, as `composed` does.
    """
    return sorted(GlobalHydra.instance().config_loader().get_group_options(group))


def _register() -> None:
    """The schema, and a bare configuration of every registered class without a file of its own."""
    store = ConfigStore.instance()
    store.store(name="fit_schema", node=FitConfig)
    with initialize_config_module("xdistill.configs", version_base="1.3"):
        known = {group: options(group) for group in ("domain", "objective")}
    for group, have in known.items():
        for name in set(registry.names(f"{group}s")) - set(have):
            store.store(group=group, name=name, node={"name": name})


def _check_choice(override: Override) -> None:
    group, choice = override.key_or_group, override.value()
    if choice not in (known := options(group)):
        raise UsageError(f"unknown {group} '{choice}'{registry.nearest(str(choice), known)}")


def _chosen(choices: Mapping[str, str]) -> DictConfig:
    """The groups and the recipe; what was chosen by hand beats the recipe."""
    base = _hydra([f"{group}={choice}" for group, choice in choices.items()])
    if by_hand := set(choices) - {"domain", "objective", "experiment"}:
        bare = _hydra([f"{group}={choice}" for group, choice in {**choices, "experiment": "none"}.items()])
        for group in by_hand:
            base[group] = bare[group]
    return base


def _hydra(choices: list[str]) -> DictConfig:
    try:
        return compose("fit", choices)
    except (HydraException, OmegaConfBaseException) as error:
        raise UsageError(f"cannot compose the configuration: {_first_line(error)}") from error


def _updated(base: DictConfig, values: Sequence[Override]) -> DictConfig:
    """A copy of `base` with the values, whose keys have been checked, set or added."""
    cfg = copy.deepcopy(base)
    for o in values:
        try:
            OmegaConf.update(cfg, o.key_or_group, o.value(), merge=True, force_add=True)
        except OmegaConfBaseException as error:
            raise UsageError(f"cannot set '{o.input_line}': {_first_line(error)}") from error
    return cfg


def _first_line(error: Exception) -> str:
    return str(getattr(error, "msg", None) or error).partition("\n")[0]


def _check_value(base: DictConfig, path: list[str], value: Any) -> None:
    """Raise UsageError unless `path` is a key of the configuration and `value` has its type."""
    node: Any = base
    for depth, part in enumerate(path):
        known = _keys(base, path[:depth], node)
        if known is None:
            return
        if part not in known:
            full = ".".join(path)
            prefix = ".".join(path[:depth])
            where = f" of '{prefix}'" if prefix else ""
            raise UsageError(f"unknown key '{full}': '{part}' is not a key{where}{registry.nearest(part, known)}")
        node = node.get(part) if isinstance(node, DictConfig) and not OmegaConf.is_missing(node, part) else None
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _check_value(base, [*path, str(key)], inner)
    elif path[0] == "objective" and len(path) == 3 and path[1] in LAWS and path[2] != "name":
        _check_type(".".join(path), 0.5, value)  # every option of a law is a number
    else:
        _check_type(".".join(path), node, value)


def _keys(base: DictConfig, path: list[str], node: Any) -> set[str] | None:
    """Keys allowed below `path`; None when anything is."""
    have = {str(k) for k in node} if isinstance(node, DictConfig) else set()
    match path:
        case ["optim", _]:
            return {str(k) for k in base.optim.default}
        case ["strategy", "options", *_] | ["strategy", "stage"]:
            return None
        case ["domain"] if have == {"name"} and str(base.domain.name) not in _shipped("domain"):
            return None
        case ["objective"]:
            return have | _signature(registry.load("objectives", base.objective.name))
        case ["objective", law] if law in LAWS:
            return have | _law_options()
    return have


def _shipped(group: str) -> set[str]:
    from importlib.resources import files

    return {p.name.removesuffix(".yaml") for p in (files("xdistill.configs") / group).iterdir()}


def _signature(target: type) -> set[str]:
    parameters = list(inspect.signature(target).parameters.values())
    return {"name"} | {p.name for p in parameters[1:] if p.kind is not p.VAR_KEYWORD}  # the first is the process


def _law_options() -> set[str]:
    from xdistill import times

    laws = (*times._LAWS.values(), *times._ANCHORS.values(), *times._LAMS.values())
    return {"name"} | {f.name for law in laws for f in fields(law)}


def _check_type(key: str, default: Any, value: Any) -> None:
    """The type of the default is the type of the key; a default of null or ??? allows every value."""
    if default is None or (isinstance(value, str) and "${" in value):
        return
    if key == "strategy.stage" and isinstance(value, int):
        return
    if key == "objective.steps" and all(type(k) is int for k in (value if isinstance(value, list) else [value])):
        return  # a number, or a list of them for an any-step student, whatever the recipe says
    containers: dict[type, type] = {ListConfig: list, DictConfig: dict}
    expected = containers.get(type(default), type(default))
    fits = {
        float: isinstance(value, (int, float)) and not isinstance(value, bool),
        int: isinstance(value, int) and not isinstance(value, bool),
        str: isinstance(value, (str, int, float)),
        dict: isinstance(value, str) and key.rpartition(".")[2] in LAWS,
    }
    if not fits.get(expected, isinstance(value, expected)):
        raise UsageError(f"{key}={value}: expected {KINDS.get(expected, expected.__name__)}, e.g. {key}={default}")


def _normalise(base: DictConfig, cfg: DictConfig) -> None:
    """`anchors=log` means `anchors={name: log}`; an integer where the default is a float is that float."""
    for key, value in cfg.objective.items():
        if key in LAWS and isinstance(value, str):
            cfg.objective[key] = {"name": value}
        elif isinstance(value, int) and isinstance(base.objective.get(key), float):
            cfg.objective[key] = float(value)


def _check_whole(cfg: DictConfig) -> None:
    if missing := sorted(OmegaConf.missing_keys(cfg)):
        raise UsageError(f"{missing[0]} is required: give {missing[0]}=VALUE")
    for key, choices in CHOICES.items():
        if (value := OmegaConf.select(cfg, key)) not in choices:
            raise UsageError(f"unknown {key} '{value}'{registry.nearest(str(value), choices)}")
    for key in POSITIVE:
        value = OmegaConf.select(cfg, key)
        if isinstance(value, int) and value < 1:
            raise UsageError(f"{key}={value}: expected at least 1")
