"""Bad input, one case a row: one line on stderr that names the fix, exit code 1 or 2, nothing lost or overwritten."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from cli_runs import QUICK, Outcome, snapshot

from xdistill.folder import RunFolder


@dataclass
class Place:
    """Where a case happens: a copy of a finished toy run, and a folder for what else it needs."""

    run: Path
    folder: Path
    held: RunFolder | None = None

    @property
    def newest(self) -> Path:
        return self.run / "checkpoints" / "step_4"


@dataclass(frozen=True)
class Case:
    """`prepare` damages the place and returns the command line; only a file in `touches` may change."""

    name: str
    prepare: Callable[[Place], list[str]]
    code: int
    says: tuple[str, ...]
    touches: tuple[str, ...] = ()


def words(line: str) -> Callable[[Place], list[str]]:
    """A command line without preparation; {run} and {folder} stand for the place's paths."""
    return lambda place: line.format(run=place.run, folder=place.folder).split()


def resume(*args: str) -> list[str]:
    """The finished run's own command line, to continue it."""
    return ["fit", "domain=toy", *QUICK, "train.steps=4", "train.checkpoint_every=2", "resume=auto", *args]


class Payload:
    """Executed when unpickled blindly: writes a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, ...]:
        return Path.write_text, (self.trace, "executed")


def hostile_weights(place: Place) -> list[str]:
    (place.folder / "evil.ckpt").write_bytes(pickle.dumps(Payload(place.folder / "trace")))
    return ["fit", "domain=protein", *QUICK, "teacher=file", f"teacher.weights={place.folder / 'evil.ckpt'}"]


def hostile_state(place: Place) -> list[str]:
    shutil.rmtree(place.newest)
    before = place.run / "checkpoints" / "step_2"
    state = before / "engines" / "student" / "rank0.pt"
    state.write_bytes(pickle.dumps(Payload(place.folder / "trace")))
    edit_manifest(before, lambda m: m["sha256"].update({"engines/student/rank0.pt": sha256(state)}))
    return resume(f"out={place.run}")


def edit_manifest(checkpoint: Path, edit: Callable[[dict], object]) -> None:
    path = checkpoint / "manifest.json"
    manifest = json.loads(path.read_text())
    edit(manifest)
    path.write_text(json.dumps(manifest))


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def truncated(place: Place) -> list[str]:
    weights = place.newest / "roles" / "student_ema.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    return ["generate", "domain=toy", f"ckpt={place.newest}", f"out={place.folder / 'samples'}"]


def truncated_resume(place: Place) -> list[str]:
    truncated(place)
    return resume(f"out={place.run}")


def damaged_manifest(place: Place) -> list[str]:
    (place.newest / "manifest.json").write_text('{"schema": 1, "sha')
    return ["generate", "domain=toy", f"ckpt={place.newest}"]


def no_manifest(place: Place) -> list[str]:
    (place.newest / "manifest.json").unlink()
    return ["generate", "domain=toy", f"ckpt={place.newest}"]


def other_schema(place: Place) -> list[str]:
    edit_manifest(place.newest, lambda m: m.update(schema=99))
    return ["generate", "domain=toy", f"ckpt={place.newest}"]


def other_architecture(place: Place) -> list[str]:
    """A manifest that describes a smaller network than the weights are of, as after a bad merge of two folders."""
    edit_manifest(place.newest, lambda m: m["network"].update(width=32))
    return ["generate", "domain=toy", f"ckpt={place.newest}"]


def no_checkpoints(place: Place) -> list[str]:
    shutil.rmtree(place.run / "checkpoints")
    (place.run / "checkpoints").mkdir()
    return ["evaluate", "domain=toy", f"ckpt={place.run}"]


def pdb(n: int, element: str = "CA", x: str = "") -> str:
    """A straight chain of n residues in PDB format; `x` replaces the first x coordinate."""
    lines = []
    for i in range(n):
        first = x if x and i == 0 else f"{3.8 * i:8.3f}"
        lines.append(
            f"ATOM  {i + 1:5d}  {element:<3} ALA A{i + 1:4d}    {first:>8}{0:8.3f}{0:8.3f}  1.00  0.00           C  "
        )
    return "\n".join([*lines, "END", ""])


def structures(content: str | None) -> Callable[[Place], list[str]]:
    def prepare(place: Place) -> list[str]:
        if content is not None:
            (place.folder / "a.pdb").write_text(content)
        new = place.run.parent / "new"
        return words(f"fit domain=protein objective=flow_matching data.path={place.folder} out={new}")(place)

    return prepare


def in_use(place: Place) -> list[str]:
    place.held = RunFolder(place.run)  # this process is the other run
    place.held.lock()
    return resume(f"out={place.run}")


def foreign_folder(place: Place) -> list[str]:
    (place.folder / "thesis.tex").write_text("years of work")
    return ["generate", "domain=toy", f"ckpt={place.run}", f"out={place.folder}"]


def other_request(place: Place) -> list[str]:
    (place.folder / "request.json").write_text(json.dumps({"num": 5, "seed": 0}))
    return ["generate", "domain=toy", f"ckpt={place.run}", f"out={place.folder}", "num=5", "seed=1"]


TOY, NEW = "fit domain=toy " + " ".join(QUICK) + " ", " out={folder}/new"
TOLD = TOY + "guidance=cfg guidance.range=[1,4] "
DATA = "objective=improved_meanflow objective.velocity=data objective.drop=0.1 "
CASES = [
    Case("no verb", words("fti domain=toy"), 2, ("unknown verb 'fti'", "'fit'")),
    Case("fit without domain", words("fit"), 2, ("domain=NAME", "protein, speech, text, toy")),
    Case("generate without domain", words("generate num=3"), 2, ("domain=NAME", "protein, speech, text, toy")),
    Case("evaluate without domain", words("evaluate"), 2, ("domain=NAME", "protein, speech, text, toy")),
    Case("bench without domain", words("bench"), 2, ("domain=NAME", "protein, speech, text, toy")),
    Case("doctor teacher without domain", words("doctor teacher"), 2, ("domain=NAME", "protein, speech, text, toy")),
    Case("unknown domain", words("fit domain=protien"), 2, ("unknown domain 'protien'", "'protein'")),
    Case("unknown domain to generate", words("generate domain=tou"), 2, ("unknown domain 'tou'", "'toy'")),
    Case("unknown objective", words(TOY + "objective=dmdd"), 2, ("unknown objective 'dmdd'", "'dmd'")),
    Case("unknown strategy", words(TOY + "strategy=deepspeed_z4"), 2, ("unknown strategy", "deepspeed_z")),
    Case("unknown section", words(TOY + "trian.steps=1"), 2, ("'trian.steps'", "'train'")),
    Case("unknown key", words(TOY + "train.stpes=1"), 2, ("'train.stpes'", "'steps'")),
    Case("unknown objective key", words(TOY + "objective.alhpa=1"), 2, ("'objective.alhpa'", "'alpha'")),
    Case("unknown optim key", words(TOY + "optim.student.lrr=1"), 2, ("'optim.student.lrr'", "'lr'")),
    Case("unknown role", words(TOY + "optim.studnet.lr=1"), 2, ("'optim.studnet.lr'", "'student'")),
    Case("unknown domain key", words(TOY + "domain.mode=1"), 2, ("'domain.mode'", "'modes'")),
    Case(
        "key inside a mapping", lambda p: [*words(TOY)(p), "optim.critic={lrr: 1}"], 2, ("'optim.critic.lrr'", "'lr'")
    ),
    Case("unknown law", words(TOY + "objective.critic_time.name=unifrom"), 2, ("'unifrom'", "'uniform'")),
    Case("unknown anchors", words(TOY + "objective.anchors=lgo"), 2, ("'lgo'", "'log'")),
    Case("option of another law", words(TOY + "objective.anchors.k_first=3"), 2, ("'k_first'", "anchors 'linear'")),
    Case("unknown weight", words(TOY + "objective.weight=mean"), 2, ("'mean'", "mean_abs")),
    Case("key of another verb", words("generate domain=toy nmu=3"), 2, ("'nmu'", "'num'")),
    Case("wrong type", words(TOY + "data.batch=abc"), 2, ("data.batch=abc", "an integer")),
    Case("wrong type of an objective", words(TOY + "objective.steps=1.5"), 2, ("objective.steps=1.5", "an integer")),
    Case("wrong type of a law", words(TOY + "objective.anchors.first=x"), 2, ("objective.anchors.first=x", "a number")),
    Case("wrong type to generate", words("generate domain=toy num=x"), 2, ("num=x", "an integer")),
    Case("out of range", words(TOY + "train.steps=0"), 2, ("train.steps=0", "at least 1")),
    Case("times out of range", words(TOY + "objective.critic_time.high=2"), 2, ("objective.critic_time", "high=2")),
    Case("not key=value", words(TOY + "steps"), 2, ("'steps'", "key=value")),
    Case("sweep", words(TOY + "seed=1,2"), 2, ("seed=1,2", "one run takes one")),
    Case("unknown flag", words("fit --steps=3"), 2, ("--steps=3", "key=value")),
    Case("mandatory value", words(TOY + "teacher=file"), 2, ("teacher.weights=VALUE",)),
    Case(
        "pair without a process",
        words(TOY + "domain.task=tokens" + NEW),
        2,
        ("'sid'", "GaussianProcess", "MaskProcess"),
    ),
    Case("nothing to guide", words(TOY + "objective=flow_matching guidance=cfg" + NEW), 2, ("guidance=none",)),
    Case("told, one-step", words(TOLD + "objective=sid" + NEW), 2, ("average velocities", "'sid'")),
    Case("told, no network", words(TOLD + "objective=splitmeanflow" + NEW), 2, ("'toy'", "leave guidance.range out")),
    Case("told, usual one outside", words(TOLD + "objective=cmt guidance.scale=5" + NEW), 2, ("scale=5", "[1.0, 4.0]")),
    Case("told, unguided", words(TOY + "objective=cmt guidance.range=[1,4]" + NEW), 2, ("guidance=cfg",)),
    Case("told, wrong order", words(TOY + "objective=cmt guidance=cfg guidance.range=[4,1]" + NEW), 2, ("low < high",)),
    Case("told, null branch", words(TOLD + DATA + "objective.drop=0" + NEW), 2, ("objective.drop=0.1",)),
    Case("told, autoguided", words(TOLD + DATA + "guidance=autoguidance guidance.weak=x" + NEW), 2, ("guidance=cfg",)),
    Case("told, interval", words(TOLD + DATA + "guidance.interval=[0.2,0.8]" + NEW), 2, ("guidance.interval",)),
    Case("told, untold student", words("generate domain=speech guidance=2"), 2, ("knows one scale", "guidance.range=")),
    Case("two processes, single", words(TOY + "strategy.devices=2" + NEW), 2, ("strategy=ddp",)),
    Case(
        "no GPU",
        words(TOY + "strategy=ddp strategy.accelerator=gpu strategy.devices=64" + NEW),
        2,
        ("accelerator=cpu",),
    ),
    Case("checkpoint missing", words("generate domain=toy ckpt={folder}/none"), 1, ("no checkpoint at", "run folder")),
    Case("run without checkpoints", no_checkpoints, 1, ("no checkpoint yet",)),
    Case("no shipped student", words("generate domain=toy"), 2, ("ships no student", "ckpt=RUN")),
    Case("checkpoint truncated", truncated, 1, ("damaged", "student_ema.safetensors")),
    Case("checkpoint truncated, resumed", truncated_resume, 1, ("damaged", "resume=previous", "step_2")),
    Case("manifest damaged", damaged_manifest, 1, ("manifest.json is damaged", "another checkpoint")),
    Case("manifest missing", no_manifest, 1, ("no manifest.json", "incomplete")),
    Case("other schema", other_schema, 1, ("schema 99", "the version that wrote it")),
    Case("other domain", words("generate domain=protein ckpt={run}"), 1, ("domain 'toy'", "domain=toy")),
    Case("other network", other_architecture, 1, ("student_ema", "do not fit")),
    Case("hostile weights", hostile_weights, 1, ("evil.ckpt",)),
    Case("hostile optimizer state", hostile_state, 1, ("rank0.pt", "not unpickled"), ("run/config.yaml",)),
    Case("student of no run", words(TOY + "student=file student.init={folder}/no" + NEW), 1, ("no checkpoint at",)),
    Case(
        "weights missing",
        words("fit domain=protein teacher=file teacher.weights={folder}/no.safetensors" + NEW),
        1,
        ("no.json does not exist", "NAME.safetensors"),
    ),
    Case(
        "data folder missing",
        words("fit domain=protein objective=flow_matching data.path={folder}/no" + NEW),
        1,
        ("not a folder",),
    ),
    Case("data folder empty", structures(None), 1, ("no structure file",)),
    Case("no CA atoms", structures(pdb(50, "CB")), 1, ("no CA atom", "protein structures")),
    Case("NaN coordinates", structures(pdb(50, x="nan")), 1, ("non-finite coordinates", "repair")),
    Case("2-residue chain", structures(pdb(2)), 1, ("too short", "min_length")),
    Case("lengths of training", words("fit domain=protein domain.max_length=400" + NEW), 2, ("40-400", "40-128")),
    Case("folder in use", in_use, 2, ("is using", "another out=")),
    Case("folder used before", words(TOY + "out={run}"), 2, ("resume=auto", "another out=")),
    Case(
        "resumed otherwise", lambda p: resume(f"out={p.run}", "objective.alpha=0.5"), 2, ("objective=", "same settings")
    ),
    Case("resume what", words(TOY + "resume=yes out={run}"), 2, ("'yes'", "auto, never, previous")),
    Case("samples over other files", foreign_folder, 2, ("not empty", "another out=")),
    Case("samples over another request", other_request, 2, ("another request", "seed 0 there, 1 now")),
    Case("unknown format", words("generate domain=toy ckpt={run} format=pdb out={folder}/s"), 2, ("'pdb'", "npz")),
    Case("unknown request", words("generate domain=toy ckpt={run} length=3"), 2, ("'length'", "label")),
    Case("nothing to evaluate", words("evaluate domain=toy"), 2, ("ckpt=RUN", "dir=DIR")),
    Case("no samples", words("evaluate domain=toy dir={folder}"), 1, ("no .npz",)),
    Case("no such samples", words("evaluate domain=toy dir={folder}/none"), 2, ("dir= takes folders",)),
    Case("no such run", words("doctor run {folder}"), 1, ("health.jsonl",)),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bad_input(
    case: Case, toy_run: Path, tmp_path: Path, xdistill: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Place(toy_run, tmp_path / "folder")
    place.folder.mkdir()
    monkeypatch.chdir(place.folder)
    args = case.prepare(place)
    before = snapshot(tmp_path)
    outcome = xdistill(*args)
    assert outcome.code == case.code, outcome.err
    lines = outcome.err.strip().splitlines()
    assert len(lines) == 1, outcome.err
    assert lines[0].startswith("xdistill: error: ")
    for part in case.says:
        assert part in lines[0]
    assert "bug?" not in lines[0]
    after = snapshot(tmp_path)
    assert [name for name in before if after.get(name) != before[name] and name not in case.touches] == []
    assert not (place.folder / "trace").exists()
