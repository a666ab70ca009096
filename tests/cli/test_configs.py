"""The configuration tree: every file composes, every pair of domain and objective builds or says why not."""

from __future__ import annotations

import inspect
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

import xdistill.configs
from xdistill import registry
from xdistill.cli.help import leaves, meanings, verb_help
from xdistill.compat import compatibility
from xdistill.config import compose, role_optim
from xdistill.engine import OptimConfig
from xdistill.errors import UsageError
from xdistill.objectives.didi import DiDi
from xdistill.overrides import GROUPS, LAWS
from xdistill.process import GaussianProcess, Linear, MaskProcess
from xdistill.sections import build_domain, build_objective

TREE = Path(xdistill.configs.__file__).parent
FILES = sorted(p.relative_to(TREE).with_suffix("") for p in TREE.glob("*/*.yaml"))
DOMAINS = {
    "toy": ([], ["domain.task=tokens"], ["domain.task=gaussian"]),
    "protein": ([],),
    "speech": ([],),
    "text": ([],),
}
OBJECTIVES: dict[str, list[str]] = {
    "sid": [],
    "dmd": ["objective.gan_weight=0.1"],
    "flow_matching": [],
    "tdm": ["objective.steps=[1,4]"],
    "secant": [],
}
TOKEN_OBJECTIVES: dict[str, list[str]] = {
    "mdlm": [],
    "idlm": [],
    "mmd": [],
    "didi": ["objective.importance_weight=true"],
    "sdtt": ["objective.rounds=3"],
    "dcd": ["objective.rounds=3"],
    "bd3": [],
}
OBJECTIVES |= TOKEN_OBJECTIVES
#: Objectives whose students take a second time, on the linear path; files other than the class's own are its presets.
FLOW_MAPS: dict[str, list[str]] = {
    "splitmeanflow": [],
    "shortcut": [],
    "meanflow": ["objective.derivative=finite_difference"],
    "alphaflow": ["objective.lam.end=5"],
    "improved_meanflow": ["objective.velocity=teacher"],
    "intmeanflow": ["objective.times=[1,0.6,0]"],
    "cmt": ["objective.pairs=4"],
    "consistency": ["objective.states=rollout", "objective.heun=false"],
}
OBJECTIVES |= FLOW_MAPS
PRESETS = {"splitmeanflow": "interval", "shortcut": "interval", "meanflow": "interval", "alphaflow": "interval"}
MANDATORY = {
    "teacher/file": ["teacher.weights=x"],
    "student/file": ["student.init=x"],
    "data/folder": ["data.path=x"],
    "guidance/autoguidance": ["guidance.weak=x"],
}
#: Pairs that cannot run although the process is right, and the reason a user is given.
IMPOSSIBLE = {("toy", "bd3"): "block after block", ("speech", "dmd"): "needs a discriminator"}


def test_groups_are_the_folders() -> None:
    assert {p.parent.name for p in FILES} == set(GROUPS)


@pytest.mark.parametrize("file", FILES, ids=str)
def test_every_file_composes(file: Path) -> None:
    group, choice = file.parts
    domain = choice if group == "domain" else choice.partition("_")[0] if group == "experiment" else "toy"
    objective = choice.partition("_")[2] if group == "experiment" else ""
    args = [f"domain={domain if domain in DOMAINS else 'toy'}"]
    args += [f"objective={objective}"] if objective in OBJECTIVES else []
    if group not in ("domain", "experiment"):
        args += [f"{group}={choice}"]
    if group != "experiment":
        args += ["experiment=none"]  # a recipe may change what any other file says
    cfg = compose([*args, *MANDATORY.get(str(file), [])])
    path = (TREE / file).with_suffix(".yaml")
    own = OmegaConf.to_container(OmegaConf.load(path)) or {}
    own.pop("defaults", None)  # says which other files come in, and is no key
    for key, value in flat(own if "@package _global_" in path.read_text() else {group: own}):
        if value != "???":
            assert OmegaConf.select(cfg, key) == value


def flat(tree: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs = []
    for key, value in tree.items():
        pairs += flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(f"{prefix}{key}", value)]
    return pairs


