"""Settings of the runner room. No torch import: a configuration is checked before torch is loaded."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from arcvideo.tracking.settings import LoggerSettings, logger_problems

EngineSettings = dict[str, Any]
"""DeepSpeed's own keys, passed on unchanged; `engine_problems` names the keys the runner sets itself."""

OPTIMIZERS = ("adamw", "muon")
LARGEST_RATE = 0.05
"""Above it a number in optimizer.module_lrs is taken for a factor, which it once was: no stage trains so fast."""
SCHEDULES = ("constant", "linear", "cosine")
PRECISIONS = ("fp32", "bf16")
MODULES = ("llm", "vision_projector", "audio_projector", "vit", "whisper")
"""Names by which settings speak about parts of the model (prefixes: `runner/trainable.py`)."""

_RUNNER_MINIMA = (
    ("steps", 1),
    ("log_every", 1),
    ("save_every", 0),
    ("keep_last", 1),
    ("keep_every", 0),
    ("save_failures", 0),
    ("liveness_scan", 1),
    ("liveness_every", 0),
    ("skip_budget", 0),
    ("spike_z", 0),
    ("spike_window", 8),
    ("peak_tflops", 0),
    ("hang_seconds", 0),
    ("clip_norm", 0),
)

_ENGINE_KEYS_SET_BY_RUNNER = {
    "train_batch_size": "the data plan decides how many packs a step has (data.packs_per_step)",
    "train_micro_batch_size_per_gpu": "a micro-batch is one packed row (data.token_budget)",
    "gradient_accumulation_steps": "the data plan decides it (data.packs_per_step)",
    "gradient_clipping": "use runner.clip_norm",
    "optimizer": "use optimizer.name and optimizer.lr",
    "scheduler": "use schedule.name and schedule.warmup_steps",
    "bf16": "use runner.precision=bf16",
    "fp16": "not supported; use runner.precision=bf16",
}


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """Which optimizer moves the weights, and how fast."""

    name: str = "adamw"
    """adamw, or muon (2-D matrices of the decoder by Muon, the rest and all adapters by AdamW; ZeRO 0 only)."""
    lr: float = 2e-5
    """Peak learning rate of everything that is trained, whichever optimizer moves it."""
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    """AdamW's two decay rates."""
    eps: float = 1e-8
    """AdamW's epsilon."""
    weight_decay: float = 0.1
    """Decoupled weight decay of matrices; norms, biases and other 1-D tensors get none."""
    muon_lr: float | None = None
    """Another peak learning rate for what Muon moves; null takes lr, since Muon's update is rescaled to AdamW's RMS."""
    muon_momentum: float = 0.95
    """Nesterov momentum of Muon."""
    module_lrs: dict[str, float] = field(default_factory=dict)
    """Module (llm, vision_projector, audio_projector, vit, whisper) -> its own peak learning rate, in place of lr,
    muon_lr and its factor; its adapters have it too."""
    lr_factors: dict[str, float] = field(default_factory=dict)
    """Module (llm, vision_projector, audio_projector, vit, whisper) -> what its learning rate is multiplied by; 1 for
    those left out. The adapters of a module have that module's."""

    @property
    def matrix_lr(self) -> float:
        """Peak learning rate of what Muon moves."""
        return self.lr if self.muon_lr is None else self.muon_lr

    def peak_of(self, module: str, *, by_muon: bool) -> float:
        """Return the peak learning rate of a module's parameters, of those that Muon moves or of the others."""
        if module in self.module_lrs:
            return self.module_lrs[module]
        return (self.matrix_lr if by_muon else self.lr) * self.lr_factors.get(module, 1.0)


@dataclass(frozen=True, kw_only=True)
class ScheduleSettings:
    """How the learning rate moves over the steps of a stage."""

    name: str = "cosine"
    """constant, linear or cosine; each after a linear warm-up."""
    warmup_steps: int = 0
    """Steps of linear warm-up; the first step already has a learning rate above zero. Of a run that is not longer than
    this, the first half."""
    min_ratio: float = 0.1
    """Share of the peak learning rate left at the last step (linear and cosine)."""


