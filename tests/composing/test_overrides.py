"""Words of the command line: a user's own options are found, any text may be typed, nested settings become words."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from arcvideo.composing.compose import composed, shown_text, stage_config
from arcvideo.composing.config import ConfigError
from arcvideo.composing.grammar import parsed, words_of
from arcvideo.composing.overrides import as_overrides, grammar_problems, override_problems
from arcvideo.composing.recipe import load_recipe, planned_stages
from arcvideo.composing.sweep import first_words
from arcvideo.places import words_from_home

PAGE = """# @package _global_
defaults:
  - /stage/tiny/_common
  - _self_
  - override /engine: two
stage: {name: mine, parent: base, train: [llm]}
data: {sources: {x: {shards: x.tar}}}
optimizer: {name: adamw, lr: 0.5}
"""


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    """A user's folder: a stage, an engine, an experiment and a group of their own."""
    files = {
        "stage/mine.yaml": PAGE,
        "engine/two.yaml": "zero_optimization: {stage: 2}\n",
        "experiment/short.yaml": (
            "# @package _global_\ndefaults:\n  - override /stage: tiny/sft\nrunner: {steps: 7}\n"
        ),
        "rates/low.yaml": "# @package optimizer\nlr: 1.0e-9\n",
    }  # fmt: skip
    for name, text in files.items():
        (tmp_path / "conf" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "conf" / name).write_text(text)
    return tmp_path / "conf"


@pytest.mark.parametrize("how", ["--config-dir", "--config-dir=", "hydra.searchpath"])
def test_options_of_another_folder_are_found(conf: Path, how: str) -> None:
    given = {
        "--config-dir": ["--config-dir", str(conf)],
        "--config-dir=": [f"--config-dir={conf}"],
        "hydra.searchpath": [f"hydra.searchpath=[file://{conf}]"],
    }[how]
    mine = stage_config([*given, "stage=mine"])
    assert (mine.stage.name, mine.optimizer.lr, mine.engine["zero_optimization"]["stage"]) == ("mine", 0.5, 2)
    assert mine.data.wording == "brief"  # from what the pages of tiny share
    assert stage_config([*given, "stage=sft", "engine=two", "optimizer.name=adamw"]).engine != mine.model
    experiment = stage_config([*given, "+experiment=short"])
    assert (experiment.stage.name, experiment.runner.steps) == ("sft", 7)
    assert stage_config([*given, "stage=sft", "+rates=low"]).optimizer.lr == 1e-9
    assert stage_config([*given, "stage=sft", "+rates=low", "optimizer.lr=1"]).optimizer.lr == 1.0


def test_a_mistake_in_options_of_another_folder_names_what_there_is(conf: Path) -> None:
    (problem,) = override_problems(["--config-dir", str(conf), "stage=mien"])
    assert problem.startswith("stage=mien: no such option (did you mean 'mine'?)")
    (problem,) = override_problems(["--config-dir", str(conf / "nowhere"), "stage=sft"])
    assert problem == f"--config-dir={conf / 'nowhere'}: no such folder"
    (conf / "stage" / "bad.yaml").write_text(PAGE.replace("engine: two", "engine: three"))
    with pytest.raises(ConfigError, match=r"Could not .*'engine/three'.*; there are: two, zero0") as told:
        stage_config(["--config-dir", str(conf), "stage=bad"])
    assert len(str(told.value).splitlines()) == 1


def test_a_file_that_names_a_stage_without_its_model_is_told_how(conf: Path) -> None:
    (conf / "experiment" / "bare.yaml").write_text("# @package _global_\ndefaults: [override /stage: sft]\n")
    with pytest.raises(ConfigError, match=r"'stage/sft'; a file names .*: override /stage: MODEL/sft, of .*tiny/sft"):
        stage_config(["--config-dir", str(conf), "+experiment=bare"])


def test_a_file_of_another_folder_may_be_the_first(conf: Path) -> None:
    (conf / "own.yaml").write_text("defaults: [config, _self_]\nrunner: {log_every: 3}\n")
    words = ["--config-dir", str(conf), "--config-name", "own", "stage=mine"]
    assert stage_config(words).runner.log_every == 3


def test_threads_that_compose_at_once_get_each_its_own_settings(conf: Path) -> None:
    (conf / "own.yaml").write_text("defaults: [config, _self_]\nrunner: {log_every: 3}\n")
    own, plain = ["--config-dir", str(conf), "--config-name", "own", "stage=mine"], ["stage=sft"]
    with ThreadPoolExecutor(4) as threads:
        made = list(threads.map(stage_config, [own, plain] * 8))
    assert {(one.stage.name, one.runner.log_every) for one in made[::2]} == {("mine", 3)}
    assert {(one.stage.name, one.runner.log_every) for one in made[1::2]} == {
        ("sft", stage_config(plain).runner.log_every)
    }


@pytest.mark.parametrize(
    "value", ["https://host/train-{000..011}.tar", "数据/训练.tar", "a=b.tar", "#1.tar", "it's.tar"]
)
def test_a_text_needs_no_quotes_of_hydras(value: str) -> None:
    word = f"data.sources.tiny_shorts.shards={value}"
    assert override_problems([word]) == grammar_problems([word]) == []
    assert stage_config(["stage=sft", word]).data.sources["tiny_shorts"].shards == value


