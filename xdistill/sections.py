"""From sections of a configuration to the domain and the objective they name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from xdistill import registry
from xdistill.domain import Domain
from xdistill.guidance import scales
from xdistill.objectives import Objective
from xdistill.times import anchors, lam_law, time_law


def plain(section: Any) -> dict[str, Any]:
    """A configuration section as plain, resolved Python values."""
    value = OmegaConf.to_container(section, resolve=True) if isinstance(section, DictConfig) else dict(section)
    assert isinstance(value, dict)
    return {str(k): v for k, v in value.items()}


def stated(section: Any) -> Any:
    """The section without its null keys: a key added since, whose default is null, changes nothing."""
    if not isinstance(section, Mapping):
        return section
    return {key: stated(value) for key, value in section.items() if value is not None}


def build_domain(cfg: DictConfig | Mapping[str, Any]) -> Domain:
    """The configured domain; raises UsageError for an unknown one or an unknown key of it."""
    section = plain(cfg["domain"])
    domain: Domain = registry.load("domains", section.pop("name"))(section)
    domain.teacher_weights = plain(cfg["teacher"]).get("weights", "shipped")
    domain.data_path = plain(cfg["data"]).get("path")
    return domain


def build_objective(cfg: DictConfig | Mapping[str, Any], domain: Domain) -> Objective:
    """The configured objective over the domain's process; raises UsageError for unknown options."""
    options = plain(cfg["objective"])
    name = options.pop("name")
    for key, make in (
        ("anchors", anchors),
        ("critic_time", time_law),
        ("student_time", time_law),
        ("time_law", time_law),
        ("lam", lam_law),
    ):
        if isinstance(options.get(key), dict):
            section = dict(options[key])
            options[key] = make(section.pop("name"), **section)
    objective = registry.call(registry.load("objectives", name), options, f"objective '{name}'", domain.process)
    if "guidance" in cfg and hasattr(objective, "guidance"):
        g = plain(cfg["guidance"])
        objective.guidance = scales(g["name"], g["scale"], g.get("critic"), g.get("critic_train"))
    return objective
