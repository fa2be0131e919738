"""RunConfig: the typed settings of one stage run, composed from the dataclasses of the rooms that read them.

Nothing here imports torch: a wrong key, type or combination is reported before anything heavy is loaded.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from arcvideo.evaluation.settings import EvaluationSettings
from arcvideo.layout import MediaLayout
from arcvideo.model.settings import LoraSettings, ModelSettings, lora_problems
from arcvideo.objectives.settings import DpoSettings, GrpoSettings
from arcvideo.planning.settings import DataSettings
from arcvideo.rollout.rewards.loading import check_reward
from arcvideo.runner.settings import (
    MODULES,
    LoggerSettings,
    OptimizerSettings,
    RunnerSettings,
    ScheduleSettings,
    runner_problems,
)
from arcvideo.structured import SettingsError, filled, nearest

CONF_DIR = Path(__file__).resolve().parent.parent / "conf"
OBJECTIVES = ("next_token", "grpo", "dpo")
# Parts of Hydra's composition that steer it and are no settings of a run.
_COMPOSITION_KEYS = ("hydra",)


_FLAGS_WITH_VALUES = ("--cfg", "-c", "--info", "-i", "--package", "-p", "--config-dir", "-cd", "--config-name", "-cn")


class ConfigError(ValueError):
    """Settings that cannot run; the message names the key and the remedy."""


@dataclass(frozen=True, kw_only=True)
class StageSettings:
    """What a stage is: one of the six (design section 2), or one beside them such as dpo."""

    name: str
    """audio_warmup, pretrain, sft, cold_start, grpo, final_sft or dpo; also the name of its directory."""
    parent: str
    """Stage whose export this one starts from; `base` starts from the base weights."""
    objective: str = "next_token"
    """next_token, grpo or dpo."""
    train: list[str] = field(default_factory=list)
    """Modules that learn: llm, vision_projector, audio_projector, vit, whisper. The others are proven to be frozen."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that decides what a stage run does."""

    stage: StageSettings
    """Which stage."""
    model: ModelSettings
    """Shapes of the model; they must fit the parent's export."""
    data: DataSettings
    """What the stage reads."""
    evaluation: EvaluationSettings
    """What is measured after training."""
    engine: dict[str, Any]
    """DeepSpeed's own keys."""
    optimizer: OptimizerSettings
    """Optimizer and learning rates."""
    schedule: ScheduleSettings
    """Learning-rate schedule."""
    runner: RunnerSettings
    """The loop."""
    grpo: GrpoSettings
    """Read by stages whose objective is grpo."""
    dpo: DpoSettings
    """Read by stages whose objective is dpo."""
    logger: LoggerSettings
    """Where metrics go besides metrics.jsonl."""
    lora: LoraSettings | None = None
    """Adapters in place of whole matrices; null trains stage.train whole."""
    data_dir: str = "data"
    """Folder of the shards."""
    run_dir: str = "runs"
    """Folder of the pipeline: one sub-folder a stage."""
    base: str = "base"
    """Base weights: what a stage with parent `base` starts from."""
    parent: str | None = None
    """Start from this export instead of the parent stage's (a path)."""
    output: str | None = None
    """Name of the stage's folder inside run_dir; null means the stage's name."""
    feature_cache: bool = True
    """Keep the outputs of the frozen towers on disk, under run_dir/features."""
    train_parents: bool = False
    """Train unfinished parent stages first, with this run's model, data set, engine and folders; sweeps do so."""
    parents: dict[str, Any] = field(default_factory=dict)
    """Settings for those parent stages besides, for example parents.runner.steps=500."""
    threads: int = 0
    """CPU threads for torch in each process; 0 leaves torch's choice."""
    verify_resume: int = 0
    """Do not train the stage but prove on its first so many steps that a resumed run has the bits of a straight one."""

    @property
    def stage_dir(self) -> Path:
        """Where this run writes."""
        return Path(self.run_dir) / (self.output or self.stage.name)

    @property
    def layout(self) -> MediaLayout:
        """The shapes decoding, rendering and the towers share."""
        return self.model.layout


def typed(composed: DictConfig) -> RunConfig:
    """The typed settings of a composition.

    Raises:
        ConfigError: unknown key, wrong type, missing value or settings that do not go together.
    """
    try:
        plain = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        key = f"{error.full_key}: " if error.full_key else ""
        raise ConfigError(key + str(error).splitlines()[0]) from None
    assert isinstance(plain, dict)
    try:
        config = filled(RunConfig, {key: value for key, value in plain.items() if key not in _COMPOSITION_KEYS})
    except SettingsError as error:
        raise ConfigError(str(error)) from None
    problems = list(_problems(config))
    if problems:
        raise ConfigError("\n".join(problems))
    return config


def plain_dict(config: RunConfig) -> dict[str, Any]:
    """The settings as JSON-able values, for manifests, identities and W&B."""
    return dataclasses.asdict(config)