@dataclass(frozen=True, kw_only=True)
class RunnerSettings:
    """The loop: how long, how precise, how often it logs and saves."""

    steps: int = 100
    """Optimizer steps of the stage."""
    clip_norm: float = 1.0
    """Gradients are scaled down to this global L2 norm; 0 switches clipping off."""
    precision: str = "fp32"
    """fp32, or bf16 (bf16 weights for forward and backward, fp32 master weights in the optimizer)."""
    seed: int = 0
    """Seeds torch, numpy and python before step 0; each rank adds its number."""
    log_every: int = 10
    """Steps between two lines on the terminal; metrics.jsonl has every step."""
    save_every: int = 100
    """Steps between two checkpoints; 0 saves only at the end and on a signal."""
    keep_last: int = 2
    """How many of the newest checkpoints stay on disk."""
    keep_every: int = 0
    """Checkpoints of steps divisible by this stay for good; 0 keeps none beyond keep_last."""
    save_failures: int = 2
    """How many writes in a row may fail (disk full, network) before the run stops; the last save must succeed."""
    liveness: bool = True
    """Before step 1, prove that each modality moves the loss and that gradients reach what is trained."""
    liveness_scan: int = 4
    """How many steps of data the liveness proof looks through for each modality (1 where batches are costly)."""
    liveness_every: int = 0
    """Repeat the proof that modalities move the loss every so many steps; 0 for before step 1 only."""
    skip_budget: int = 10
    """How many steps may be skipped (non-finite numbers, spikes) before the run stops."""
    spike_z: float = 30.0
    """A step whose loss or gradient norm lies more robust standard deviations above the median is skipped; 0: none."""
    spike_window: int = 128
    """Accepted steps that the spike rule looks back on; it is silent before a quarter of them are there."""
    hang_seconds: int = 1800
    """No progress for so long prints the stacks of all ranks and ends them with status 86; 0 switches the watch off."""
    peak_tflops: float = 0.0
    """Peak of one device for MFU, TFLOP/s; 0 looks its name up."""
    deterministic: bool = True
    """Train only on kernels that repeat their sums (an operation without one is an error), so that a run repeated or
    resumed on one machine ends with the same bits; false takes the fastest, and the manifest says so."""


def _choice(problems: list[str], key: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        problems.append(f"{key}={value!r} is unknown: choose one of {', '.join(allowed)}")


def engine_problems(engine: EngineSettings) -> list[str]:
    """Return what is wrong with the DeepSpeed keys, one sentence each, naming key and remedy."""
    problems = [
        f"engine.{key} is set by the runner: {why}" for key, why in _ENGINE_KEYS_SET_BY_RUNNER.items() if key in engine
    ]
    stage = zero_stage(engine)
    if stage not in (0, 1, 2, 3):
        problems.append(f"engine.zero_optimization.stage={stage!r} must be 0, 1, 2 or 3")
    return problems


def zero_stage(engine: EngineSettings) -> int:
    """ZeRO stage of the DeepSpeed keys; 0 when they say nothing."""
    return (engine.get("zero_optimization") or {}).get("stage", 0)


def optimizer_problems(optimizer: OptimizerSettings, engine: EngineSettings) -> list[str]:
    """Return what is wrong with the optimizer settings, alone and together with the engine."""
    problems: list[str] = []
    _choice(problems, "optimizer.name", optimizer.name, OPTIMIZERS)
    for key in ("lr", "muon_lr", "eps"):
        value = getattr(optimizer, key)
        if value is not None and value <= 0:
            problems.append(f"optimizer.{key}={value} must be above 0")
    if len(optimizer.betas) != 2 or not all(0 <= beta < 1 for beta in optimizer.betas):
        problems.append(f"optimizer.betas={list(optimizer.betas)} must be two numbers in [0, 1)")
    if optimizer.weight_decay < 0:
        problems.append(f"optimizer.weight_decay={optimizer.weight_decay} must not be negative")
    for name, factor in optimizer.lr_factors.items():
        _choice(problems, "optimizer.lr_factors key", name, MODULES)
        if factor <= 0:
            problems.append(
                f"optimizer.lr_factors.{name}={factor} must be above 0; to freeze it leave it out of stage.train"
            )
    for name, rate in optimizer.module_lrs.items():
        _choice(problems, "optimizer.module_lrs key", name, MODULES)
        if not 0 < rate < LARGEST_RATE:
            problems.append(
                f"optimizer.module_lrs.{name}={rate:g} is a learning rate, which must be above 0 and below "
                f"{LARGEST_RATE}; what multiplies optimizer.lr is optimizer.lr_factors.{name}, and to freeze it leave "
                "it out of stage.train"
            )
    if optimizer.name == "muon" and zero_stage(engine) != 0:
        problems.append(
            f"optimizer.name=muon needs whole matrices, but engine.zero_optimization.stage={zero_stage(engine)} cuts "
            "them: use engine=zero0 or optimizer.name=adamw"
        )
    return problems


def runner_problems(
    *,
    runner: RunnerSettings,
    optimizer: OptimizerSettings,
    schedule: ScheduleSettings,
    logger: LoggerSettings,
    engine: EngineSettings,
) -> list[str]:
    """Return everything wrong with this room's settings, one sentence each; an empty list means they can run."""
    problems = engine_problems(engine) + optimizer_problems(optimizer, engine)
    _choice(problems, "runner.precision", runner.precision, PRECISIONS)
    _choice(problems, "schedule.name", schedule.name, SCHEDULES)
    problems += logger_problems(logger)
    for key, least in _RUNNER_MINIMA:
        if getattr(runner, key) < least:
            problems.append(f"runner.{key}={getattr(runner, key)} must be at least {least}")
    if not 0 <= schedule.min_ratio <= 1:
        problems.append(f"schedule.min_ratio={schedule.min_ratio} must be between 0 and 1")
    if schedule.warmup_steps < 0:
        problems.append(f"schedule.warmup_steps={schedule.warmup_steps} must not be negative")
    return problems
