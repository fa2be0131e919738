"""Every YAML of conf/ composes into typed settings; what cannot run is refused with key and remedy."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from arcvideo.composing.compose import stage_config
from arcvideo.composing.config import ConfigError, RunConfig, plain_dict
from arcvideo.composing.overrides import DEFAULT_MODEL, grammar_problems, override_problems, stages
from arcvideo.composing.recipe import load_recipe, planned_stages
from arcvideo.places import CONF_DIR, RECIPES
from arcvideo.structured import filled
from tests.compose import settings


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF_DIR / group).glob("*.yaml"))


STAGES = stages([])
MODELS = options("model")
ENGINES = options("engine")
ORDER = ["audio_warmup", "pretrain", "sft", "cold_start", "grpo", "final_sft"]


def refusal(*overrides: str) -> str:
    """What a user is told."""
    with pytest.raises(ConfigError) as caught:
        stage_config(overrides)
    return str(caught.value)


# --- what there is ---


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_composes_at_every_size(stage: str, model: str) -> None:
    config = settings(f"stage={stage}", f"model={model}")
    assert config == settings(f"stage={model}/{stage}")
    assert config.stage.name == stage
    assert config.stage.train
    assert plain_dict(config)["runner"]["steps"] == config.runner.steps
    assert config.layout.tokens_per_frame == config.model.tokens_per_frame


def test_the_six_stages_follow_each_other() -> None:
    parents = {stage: settings(f"stage={stage}").stage.parent for stage in ORDER}
    assert parents == dict(zip(ORDER, ["base", *ORDER[:-1]], strict=True))
    assert [stage for stage in STAGES if settings(f"stage={stage}").stage.objective == "grpo"] == ["grpo"]


def test_every_file_of_conf_is_an_option_that_a_test_composes() -> None:
    reached = {CONF_DIR / "config.yaml"}
    for group in ("model", "engine", "logger", "grpo"):
        reached |= {CONF_DIR / group / f"{option}.yaml" for option in options(group)}
    # A launcher replaces Hydra's own; tests/composing/test_sweeps.py composes it.
    reached |= set((CONF_DIR / "hydra" / "launcher").iterdir())
    reached |= {CONF_DIR / "stage" / model / f"{stage}.yaml" for model in MODELS for stage in [*STAGES, "_common"]}
    assert reached == set(CONF_DIR.rglob("*.yaml"))


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("choice", "lr", "beta"), [("paper", 2e-5, 0.1), ("safe", 1e-6, 0.04)])
def test_learning_rate_and_kl_of_grpo_are_chosen_with_one_word(model: str, choice: str, lr: float, beta: float) -> None:
    config = settings("stage=grpo", f"model={model}", f"grpo={choice}")
    assert (config.optimizer.name, config.optimizer.lr, config.grpo.beta) == ("adamw", lr, beta)
    assert settings("stage=grpo", f"model={model}", f"grpo={choice}", "grpo.beta=0").grpo.beta == 0
    assert settings("stage=grpo", f"model={model}") == settings("stage=grpo", f"model={model}", "~grpo")


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("stage", STAGES)
def test_every_engine_runs_every_stage_with_adamw(stage: str, engine: str) -> None:
    config = settings(f"stage={stage}", f"engine={engine}", "optimizer.name=adamw")
    assert config.engine["zero_optimization"]["stage"] == int(engine.removeprefix("zero")[0])


@pytest.mark.parametrize(("group", "option"), [("logger", name) for name in options("logger")])
def test_every_logger_option_composes(group: str, option: str) -> None:
    assert settings("stage=sft", f"{group}={option}").logger.wandb in ("disabled", "offline", "online")


def test_a_stage_of_the_large_model_lands_in_its_own_folder_with_its_own_engine_and_data() -> None:
    config = settings("stage=grpo", "model=arc_hunyuan_7b")
    assert config.stage_dir == Path("runs/arc_hunyuan_7b/grpo")
    assert config.engine["zero_optimization"]["stage"] == 3
    assert settings("stage=sft", "model=arc_hunyuan_7b").engine["zero_optimization"]["stage"] == 1
    assert {source.shards for source in config.data.sources.values()} == {
        "data/arc_hunyuan_7b/rl_mcq/*.tar",
        "data/arc_hunyuan_7b/rl_grounding/*.tar",
    }
    assert settings("stage=grpo", "model=arc_hunyuan_7b", "engine=zero2").engine["zero_optimization"]["stage"] == 2


def test_the_model_that_is_chosen_by_default_is_the_one_that_stages_are_looked_up_for() -> None:
    defaults = yaml.safe_load((CONF_DIR / "config.yaml").read_text())["defaults"]
    assert {"model": DEFAULT_MODEL} in defaults


@pytest.mark.parametrize("model", MODELS)
def test_what_all_stages_of_a_model_share_stands_once(model: str) -> None:
    def leaves(values: Any, key: str = "") -> set[str]:
        if not isinstance(values, dict):
            return {f"{key}={values}"}
        return {leaf for name, value in values.items() for leaf in leaves(value, f"{key}.{name}")}

    pages = [yaml.safe_load((CONF_DIR / "stage" / model / f"{stage}.yaml").read_text()) for stage in STAGES]
    shared = {leaf for leaf in set.intersection(*(leaves(page) for page in pages)) if not leaf.startswith(".defaults")}
    assert shared == set()


@pytest.mark.parametrize("path", sorted(CONF_DIR.rglob("*.yaml")), ids=lambda path: path.stem)
def test_conf_names_no_machine(path: Path) -> None:
    """Vocabulary is shared by all who train; paths and machines are theirs."""
    assert not re.search(r"(^|[\s:\"'])/(home|work|data|mnt|tmp|root)\b|~/", path.read_text(encoding="utf-8"))


def test_every_setting_explains_itself() -> None:
    """A docstring under each field: the settings are their own manual."""
    root = CONF_DIR.parent / "arcvideo"
    missing = []
    for path in [root / "composing/config.py", *root.glob("*/settings.py")]:
        for kind in (node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef)):
            for field, below in zip(kind.body, [*kind.body[1:], None], strict=True):
                told = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
                if isinstance(field, ast.AnnAssign) and not told:
                    missing.append(f"{path.parent.name}/{path.name}:{field.lineno} {ast.unparse(field.target)}")
    assert missing == []


# --- what is refused ---

REFUSALS: list[tuple[str, list[str]]] = [
    # unknown keys, with the nearest one
    ("runner.stepz=3", ["runner.stepz", "runner.steps"]),
    ("optimiser.lr=1", ["optimiser.lr", "optimizer.lr"]),
    ("+runner.foo=1", ["runner.foo", "no such setting"]),
    ("data.sources.tiny_shorts.stile=plain", ["data.sources.tiny_shorts.stile"]),
    ("data.sources.tiny_shorts={shards: x, stile: plain}", ["data.sources.tiny_shorts.stile", "style"]),
    # unknown options of a group, and one where it means nothing
    ("grpo=safe", ["give it to that stage only"]),
    ("stage=stf", ["stage=stf", "sft", ", ".join(STAGES)]),
    ("model=7b", ["model=7b", ", ".join(MODELS)]),
    ("engine=zero9", ["engine=zero9", ", ".join(ENGINES)]),
    # what former versions had
    ("data=tiny_shorts", ["data=tiny_shorts", "data.sources.NAME.shards"]),
    ("preset=tiny/sft", ["preset", "model=NAME"]),
    ("optimizer.module_lrs={llm: 0.1}", ["optimizer.module_lrs.llm", "a learning rate", "optimizer.lr_factors.llm"]),
    # wrong types
    ("grpo.beta=abc", ["grpo.beta", "a number", "'abc'"]),
    ("runner.steps=1.5", ["runner.steps", "a whole number", "1.5"]),
    ("runner.steps=many", ["runner.steps", "a whole number", "'many'"]),
    ("runner.liveness=1", ["runner.liveness", "true or false"]),
    ("optimizer.betas=0.9", ["optimizer.betas", "a list"]),
    ("optimizer.betas=[0.9,x]", ["optimizer.betas[1]", "a number"]),
    ("optimizer.lr_factors=1", ["optimizer.lr_factors", "a mapping"]),
    ("model.text.hidden_size=wide", ["model.text.hidden_size", "a whole number"]),
    ("data.sources.tiny_shorts.tasks.mcq=much", ["data.sources.tiny_shorts.tasks.mcq", "a number"]),
    ("evaluation=3", ["evaluation", "a group of settings", "evaluation."]),
    (
        "data.sources.x.shards=[a.tar,b.tar]",
        ["a text", "several shards are one text", "x.shards='{a.tar,b.tar}'"],
    ),
    ("evaluation.shards=[a.tar]", ["a text", "evaluation.shards='a.tar'"]),
    ("data.sources.x=[a.tar,b.tar]", ["data.sources.x", "data.sources.x.shards="]),
    ("runner.steps=null", ["runner.steps", "a whole number"]),
    ("data_dir=???", ["data_dir"]),
    # out of range
    ("runner.log_every=0", ["runner.log_every=0", "at least 1"]),
    ("runner.precision=fp16", ["runner.precision", "fp32, bf16"]),
    ("schedule.name=step", ["schedule.name", "constant, linear, cosine"]),
    ("schedule.warmup_steps=-1", ["schedule.warmup_steps=-1", "not be negative"]),
    ("schedule.min_ratio=2", ["schedule.min_ratio", "between 0 and 1"]),
    ("optimizer.name=sgd", ["optimizer.name", "adamw, muon"]),
    ("optimizer.lr=0", ["optimizer.lr", "above 0"]),
    ("optimizer.betas=[0.9,1.5]", ["optimizer.betas", "[0, 1)"]),
    ("optimizer.lr_factors={vision: 1}", ["optimizer.lr_factors", "vision_projector"]),
    ("logger.wandb=on", ["logger.wandb", "offline"]),
    ("data.wording=long", ["data.wording", "arc, brief"]),
    ("data.token_budget=0", ["data.token_budget=0", "at least 1"]),
    ("data.over_budget=cut", ["data.over_budget", "drop", "error", "fewer_frames"]),
    ("data.sources.tiny_shorts.style=poem", ["style='poem'", "plain, think"]),
    ("evaluation.metrics=[rouge]", ["evaluation.metrics", "rouge", "mcq_accuracy"]),
    ("evaluation.items=-1", ["evaluation.items=-1", "at least 0"]),
    ("grpo.num_generations=1", ["grpo.num_generations=1", "at least 2"]),
    ("grpo.loss_type=ppo", ["grpo.loss_type", "dapo"]),
    ("grpo.temperature=0", ["grpo.temperature", "above 0"]),
    ("stage.train=[decoder]", ["stage.train", "decoder", "llm"]),
    ("stage.train=[]", ["stage.train", "llm"]),
    ("stage.objective=kto", ["stage.objective", "next_token, grpo"]),
    ("engine.train_batch_size=4", ["engine.train_batch_size", "data.packs_per_step"]),
    ("engine.zero_optimization.stage=4 optimizer.name=adamw", ["engine.zero_optimization.stage", "0, 1, 2 or 3"]),
    # settings that are fine alone
    ("engine=zero2", ["optimizer.name=muon", "engine=zero0", "optimizer.name=adamw"]),
    ("data.frames=random", ["feature_cache", "data.frames=middle"]),
    ("stage.train=[llm,vit]", ["feature_cache=true", "stage.train"]),
]


@pytest.mark.parametrize(("override", "words"), REFUSALS, ids=[override for override, _ in REFUSALS])
def test_a_setting_that_cannot_run_is_refused_by_name(override: str, words: list[str]) -> None:
    base = [] if override.startswith("stage=") else ["stage=sft"]
    told = refusal(*base, *re.split(r" (?=[a-z]\w*\.)", override))
    assert [word for word in words if word not in told] == []
    assert len(told.splitlines()) == 1


@pytest.mark.parametrize(
    ("override", "word"),
    [
        ("model.text.num_attention_heads=3", "model.text.num_attention_heads"),
        ("model.vision.force_image_size=100", "model.vision.force_image_size"),
        ("model.audio_pooling=1", "model.audio_pooling"),
        ("model.audio.num_mel_bins=100", "mel_bins"),
    ],
)
def test_sizes_that_do_not_fit_each_other_are_refused(override: str, word: str) -> None:
    assert word in refusal("stage=sft", override)


def test_a_stage_without_sources_asks_for_some() -> None:
    told = refusal("stage=sft", "~data.sources")
    assert "data.sources is empty" in told
    (example,) = re.findall(r"data\.sources\.\S+=\S+", told)
    assert list(settings("stage=sft", "~data.sources", example).data.sources) == ["mine"]


def test_all_problems_are_told_at_once() -> None:
    told = refusal("stage=sft", "runner.steps=0", "optimizer.name=sgd", "schedule.name=step")
    assert [key for key in ("runner.steps", "optimizer.name", "schedule.name") if key not in told] == []
    assert len(override_problems(["runner.stepz=1", "engine=zero9"])) == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--cfg", "job"],
        ["-m", "stage=sft,cold_start"],
        ["hydra.verbose=true"],
        ["-m", "stage=sft", "runner.steps=1,2"],
        ["~logger"],
        ["+data.sources.mine.shards=x"],
        ["hydra/launcher=basic"],
    ],
    ids=" ".join,
)
def test_what_belongs_to_hydra_is_left_to_it(arguments: list[str]) -> None:
    assert override_problems(arguments) == []


def mine(config: RunConfig) -> Any:
    return config.data.sources["tiny_shorts"]


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("optimizer.lr=1e-5", lambda config: config.optimizer.lr == 1e-5),
        ("optimizer.lr=1", lambda config: config.optimizer.lr == 1.0),
        ("evaluation.seed=3", lambda config: config.evaluation.seed == 3),  # not mentioned in any YAML file
        ("data.sources.more.shards=x.tar", lambda config: {"tiny_shorts", "more"} <= set(config.data.sources)),
        ("data.sources.text=null", lambda config: "text" not in config.data.sources),
        ("data.sources.tiny_shorts.max_clips=null", lambda config: mine(config).max_clips is None),
        ("engine.gradient_predivide_factor=2", lambda config: config.engine["gradient_predivide_factor"] == 2),
        ("run_dir=here", lambda config: config.stage_dir == Path("here/sft") and config.base == "here/base"),
        ("output=trial", lambda config: config.stage_dir.name == "trial"),
        ("data_dir=d", lambda config: mine(config).shards == "d/train-*.tar"),
    ],
)  # fmt: skip
def test_overrides_arrive(override: str, read: Callable[[RunConfig], Any]) -> None:
    assert read(settings("stage=sft", override))


# --- recipes ---

RECIPE_FILES = sorted(RECIPES.glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPE_FILES, ids=lambda path: path.stem)
def test_recipes_hold_stages_that_compose(path: Path) -> None:
    recipe = load_recipe(path.stem)
    planned = planned_stages(recipe)
    assert planned
    names = [stage.name for stage in planned]
    assert [target.stage for target in recipe.targets if target.stage not in names] == []
    assert [stage.words for stage in planned if stage_config(stage.words) != stage.config] == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"stagez": []}, ["stagez", "stages"]),
        ({"stages": "sft"}, ["stages", "a list"]),
        ({"stages": [{"output": "x"}]}, ["stages[0].stage", "must be set"]),
        (
            {"stages": ["sft", "stage=sft runner.steps=5 ~data.sources.text"]},
            ["stages[1]", "write {stage: sft, runner.steps: 5, ~data.sources.text: null}"],
        ),
        ({"overrides": ["model=tiny", "feature_cache=false"]}, ["settings: {model: tiny, feature_cache: false}"]),
        ({"stage_overrides": {"sft": "engine=zero1"}}, ["stage_overrides", "stage_settings"]),
        ({"targets": [{"stage": "sft"}]}, ["targets[0].metric", "must be set"]),
        ({"targets": [{"stage": "sft", "metric": "m", "at_least": "high"}]}, ["targets[0].at_least", "a number"]),
        ({"prepare": [{"name": "x", "command": "y"}]}, ["prepare[0].makes"]),
    ],
)
def test_a_recipe_that_is_wrong_is_refused_by_key(tmp_path: Path, change: dict[str, Any], words: list[str]) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"name": "mine", "run_dir": "runs/mine", **change}))
    with pytest.raises(ValueError, match=re.escape(str(path))) as caught:
        load_recipe(str(path))
    assert [word for word in words if word not in str(caught.value)] == []


def test_an_unknown_recipe_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match="recipe=nowhere") as caught:
        load_recipe("nowhere")
    assert [path.stem for path in RECIPE_FILES if path.stem not in str(caught.value)] == []


def test_settings_survive_a_manifest() -> None:
    """What a manifest stores makes the same settings again."""
    config = settings("stage=grpo")
    assert filled(RunConfig, plain_dict(config)) == config


@pytest.mark.parametrize("output", ["/elsewhere", "../elsewhere", "a/../../b", "."])
def test_the_folder_of_a_stage_lies_inside_run_dir(output: str) -> None:
    with pytest.raises(ConfigError, match=rf"output={output} is no folder inside run_dir=.*run_dir=DIR"):
        settings("stage=sft", f"output={output}")
    assert settings("stage=sft", "output=trial/one").stage_dir.name == "one"


def test_a_name_with_a_colon_in_braces_is_told_how_it_is_written() -> None:
    """Hydra reads `my:own: 1` as my -> "own: 1"."""
    written = (
        r"grpo.rewards.my: expected a number, got 'own: 1'; .*written with a backslash: \{my_module\\:my_function: 1\}"
    )
    with pytest.raises(ConfigError, match=written):
        settings("stage=grpo", "grpo.rewards={my:own: 1}")
    (problem,) = grammar_problems(["grpo.rewards={'my:own': 1}"])
    assert "written with a backslash" in problem
    assert grammar_problems([r"grpo.rewards={my\:own: 1}"]) == []
