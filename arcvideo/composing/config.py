"""RunConfig: the typed settings of one stage run, composed from the dataclasses of the rooms that read them.

Nothing here imports torch: a wrong key, type or combination is reported before anything heavy is loaded.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from omegaconf.resolvers import oc

from arcvideo.evaluation.settings import LOSS, EvaluationSettings
from arcvideo.hidden import note, recorded
from arcvideo.layout import MediaLayout
from arcvideo.model.settings import LoraSettings, ModelSettings, lora_problems
from arcvideo.named import problem as named_problem
from arcvideo.objectives import OBJECTIVES, ObjectiveRow, objective_row
from arcvideo.objectives.settings import IN_PROCESS, DpoSettings, GrpoSettings, NextTokenSettings
from arcvideo.places import from_home
from arcvideo.planning.settings import DataSettings
from arcvideo.rollout.rewards.loading import check_reward, unread_problems
from arcvideo.runner.settings import MODULES, OptimizerSettings, RunnerSettings, ScheduleSettings, runner_problems
from arcvideo.structured import SettingsError, filled, nearest
from arcvideo.tasks import TASKS
from arcvideo.tracking.settings import LoggerSettings

# Parts of Hydra's composition that steer it and are no settings of a run.
_COMPOSITION_KEYS = ("hydra",)
_FORMER = {
    "data": "the pages of conf/stage say what a stage reads: leave it out, or give data.sources.NAME.shards=...",
    "preset": "stage=NAME with model=NAME chooses a page of conf/stage",
}
"""Key of former versions -> what is written instead."""


class ConfigError(ValueError):
    """Settings that cannot run; the message names the key and the remedy."""


@dataclass(frozen=True, kw_only=True)
class StageSettings:
    """What a stage is: one of the six, or one beside them such as dpo."""

    name: str
    """audio_warmup, pretrain, sft, cold_start, grpo, final_sft or dpo; also the name of its directory."""
    parent: str
    """Stage whose export this one starts from; `base` starts from the base weights."""
    objective: str = "next_token"
    """next_token, grpo, dpo, or a class of your own, `package.module:Class`."""
    feed: str = ""
    """What a class of your own trains on: answers (the default), pairs, or rollouts."""
    options: dict[str, Any] = field(default_factory=dict)
    """What a class of your own is given by name, behind the settings of its feed."""
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
    next_token: NextTokenSettings = field(default_factory=NextTokenSettings)
    """Read by stages whose objective is next_token."""
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
    continue_from: str | None = None
    """Go on from another run's checkpoint, a folder step-N or a stage's: its weights, optimizer and count of steps."""
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
    def objective(self) -> ObjectiveRow:
        """What the objective is and needs."""
        return objective_row(self.stage.objective, feed=self.stage.feed)

    @property
    def objective_feed(self) -> str:
        """What the objective trains on; empty for one that is not known, which is told elsewhere."""
        try:
            return self.objective.feed
        except ValueError:
            return ""

    @property
    def objective_settings(self) -> Any:
        """The settings that the objective reads."""
        return getattr(self, self.objective.settings)

    @property
    def keeps_reference(self) -> bool:
        """Whether log-probabilities under the parent are needed beside those of the policy."""
        return self.objective.reference and self.objective_settings.beta != 0

    @property
    def layout(self) -> MediaLayout:
        """The shapes decoding, rendering and the towers share."""
        return self.model.layout


def typed(composed: DictConfig) -> RunConfig:
    """Return the typed settings of a composition: `~/` is expanded, a source that is null is left out.

    Raises:
        ConfigError: unknown key, wrong type, missing value or settings that do not go together.
    """
    try:
        plain = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        key = f"{error.full_key}: " if error.full_key else ""
        raise ConfigError(key + str(error).splitlines()[0]) from None
    assert isinstance(plain, dict)
    values = from_home({key: value for key, value in plain.items() if key not in _COMPOSITION_KEYS})
    data = values.get("data")
    if isinstance(data, dict) and isinstance(data.get("sources"), dict):
        data["sources"] = {name: source for name, source in data["sources"].items() if source is not None}
    try:
        config = filled(RunConfig, values)
    except SettingsError as error:
        raise ConfigError(f"{error}{former(str(error).partition(':')[0])}") from None
    problems = list(_problems(config))
    if problems:
        raise ConfigError("\n".join(problems))
    return config


def former(key: str) -> str:
    """Return what is written today for a key of former versions, behind `; `; nothing for any other key."""
    return next(
        (f"; {now}" for old, now in _FORMER.items() if key == old or ("." in old and key.startswith(f"{old}."))), ""
    )


def _from_environment(name: str, *default: Any) -> Any:
    """`${oc.env:NAME}` and `${oc.env:NAME,default}`; what the environment says is remembered, so as not to be shown."""
    value = oc.env(name, *default)
    if name in os.environ:
        note(name, str(value))
    return value


OmegaConf.register_new_resolver("oc.env", _from_environment, replace=True)


def recorded_settings(config: RunConfig) -> dict[str, Any]:
    """Return the settings as they are written down and shown: without credentials, with names for the environment's
    values.
    """
    return recorded(plain_dict(config))


def plain_dict(config: RunConfig) -> dict[str, Any]:
    """Return the settings as JSON-able values, for identities; `recorded_settings` is for whatever is written or
    shown.
    """
    return dataclasses.asdict(config)


def _problems(config: RunConfig) -> Iterator[str]:
    """Yield fields that are each fine alone but cannot run together."""
    yield from runner_problems(
        runner=config.runner,
        optimizer=config.optimizer,
        schedule=config.schedule,
        logger=config.logger,
        engine=config.engine,
    )
    if config.verify_resume and not 2 <= config.verify_resume <= config.runner.steps:
        yield f"verify_resume={config.verify_resume} must be 0, or between 2 and runner.steps={config.runner.steps}"
    try:
        _ = config.layout
    except ValueError as error:
        yield f"model: {error}"
    yield from _objective_problems(config)
    if not config.stage.train:
        yield f"stage.train is empty: name what learns, from {', '.join(MODULES)}"
    for name in config.stage.train:
        if name not in MODULES:
            yield f"stage.train has {name!r}, which is unknown: choose from {', '.join(MODULES)}"
    learning = {*config.stage.train, *(config.lora.modules if config.lora else ())}
    for name in config.optimizer.module_lrs:
        if name in MODULES and name not in learning:
            yield f"optimizer.module_lrs.{name}: {name} does not learn, stage.train and lora.modules leave it out"
    yield from _evaluation_problems(config)
    if not config.data.sources:
        yield "data.sources is empty: name at least one source, for example data.sources.mine.shards=shards/*.tar"
    yield from _task_problems(config)
    if config.feature_cache and config.data.frames == "random":
        yield "feature_cache=true needs data.frames=middle: random frames change every epoch; set feature_cache=false"
    if config.feature_cache and {"vit", "whisper"} & set(config.stage.train):
        yield "feature_cache=true needs frozen towers: drop vit and whisper from stage.train or set feature_cache=false"


def _evaluation_problems(config: RunConfig) -> Iterator[str]:
    """Yield a figure to judge by that is not measured."""
    settings = config.evaluation
    figures = list(settings.metrics) if settings.measures else []
    if settings.every and settings.loss_packs and config.objective_feed == "answers":
        figures.append(LOSS)
    if settings.every and not figures:
        yield f"evaluation.every={settings.every} measures nothing: neither evaluation.metrics nor a loss"
        return
    if not settings.chooses:
        figures.append("train/loss")
    if settings.optimized in figures:
        return
    problem = f"evaluation.optimize={settings.optimized!r} is not measured{nearest(settings.optimized, figures)}"
    if figures:
        yield f"{problem}: one of {', '.join(figures)}"
    else:
        yield f"{problem}: evaluation.best and evaluation.patience need a figure in evaluation.metrics"


def _task_problems(config: RunConfig) -> Iterator[str]:
    """Tasks that nobody knows, and tasks that are sampled for but that no reward reads."""
    named = {f"data.sources.{name}.tasks": list(source.tasks) for name, source in config.data.sources.items()}
    named |= {f"grpo.{key}": list(getattr(config.grpo, key)) for key in ("task_rewards", "task_weights")}
    for key, tasks in named.items():
        for task in tasks:
            if task not in TASKS:
                yield f"{key} has {task!r}, which is no task{nearest(task, list(TASKS))}: one of {', '.join(TASKS)}"
    if not OBJECTIVES.get(config.stage.objective, OBJECTIVES["next_token"]).sampled:
        return
    for name, source in config.data.sources.items():
        for task in (task for task, weight in source.tasks.items() if weight and task in TASKS):
            yield from unread_problems(task, settings=config.grpo, key=f"data.sources.{name}.tasks.{task}")


def _objective_problems(config: RunConfig) -> Iterator[str]:
    """Yield what is wrong with the objective and what it asks for; code of other packages is read, not run."""
    try:
        row = config.objective
    except ValueError as error:
        yield str(error)
        return
    if row not in OBJECTIVES.values() and (
        wrong := named_problem(config.stage.objective, kind="objectives", key="stage.objective")
    ):
        yield wrong
    sampler = config.grpo.sampler
    if row.sampled and sampler != IN_PROCESS and (wrong := named_problem(sampler, kind="samplers", key="grpo.sampler")):
        yield wrong
    if config.stage.options and row in OBJECTIVES.values():
        yield f"stage.options is for a class of your own; the settings of {config.stage.objective} are {row.settings}.*"
    yield from lora_problems(
        config.lora,
        train=config.stage.train,
        objective=config.stage.objective,
        answers=row.feed == "answers",
        family=config.model.family,
    )
    for name in config.grpo.reward_names if row.sampled else ():
        try:
            check_reward(name)
        except ValueError as error:
            yield str(error)