def test_a_tilde_is_the_home_wherever_a_path_may_stand(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    words = ["stage=sft", "run_dir=~/runs", "data_dir=~/data", "parent=~/weights", "data.shard_cache.path=~/copies"]
    config = stage_config(words)
    assert (config.stage_dir, config.base) == (tmp_path / "runs" / "sft", f"{tmp_path}/runs/base")
    assert (config.parent, config.data.shard_cache.path) == (f"{tmp_path}/weights", f"{tmp_path}/copies")
    assert config.data.sources["tiny_shorts"].shards == f"{tmp_path}/data/train-*.tar"
    (tmp_path / "mine.yaml").write_text("{name: mine, run_dir: ~/mine, stages: [sft]}\n")
    (stage,) = planned_stages(load_recipe("~/mine.yaml"))
    assert stage.folder == tmp_path / "mine" / "sft"
    home = str(tmp_path)
    expanded = [f"--out={home}/x", f"{home}/y", f"video={home}/z", "a~/b"]
    assert words_from_home(["--out=~/x", "~/y", "video=~/z", "a~/b"]) == expanded


def test_a_text_may_refer_to_other_settings() -> None:
    words = ["stage=sft", "data_dir=d", "data.sources.tiny_shorts.shards=${data_dir}/{00..11}.tar"]
    assert stage_config(words).data.sources["tiny_shorts"].shards == "d/{00..11}.tar"


@pytest.mark.parametrize("value", ["[a;b]", "[a", "[a, b;c"])
def test_a_list_that_cannot_be_read_is_shown_as_one_that_is_a_list(value: str) -> None:
    (problem,) = grammar_problems([f"lora.targets={value}"])
    shown = problem.split('"')[-2]
    assert grammar_problems([shown]) == []
    assert isinstance(parsed(shown).value(), list)


def test_what_cannot_be_read_says_how_it_is_quoted() -> None:
    (problem,) = grammar_problems(["engine.x={a"])
    assert "\"engine.x='{a'\"" in problem
    (problem,) = override_problems(["data.sources.mine.shards=a.tar,b.tar"])
    assert "\"data.sources.mine.shards='a.tar,b.tar'\"" in problem
    (problem,) = override_problems(["evaluation.metrics=a,b"])
    assert "evaluation.metrics=[a,b]" in problem
    (problem,) = override_problems(["--lr", "3", "stage=sft"])
    assert problem.startswith("--lr: no such flag")


SETTINGS: list[dict[str, Any]] = [
    {"runner": {"steps": 5}, "feature_cache": False, "parent": None},
    {"optimizer": {"lr": 1e-30, "lr_factors": {"llm": 0.5}}},
    {"evaluation": {"metrics": ["mcq_accuracy"], "optimize": "train/loss"}},
    {"data": {"sources": {"a": {"shards": "x/{00..11}.tar"}, "b": {"shards": "it's, [a]\\"}}}},
    {"grpo": {"rewards": {"mcq_accuracy": 1.0, "my.package:reward": 0.5}}},
    {"output": "null", "data_dir": "007"},
    {"data_dir": ""},
]


@pytest.mark.parametrize("given", SETTINGS, ids=str)
def test_settings_survive_being_words(given: dict[str, Any]) -> None:
    """A recipe's settings reach the process of a stage as words."""

    def within(part: Any, whole: Any) -> bool:
        if isinstance(part, dict):
            return all(within(value, whole[key]) for key, value in part.items())
        return bool(part == whole)

    from omegaconf import OmegaConf

    whole = OmegaConf.to_container(composed(["stage=tiny/grpo", *words_of(given)]), resolve=True)
    assert within(given, whole)


def test_what_is_taken_out_makes_room_first() -> None:
    row = {"stage": "sft", "data": {"sources": {"mine": {"shards": "x"}}}, "~data.sources": None}
    assert words_of(row) == ["~data.sources", "stage=sft", "data.sources.mine.shards=x"]


def test_the_first_job_of_a_sweep_is_known_before_hydra_starts() -> None:
    swept = ["stage=grpo,sft", "grpo.rewards={mcq_accuracy:2},{temporal_iou:2}", "runner.steps=range(3,9)"]
    words = ["-m", *swept, "optimizer.lr=interval(1e-5,1e-3)", "hydra/launcher=basic"]
    first = stage_config(first_words(words))
    assert (first.stage.name, first.runner.steps) == ("grpo", 3)
    # As everywhere in Hydra, a mapping adds to the one of the stage's page.
    assert (first.grpo.rewards["mcq_accuracy"], first.grpo.rewards["temporal_iou"]) == (2.0, 1.0)
    assert first.optimizer.lr == stage_config(["stage=grpo"]).optimizer.lr


def test_stages_of_several_models_are_swept_by_their_pages() -> None:
    (problem,) = override_problems(["-m", "stage=sft", "model=tiny,arc_hunyuan_7b"])
    assert "stage=tiny/sft,arc_hunyuan_7b/sft" in problem
    assert as_overrides(["stage=choice(sft,arc_hunyuan_7b/sft)"]) == ["stage=choice(tiny/sft,arc_hunyuan_7b/sft)"]


def test_every_setting_is_shown_with_its_default_and_nothing_unresolved() -> None:
    from omegaconf import OmegaConf

    from arcvideo.composing.overrides import setting_keys

    shown = OmegaConf.create(shown_text(["stage=grpo", "model=arc_hunyuan_7b"], kind="job", package=None))
    absent = [key for key in setting_keys() if OmegaConf.select(shown, key, throw_on_missing=True, default="?") == "?"]
    assert [key for key in absent if not key.startswith("lora.")] == []  # there are no adapters
    assert "${" not in OmegaConf.to_yaml(shown)
    assert shown.base == "runs/arc_hunyuan_7b/base"
    part = shown_text(["stage=sft"], kind="hydra", package="hydra.run")
    assert "dir: runs/tiny_shorts/sft/hydra" in part


def test_a_misspelt_setting_is_looked_for_beside_its_neighbours() -> None:
    (problem,) = override_problems(["stage=sft", "data.sources.mine.shard=x"])
    assert "(did you mean 'data.sources.mine.shards'?)" in problem