def test_every_registered_class_is_covered_here() -> None:
    assert set(registry.names("domains")) == set(DOMAINS)
    assert set(registry.names("objectives")) == {PRESETS.get(name, name) for name in OBJECTIVES}


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize(("domain", "options"), [(d, o) for d, many in DOMAINS.items() for o in many])
def test_matrix(domain: str, options: list[str], objective: str) -> None:
    cfg = compose([f"domain={domain}", f"objective={objective}", *options, *OBJECTIVES[objective]])
    built = build_domain(cfg)
    method = build_objective(cfg, built)
    needed = MaskProcess if objective in TOKEN_OBJECTIVES else Linear if objective in FLOW_MAPS else GaussianProcess
    fits = isinstance(built.process, needed)
    if not fits or (domain, objective) in IMPOSSIBLE:
        reason = IMPOSSIBLE[domain, objective] if fits else f"needs a {needed.__name__}"
        with pytest.raises(UsageError, match=reason):
            compatibility(cfg, built, method)
    else:
        compatibility(cfg, built, method)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_group_file_lists_every_option_with_its_default(objective: str) -> None:
    """So `--help` shows all there is, and the file cannot drift from the code."""
    listed = yaml.safe_load((TREE / "objective" / f"{objective}.yaml").read_text())
    parameters = inspect.signature(registry.load("objectives", PRESETS.get(objective, objective))).parameters
    assert set(listed) - {"name"} == set(parameters) - {"process"}
    for key, parameter in parameters.items():
        own = objective not in ("shortcut", "meanflow", "alphaflow")  # those set options to what their paper says
        if own and key not in LAWS and parameter.default not in (None, inspect.Parameter.empty):
            default = parameter.default
            assert listed[key] == (list(default) if isinstance(default, tuple) else default)


def test_didi_paper_is_the_preset() -> None:
    cfg = compose(["domain=text", "objective=didi_paper"])
    domain = build_domain(cfg)
    configured, preset = build_objective(cfg, domain), DiDi.paper(domain.process)
    assert vars(configured) == vars(preset)


def test_laws_of_the_group_files_are_the_code_defaults() -> None:
    for objective in set(registry.names("objectives")) - {"interval"} | {"splitmeanflow"}:
        cfg = compose(["domain=toy", f"objective={objective}", "experiment=none"])
        domain = build_domain(cfg)
        configured = build_objective(cfg, domain)
        default = registry.load("objectives", PRESETS.get(objective, objective))(domain.process)
        for law in LAWS:
            if law in cfg.objective:
                assert getattr(configured, law) == getattr(default, law)


def test_optim_defaults_are_the_code_defaults() -> None:
    cfg = compose(["domain=toy", "experiment=none"])
    listed = role_optim(cfg, "student")
    assert {**listed, "betas": tuple(listed["betas"])} == asdict(OptimConfig())


def test_domain_files_are_the_code_defaults() -> None:
    for name in registry.names("domains"):
        section = OmegaConf.to_container(compose([f"domain={name}", "experiment=none"]).domain)
        bare = registry.load("domains", name)({})
        options = asdict(getattr(bare, name))
        assert section == {"name": name} | {k: list(v) if isinstance(v, tuple) else v for k, v in options.items()}


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_key_has_a_meaning(objective: str) -> None:
    cfg = compose(["domain=protein", f"objective={objective}"])
    known = meanings({"domain": "protein", "objective": objective, "teacher": "shipped", "student": "teacher"})
    assert [path for path, _ in leaves(cfg) if not known.get(path) and not path.endswith(".name")] == []


@pytest.mark.parametrize("verb", ["fit", "generate", "evaluate", "bench"])
def test_help_covers_keys_and_groups(verb: str) -> None:
    text = verb_help(verb, ["domain=protein"])
    assert "examples" in text
    expected = [p for p, _ in leaves(compose(["domain=protein"]))] + list(GROUPS) if verb == "fit" else ["length"]
    assert [word for word in expected if word not in text] == []


def test_command_line_beats_the_recipe() -> None:
    cfg = compose(["domain=protein", "objective=dmd", "optim.default.lr=3e-4", "objective.anchors=log"])
    assert cfg.objective.name == "dmd"
    assert cfg.objective.anchors == {"name": "log"}
    assert role_optim(cfg, "discriminator")["lr"] == 3e-4  # the recipe says nothing of this role
    assert "alpha" not in cfg.objective


def test_group_chosen_by_hand_beats_the_recipe() -> None:
    assert compose(["domain=protein"]).sampler.noise_scale < 1
    assert compose(["domain=protein", "sampler=trained"]).sampler.noise_scale == 1
    assert compose(["domain=protein", "sampler=trained", "sampler.noise_scale=0.7"]).sampler.noise_scale == 0.7


def test_an_extension_needs_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """A registered class without a group file is a choice; its constructor says which keys there are."""
    known, load = registry.names, registry.load
    monkeypatch.setattr(registry, "names", lambda kind: [*known(kind), *(["mine"] if kind == "objectives" else [])])
    monkeypatch.setattr(registry, "load", lambda kind, name: load(kind, "sid" if name == "mine" else name))
    cfg = compose(["domain=toy", "objective=mine", "objective.alpha=0.5"])
    assert cfg.objective == {"name": "mine", "alpha": 0.5}
    with pytest.raises(UsageError, match="did you mean 'alpha'"):
        compose(["domain=toy", "objective=mine", "objective.alhpa=0.5"])