def _problems(config: RunConfig) -> Iterator[str]:
    """Fields that are each fine alone but cannot run together."""
    yield from runner_problems(
        runner=config.runner,
        optimizer=config.optimizer,
        schedule=config.schedule,
        logger=config.logger,
        engine=config.engine,
    )
    if config.verify_resume and not 2 <= config.verify_resume <= config.runner.steps:
        yield f"verify_resume={config.verify_resume} must be 0, or between 2 and runner.steps={config.runner.steps}"
    yield from lora_problems(config.lora, train=config.stage.train, objective=config.stage.objective)
    try:
        _ = config.layout
    except ValueError as error:
        yield f"model: {error}"
    if config.stage.objective not in OBJECTIVES:
        yield f"stage.objective={config.stage.objective!r} is unknown: choose one of {', '.join(OBJECTIVES)}"
    if not config.stage.train:
        yield f"stage.train is empty: name what learns, from {', '.join(MODULES)}"
    for name in config.stage.train:
        if name not in MODULES:
            yield f"stage.train has {name!r}, which is unknown: choose from {', '.join(MODULES)}"
    yield from _reward_problems(config)
    optimize = config.evaluation.optimize
    if optimize not in (*config.evaluation.metrics, "train/loss"):
        known = [*config.evaluation.metrics, "train/loss"]
        yield f"evaluation.optimize={optimize!r} is not measured{nearest(optimize, known)}: one of {', '.join(known)}"
    if not config.data.sources:
        yield "data.sources is empty: name at least one source, for example data.sources.mine.shards=shards/*.tar"
    if config.feature_cache and config.data.frames == "random":
        yield "feature_cache=true needs data.frames=middle: random frames change every epoch; set feature_cache=false"
    if config.feature_cache and {"vit", "whisper"} & set(config.stage.train):
        yield "feature_cache=true needs frozen towers: drop vit and whisper from stage.train or set feature_cache=false"


def _reward_problems(config: RunConfig) -> Iterator[str]:
    """Names of rewards that are nobody's; those of other packages are found when the stage begins."""
    for name in config.grpo.reward_names if config.stage.objective == "grpo" else ():
        try:
            check_reward(name)
        except ValueError as error:
            yield str(error)


def override_problems(arguments: Sequence[str]) -> list[str]:
    """What is wrong with command-line overrides, before Hydra reads them: unknown keys and unknown group options."""
    problems = []
    if any(word.startswith("grpo=") for word in arguments) and not any(_asks_grpo(word) for word in arguments):
        problems.append("grpo=paper or grpo=safe sets learning rate and KL of stage=grpo; give it to that stage only")
    swept = bool({"-m", "--multirun"} & set(arguments))
    for before, argument in zip(("", *arguments), arguments, strict=False):
        key, equals, value = argument.lstrip("+~").partition("=")
        if argument.startswith("-") or before in _FLAGS_WITH_VALUES or key.split(".")[0].split("/")[0] == "hydra":
            continue
        if not equals:
            if not argument.startswith("~"):
                problems.append(f"{argument}: expected KEY=VALUE{_meant(argument)}")
            continue
        if "," in value and not swept and not set("[({'\"") & set(value):
            problems.append(f"{argument}: several values are a sweep: add -m; a list is written {key}=[{value}]")
            continue
        group = CONF_DIR / key.replace("@", "/")
        if group.is_dir():
            options = sorted(path.relative_to(group).with_suffix("").as_posix() for path in group.rglob("*.yaml"))
            for choice in value.split(","):
                if choice and choice not in options and "(" not in value:
                    problems.append(
                        f"{key}={choice}: no such option{nearest(choice, options)}; there are: {', '.join(options)}"
                    )
        elif not _known(RunConfig, key.split(".")):
            problems.append(f"{key}: no such setting{nearest(key, list(_keys()))}; `--help` shows all")
    return problems


def _meant(word: str) -> str:
    """A question after the override that a bare word may have been meant for."""
    stages = sorted(path.stem for path in (CONF_DIR / "stage").glob("*.yaml"))
    return f" (did you mean 'stage={word}'?)" if word in stages else ""


def _asks_grpo(word: str) -> bool:
    """Whether a word chooses the stage grpo, among others in a sweep."""
    key, _, value = word.partition("=")
    return key == "stage" and "grpo" in value.split(",")


def as_overrides(arguments: Sequence[str]) -> list[str]:
    """The arguments for Hydra: known settings may be given whether or not a YAML file mentions them."""
    return [
        f"++{argument}"
        if "=" in argument and not argument.startswith(("-", "+", "~")) and _is_setting(argument.partition("=")[0])
        else argument
        for argument in arguments
    ]


def _is_setting(key: str) -> bool:
    return key.split(".")[0].split("/")[0] != "hydra" and not (CONF_DIR / key.replace("@", "/")).is_dir()


def _known(kind: Any, path: Sequence[str]) -> bool:
    """Whether a dotted path leads to a field; free dictionaries accept any name below them."""
    if not path:
        return True
    kind = _without_none(kind)
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        names = {entry.name for entry in dataclasses.fields(kind)}  # type: ignore[arg-type]
        return path[0] in names and _known(hints[path[0]], path[1:])
    if typing.get_origin(kind) is dict:
        return _known(typing.get_args(kind)[1], path[1:])
    return kind is Any


def _keys(kind: Any = RunConfig, prefix: str = "") -> Iterator[str]:
    """All dotted names of settings."""
    for entry in dataclasses.fields(kind):
        name = f"{prefix}{entry.name}"
        yield name
        inner = _without_none(typing.get_type_hints(kind)[entry.name])
        if dataclasses.is_dataclass(inner):
            yield from _keys(inner, f"{name}.")


def _without_none(kind: Any) -> Any:
    """The type of a setting that may also be null."""
    inner = [argument for argument in typing.get_args(kind) if argument is not type(None)]
    return inner[0] if type(None) in typing.get_args(kind) and len(inner) == 1 else kind
