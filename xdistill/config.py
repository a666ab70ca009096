"""The schema of `xdistill fit`: what may be configured, with its defaults and meaning.

Sections `domain` and `objective` are open here: their keys come from the Hydra group files and are checked against
the signature of the class they configure, so a third party adds a domain without touching the core.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf


@dataclass
class TrainConfig:
    """steps: macro-steps of the run. max_minutes: end earlier when this much wall time is used (0: never).
    checkpoint_every, log_every: in macro-steps. keep: newest checkpoints kept besides the best.
    skip_limit: consecutive non-finite updates of a role that end the run. guard: warn, stop or off, when samples of the
    student become less diverse than the teacher's. guard_every: macro-steps between these checks.
    """

    steps: int = 1000
    max_minutes: float = 0.0
    checkpoint_every: int = 100
    log_every: int = 10
    keep: int = 2
    skip_limit: int = 20
    guard: str = "warn"
    guard_every: int = 100


@dataclass
class DataConfig:
    """batch: samples a micro-batch and rank. path: a folder of your own data (the domain's formats);
    null means the data that ships with the domain. Data-free objectives only take lengths and conditions from it.
    """

    batch: int = 16
    path: str | None = MISSING


@dataclass
class StrategyConfig:
    """name: single, ddp or deepspeed. stage: ZeRO stage 0-3, for all roles or as {role: stage}.
    accelerator: auto, cpu or gpu. devices: processes on this machine. nodes: machines. threads: CPU threads
    a process (0: leave to torch). activation_checkpointing: recompute activations in the backward pass.
    options: further DeepSpeed configuration.
    """

    name: str = "single"
    stage: Any = 2
    accelerator: str = "auto"
    devices: int = 1
    nodes: int = 1
    threads: int = 0
    activation_checkpointing: bool = False
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class GuidanceConfig:
    """Guidance of teacher and critic. name: none, cfg, autoguidance, lsg, short, zero_cfg or anti_cfg. scale: w of that
    name, 1 is off. range: [low, high] of the scales w that a student of average velocities learns, told as an input
    (null: `scale` alone); `scale` is then what it takes where it is told none. interval: core times (0 clean, 1 noise)
    where the teacher's acts. weak: weights of the weak network of autoguidance. critic: scale of the critic in the
    student's loss (null: as the name says). critic_train: scale of the critic in its own loss (null: as the name says).
    """

    name: str = "none"
    scale: float = 1.0
    range: list[float] | None = None
    interval: tuple[float, float] = (0.0, 1.0)
    weak: str | None = MISSING
    critic: float | None = None
    critic_train: float | None = None


@dataclass
class EvalConfig:
    """every: macro-steps between evaluations that pick the best checkpoint (0: only at the end). num: samples of
    each. final_num: samples of each row of the final table. report: write the final table and figure.
    """

    every: int = 0
    num: int = 32
    final_num: int = 64
    report: bool = True


@dataclass
class LoggerConfig:
    """What writes below the run folder. csv: metrics as a table. tensorboard: event files. wandb: Weights & Biases,
    needs the extra [wandb]. progress: a bar with rate and remaining time.
    """

    csv: bool = True
    tensorboard: bool = True
    wandb: bool = False
    progress: bool = True


@dataclass
class EMASection:
    """half_life: of the student's average, in updates (0: none). ramp: it never exceeds ramp x updates so far."""

    half_life: float = 500.0
    ramp: float = 0.05


@dataclass
class SamplerConfig:
    """steps: network calls of the student when it generates (0: as trained). times: of these calls of a flow map, from
    1 to 0 (null: equal steps, or as `xdistill search-steps` found). noise_scale: multiplies the noise term of
    continuous samplers. temperature: divides the log-probabilities of tokens (0: the most likely). top_p: keeps the
    smallest set of tokens that has this much probability. method: the order in which tokens are revealed.
    """

    steps: int = 0
    times: list[float] | None = None
    noise_scale: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    method: str = "ancestral"


@dataclass
class FitConfig:
    """A run. seed: of everything. out: the run folder. resume: never, auto (continue from the newest checkpoint, or
    start), or previous (from the one before, when the newest is damaged).

    precision: of the networks, fp32 or bf16.
    teacher.weights: `shipped`, or a path to weights or an official checkpoint. student.init: `teacher`, `fresh`
    weights, or a path.
    """

    domain: dict[str, Any]
    objective: dict[str, Any]
    teacher: dict[str, Any] = field(default_factory=dict)
    student: dict[str, Any] = field(default_factory=dict)
    data: DataConfig = field(default_factory=DataConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    strategy: StrategyConfig = field(default_factory=StrategyConfig)
    precision: str = "fp32"
    ema: EMASection = field(default_factory=EMASection)
    guidance: GuidanceConfig = field(default_factory=GuidanceConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    optim: dict[str, Any] = field(default_factory=lambda: {"default": {}})
    seed: int = 0
    out: str = "runs/${domain.name}_${objective.name}"
    resume: str = "never"


#: `ckpt=` of the student that comes with the domain; ./shipped is a folder of that name.
SHIPPED = "shipped"


@dataclass
class GenerateConfig:
    """domain: the modality. ckpt: a run folder, a checkpoint in it, or a folder of weights (none, or shipped: the
    domain's own student). num: samples. out: a new or empty folder, or one that the same request left unfinished. seed:
    sample i depends on (seed, i) alone. batch: most samples of a network call. steps: network calls a sample (none: as
    trained).
    noise_scale: multiplies the noise between the calls (none: as configured in the run); less is quality for diversity.
    guidance: scale told to a student that learned a range of them (none: its usual one).
    temperature, top_p, method: how tokens are drawn (none: as configured in the run; see sampler of fit).
    method.OPTION: of the method, as in method=dual_cache method.block=16, or method=rgas method.ratio=0.5, which asks
    the discriminator that a run of objective=didi keeps. stream: true shows one text while it is written, and keeps
    no file; speech goes to the file out=NAME.wav (or .flac; - is raw 16-bit samples on the standard output) as parts
    are done; out=- writes lines to the standard output.
    format: of the files, or packed, many samples in one file (none: the domain's first; of text packed, as lines of
    JSON). shard: samples written and recorded at once (0: 1024, or one batch up to 1024 samples). filter: names of the
    domain's filters, cheapest first,
    separated by commas; filter.NAME.OPTION=VALUE sets their options. keep: samples of a shortlist to end with, among
    those that passed (0: none). by: column of the manifest that it ranks by. diversity: most similarity of any two of
    it, e.g. 0.5 (none: any). engine: local, also as ranks of torchrun or Slurm,
    or ray. workers: processes, or actors of Ray (0: one a GPU, or one a core). threads: CPU threads of each; another
    number rounds differently. ray_address: of a Ray cluster to join, also written ray.address (none: start one here).
    precision: of the network, fp32 or bf16 (none: as in the run). compile: true compiles the network first (minutes in
    every process), which pays for many samples; it needs a compiler, and rounds differently.
    """

    domain: str
    ckpt: str | None = None
    num: int = 16
    out: str = "samples"
    seed: int = 0
    batch: int = 32
    steps: int | None = None
    noise_scale: float | None = None
    guidance: float | None = None
    temperature: float | None = None
    top_p: float | None = None
    method: str | None = None
    stream: bool = False
    format: str | None = None
    shard: int = 0
    filter: str | None = None
    keep: int = 0
    by: str | None = None
    diversity: float | None = None
    engine: str = "local"
    workers: int = 0
    threads: int = 1
    ray_address: str | None = None
    precision: str | None = None
    compile: bool = False


@dataclass
class ExtractConfig:
    """out: folder for the files. index: of the samples, as in 3,17,100-120, or all, passed (all filters) or shortlist.
    format: of the files (none: the domain's first). domain: the modality (none: as the folder's request.json says).
    """

    out: str | None = None
    index: str = "all"
    format: str | None = None
    domain: str | None = None


@dataclass
class EvaluateConfig:
    """domain: the modality. ckpt: checkpoints to sample from, separated by commas; shipped is the domain's own student.
    Real data, and the teacher, are those of the first one's run.
    dir: folders of samples made by anyone in the domain's formats, or by generate, separated by commas. teacher:
    samplers of the teacher, separated by commas, as in reference,ode; NAME@CALLS, as in
    reference,ancestral@8, at so many network calls. teacher_steps: network calls of the rest (0: as each is published).
    metrics: fast (what takes seconds), full (all that this machine has what it takes for), or names of costly ones
    to add, separated by commas. curve: values of the option that trades diversity for quality (temperature of text),
    separated by commas, as in 0.7,0.8,0.9,1: adds the curve of every source, and its value where curves may be
    compared. num: samples of each checkpoint and sampler. json: where to save the table (none:
    evaluation.json in the first source), with the plot of the curves beside it. html: where to write a report with
    plots and structures (none: nowhere).
    guidance: as in generate, and of the teacher that a student is paired with. seed, batch, steps, noise_scale,
    temperature, top_p, method, method.OPTION: as in generate. domain.KEY: any key of the domain's section of a
    configuration, as `xdistill fit domain=NAME --help` lists them; it also holds for checkpoints, whatever their runs
    had.
    """

    domain: str
    ckpt: str | None = None
    dir: str | None = None
    teacher: str | None = None
    teacher_steps: int = 0
    metrics: str = "fast"
    curve: str = ""
    num: int = 64
    json: str | None = None
    html: str | None = None
    seed: int = 0
    batch: int = 16
    steps: int | None = None
    noise_scale: float | None = None
    guidance: float | None = None
    temperature: float | None = None
    top_p: float | None = None
    method: str | None = None


@dataclass
class BenchConfig:
    """domain: the modality. ckpt: the student (none, or shipped: the domain's own). json: where to save the numbers.
    batch: samples drawn at once when timing, separated by commas, the first for the table (none: as the domain says).
    repeats: timed repetitions, when warm. num: samples of each row whose quality is compared (0: cost only); where
    quality trades with diversity it is compared at the teacher's diversity, with other networks too. steps: network
    calls of the student, separated by commas (none: as trained, the two largest of several). teacher_steps: of the
    teacher (0: as its reference sampler is published). noise_scale: of the student's sampler (none: as configured).
    threads: CPU threads (0: leave to torch).
    seed: of the requests and noise. precision, compile: as in generate, for teacher and student. temperature, top_p,
    method, method.OPTION: of the student, as in generate. domain.KEY: as in evaluate.
    """

    domain: str
    ckpt: str | None = None
    json: str | None = None
    batch: str = ""
    repeats: int = 2
    num: int = field(default=32, metadata={"least": 0})
    steps: str = ""
    teacher_steps: int = 0
    noise_scale: float | None = None
    temperature: float | None = None
    top_p: float | None = None
    method: str | None = None
    threads: int = 0
    seed: int = 0
    precision: str | None = None
    compile: bool = False


@dataclass
class SearchStepsConfig:
    """domain: the modality. ckpt: the run of a flow map, or a checkpoint in it. steps: network calls, one less of which
    is placed (none: as trained). metric: what is to be best: rmse, the difference to the teacher's own many-step
    samples from the same noise, or the name of one of the domain's metrics. num: samples of the fixed dev set. seed: of
    the dev set and its noise. batch: samples of a network call. teacher_steps: calls of the teacher's samples (0: 64).
    tolerance: of a time. sweeps: most rounds over all times.
    """

    domain: str
    ckpt: str | None = None
    steps: int | None = None
    metric: str = "rmse"
    num: int = 32
    seed: int = 0
    batch: int = 32
    teacher_steps: int = 0
    tolerance: float = 0.01
    sweeps: int = 3


def compose(overrides: Sequence[str]) -> DictConfig:
    """The resolved configuration of a run from command-line overrides (`domain=protein`, `optim.student.lr=1e-4`).

    Raises UsageError in one line: no domain, an unknown group choice or key (with the nearest one), a wrong type,
    a missing mandatory value, a value outside its range.
    """
    from xdistill.overrides import composed  # Hydra is only needed here

    return composed(overrides)


def role_optim(cfg: DictConfig | Mapping[str, Any], role: str) -> dict[str, Any]:
    """OptimConfig's keys for a role: `optim.default` with what `optim.<role>` changes."""
    sections = OmegaConf.to_container(cfg.optim) if isinstance(cfg, DictConfig) else cfg["optim"]
    assert isinstance(sections, Mapping)
    return {**sections["default"], **sections.get(role, {})}
