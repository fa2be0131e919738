"""A recipe: a complete run as an ordered list of stages with their settings, and where each of them stands."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from string import Template
from typing import Any

import yaml

from arcvideo.composing.compose import stage_config
from arcvideo.composing.config import RunConfig, plain_dict
from arcvideo.composing.grammar import parsed, words_of
from arcvideo.composing.overrides import folders, is_group, setting_type, settings_words
from arcvideo.evaluation.targets import Comparison, Target
from arcvideo.lineage.identity import folder_digest
from arcvideo.lineage.manifest import EXPORT_NAME, finished
from arcvideo.lineage.parents import BASE
from arcvideo.lineage.state import State, Wanted, state_of, wanted
from arcvideo.places import RECIPES, from_home
from arcvideo.structured import filled, nearest


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """A step before the stages: making data, or weights to start from."""

    name: str
    """What it makes."""
    command: str
    """Arguments of `python`, for example `-m arcvideo.synthetic --out data`."""
    makes: str
    """File whose existence says that the step is done; written last."""


@dataclass(frozen=True, kw_only=True)
class MachineSettings:
    """What a recipe is cut for; preflight assumes it unless it is told otherwise."""

    device: str = "h200"
    """A name that preflight knows (`device=?` lists them) or cpu."""
    gpus: int = 8
    """Processes, one a device."""
    host_gib: float = 0.0
    """Memory around the devices; 0: not looked at."""


@dataclass(frozen=True, kw_only=True)
class ExpectedSource:
    """What a source is expected to hold; preflight counts with it while there are no shards. Training ignores it."""

    samples: int
    """Items."""
    seconds: float = 0.0
    """Mean length of a clip, which is its frames; 1 for a still, 0 for text."""
    samples_per_clip: int = 1
    """Items about the same clip."""

    def __post_init__(self) -> None:
        if self.samples < 1 or self.samples_per_clip < 1 or not 0 <= self.seconds < float("inf"):
            raise ValueError("samples and samples_per_clip must be at least 1, seconds not negative")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A complete run: what is prepared, the stages in order, and what they should reach."""

    name: str
    """Name of the pipeline."""
    run_dir: str
    """Where its stages write."""
    about: str = ""
    """One paragraph for whoever runs it."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Settings of every stage, nested or dotted: `model: tiny`, `data: {workers: 4}`."""
    prepare: list[Preparation] = field(default_factory=list)
    """Steps before the first stage."""
    stages: list[dict[str, Any]] = field(default_factory=list)
    """In order: the name of a stage alone, or `stage: NAME` with settings of its own. `~KEY:` takes out what its page
    says, `~data.sources:` all of its sources; a source that is null is left out."""
    targets: list[Target] = field(default_factory=list)
    """What the stages should reach; checked at the end."""
    gates: list[Target] = field(default_factory=list)
    """What a stage must reach, or must not lose, before the next one begins; `parent`: where it starts from."""
    machine: MachineSettings | None = None
    """What it is cut for."""
    extends: str | None = None
    """Another recipe: its keys and settings hold where this one's are silent."""
    stage_settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Folder of a stage -> settings over its own, for recipes that extend another."""
    expect: dict[str, ExpectedSource] = field(default_factory=dict)
    """Source -> what it is expected to hold: an estimate before there are shards."""
    comparisons: list[Comparison] = field(default_factory=list)
    """Differences between stages that are shown at the end."""
    given: dict[str, str] = field(default_factory=dict)
    """Words that `$NAME` stands for in all texts of the recipe; `pipeline ... given.NAME=VALUE` changes one."""


@dataclass(frozen=True, kw_only=True)
class PlannedStage:
    """One stage of a recipe."""

    words: tuple[str, ...]
    """Words behind `arcvideo train`."""
    config: RunConfig
    """What they compose to."""

    @property
    def folder(self) -> Path:
        """Where it writes."""
        return self.config.stage_dir

    @property
    def name(self) -> str:
        """Name of its folder."""
        return self.folder.name


def load_recipe(name: str, *, given: Mapping[str, str] | None = None) -> Recipe:
    """Return the recipe of that name, in ./recipes or the package's, or at that path.

    Args:
        given: other values for some of its `given`.

    Raises:
        ValueError: no such recipe, or a key or type that does not fit; the message names it.
    """
    path = _path(name)
    try:
        return filled(Recipe, from_home(put_in(_content(path), given=given or {})))
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from None
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from None


def _path(name: str) -> Path:
    named = [Path("recipes") / f"{name}.yaml", RECIPES / f"{name}.yaml"]
    places = [Path(from_home(name))] if name.endswith((".yaml", ".yml")) else named
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        names = recipe_names()
        raise ValueError(f"recipe={name}: no file {places[-1]}{nearest(name, names)}; there are: {', '.join(names)}")
    return path


def _half_moved(name: str, *, given: Mapping[str, str], extra: Sequence[str]) -> list[str]:
    """Return a line for each override of a setting that the recipe takes from a `given`, which its `prepare` takes too.

    Such a word reaches the stages alone: clips would be made in one folder and looked for in another.

    Args:
        name: of a recipe that loads.
        given: other values for some of its `given`.
        extra: overrides for every stage.
    """
    content = _content(_path(name))
    own = {key: str(value) for key, value in {**(content.get("given") or {}), **given}.items()}
    prepared = str(content.get("prepare") or "")
    shared = {"run_dir": content.get("run_dir"), **(content.get("settings") or {})}
    taken = {key: value[1:] for key, _, value in (word.partition("=") for word in words_of(shared)) if value[:1] == "$"}
    notes = []
    for key, _, value in (word.lstrip("+").partition("=") for word in extra):
        source = taken.get(key, "")
        if source in own and value.rstrip("/") != own[source].rstrip("/") and re.search(rf"\${source}\b", prepared):
            notes.append(
                f"{key}={value} moves the stages alone, the recipe's `prepare` keeps {source}={own[source]}; "
                f"given.{source}={value} moves both"
            )
    return notes


def typed_recipe(name: str, *, words: Sequence[str], extra: Sequence[str]) -> Recipe:
    """Return the recipe of that name as a command line asks for it; overrides that move half of it get a note each.

    Args:
        name: as `load_recipe` takes it.
        words: of the command line; those of the form `given.NAME=VALUE` are other values for its `given`.
        extra: overrides for every stage.

    Raises:
        ValueError: as `load_recipe`.
    """
    given = _given(words)
    recipe = load_recipe(name, given=given)
    for note in _half_moved(name, given=given, extra=extra):
        print(f"note: {note}", file=sys.stderr, flush=True)
    return recipe


def recipe_names() -> list[str]:
    """Return the names that `recipe=` takes here."""
    return sorted({path.stem for folder in (Path("recipes"), RECIPES) for path in folder.glob("*.yaml")})


def _content(path: Path) -> dict[str, Any]:
    """Return the keys of a recipe, with those of the recipe that it extends."""
    own = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(own, dict):
        raise ValueError("expected keys like name, run_dir and stages")
    _refuse_lines(own)
    for key in ("given", "settings", "stage_settings", "expect"):
        if own.get(key) is not None and not isinstance(own[key], Mapping):
            raise ValueError(f"{key}: expected a mapping like {{NAME: VALUE}}, got {own[key]!r}")
    if isinstance(own.get("stages"), list):
        own["stages"] = [{"stage": row} if isinstance(row, str) else row for row in own["stages"]]
    if own.get("extends") is None:
        return own
    near = path.with_name(f"{own['extends']}.yaml")
    base = near if near.is_file() else RECIPES / f"{own['extends']}.yaml"
    if not base.is_file() or base == path:
        raise ValueError(f"extends={own['extends']}: no other recipe of that name")
    below = _content(base)
    return {**below, **own, "settings": _over(below.get("settings") or {}, own.get("settings") or {})}


def _over(below: Any, above: Any) -> Any:
    """Return nested settings with others over them."""
    if not isinstance(below, Mapping) or not isinstance(above, Mapping):
        return above
    return {**below, **{key: _over(below.get(key), value) for key, value in above.items()}}


def _refuse_lines(content: Mapping[str, Any]) -> None:
    """Refuse command lines in a recipe, which former versions had.

    Raises:
        ValueError: naming what to write instead.
    """
    if "overrides" in content:
        raise ValueError(f"overrides: write settings: {_mapping(content['overrides'])}")
    if "stage_overrides" in content:
        raise ValueError("stage_overrides: write stage_settings: {STAGE: {KEY: VALUE}}")
    rows = content.get("stages")
    for number, row in enumerate(rows if isinstance(rows, list) else ()):
        if isinstance(row, str) and "=" in row:
            raise ValueError(f"stages[{number}]: a command line; write {_mapping(shlex.split(row))}")
        if isinstance(row, Mapping) and not isinstance(row.get("stage"), str):
            raise ValueError(f"stages[{number}].stage: must be set")


def _mapping(words: Any) -> str:
    """Return words as a mapping of YAML in one line."""
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        return "{KEY: VALUE}"
    entries = {word.partition("=")[0].lstrip("+"): _read(word) if "=" in word else None for word in words}
    return yaml.safe_dump(entries, default_flow_style=True, sort_keys=False, width=10_000).strip()


def _read(word: str) -> Any:
    try:
        value = parsed(word).value()
    except ValueError:
        return word.partition("=")[2]
    return value if isinstance(value, (int, float, bool, list, dict, type(None))) else str(value)


def misspelt(words: Sequence[str], *, own: Sequence[str]) -> list[str]:
    """Return a line for each word that is no setting, but nearly one of a command's own words.

    Args:
        words: overrides that the command would hand on to a stage, which knows nothing of its words.
        own: names that the command takes as `NAME=VALUE`.
    """
    keys = [word.partition("=")[0] for word in settings_words(words) if "=" in word]
    return [
        f"{key}: no such word{meant}; `--help` shows all"
        for key in keys
        if setting_type(key) is None and not is_group(key, among=folders(words)) and (meant := nearest(key, [*own]))
    ]


def _given(words: Sequence[str]) -> dict[str, str]:
    """Return NAME -> VALUE of the words `given.NAME=VALUE`."""
    said = (word.removeprefix("given.").partition("=") for word in words if word.startswith("given."))
    return {name: value for name, _, value in said}


def put_in(content: dict[str, Any], *, given: Mapping[str, str]) -> dict[str, Any]:
    """Return a recipe's keys with the values of its `given`, or other ones, in place of `$NAME`.

    Raises:
        ValueError: a name that the recipe does not have.
    """
    own = content.get("given") or {}
    for name in given:
        if name not in own:
            close, names = nearest(name, list(own)), ", ".join(own)
            raise ValueError(f"given.{name}: the recipe has no such name{close}; it has {names}")
    texts = {name: str(value) for name, value in {**own, **given}.items()}
    replaced = _put_in({key: value for key, value in content.items() if key != "given"}, texts)
    return {**replaced, "given": texts} if own else replaced


def _put_in(value: Any, texts: Mapping[str, str]) -> Any:
    if isinstance(value, Mapping):
        return {key: _put_in(entry, texts) for key, entry in value.items()}
    if isinstance(value, list):
        return [_put_in(entry, texts) for entry in value]
    if not isinstance(value, str):
        return value
    whole = texts.get(value.removeprefix("$")) if value.startswith("$") else None
    # Alone it keeps its type: a seed is a number.
    return Template(value).safe_substitute(texts) if whole is None else yaml.safe_load(whole)


def planned_stages(recipe: Recipe, *, extra: Sequence[str] = ()) -> list[PlannedStage]:
    """Return the stages of a recipe, composed and checked.

    Args:
        extra: overrides for every stage, after the recipe's own; `run_dir=` moves the whole recipe.

    Raises:
        ValueError: a stage that cannot run, or two that write the same folder.
    """
    if any(word.startswith("stage=") for word in (*words_of(recipe.settings), *extra)):
        raise ValueError("stage= belongs to a recipe's stages only")
    shared = words_of(_over(recipe.settings, {"run_dir": recipe.run_dir}))
    planned, used = [], set()
    for row in recipe.stages:
        name = str(row.get("output") or row["stage"])
        used.add(name)
        own = words_of(_over(row, recipe.stage_settings.get(name, {})))
        words = [*shared, *own, *extra]
        planned.append(PlannedStage(words=tuple(words), config=stage_config(words)))
    unknown = sorted(set(recipe.stage_settings) - used)
    if unknown:
        raise ValueError(
            f"stage_settings.{unknown[0]}: {recipe.name} has no such stage; it has {', '.join(sorted(used))}"
        )
    names = [stage.name for stage in planned]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"two stages of {recipe.name} write the same folder {twice}: give one of them output: NAME")
    return planned


@dataclass(frozen=True, kw_only=True)
class Standing:
    """A stage, what is asked of it, and where it stands."""

    stage: PlannedStage
    parent: str
    """Folder of its parent, for the tree: a stage's folder, or the base weights."""
    asked: Wanted | None
    """None while its parent is not there."""
    state: State


def standing(stages: Sequence[PlannedStage]) -> list[Standing]:
    """Return where every stage stands, as if those before it were brought up to date first."""
    identities: dict[Path, str | None] = {}
    standings = []
    for stage in stages:
        source = parent_folder(stage.config)
        parent = _identity(source, identities=identities)
        if parent is None:
            expected, state = None, State(word="new", reasons=(f"waits for {source}",))
        else:
            expected = wanted(plain_dict(stage.config), parent=parent)
            state = state_of(stage.folder, expected=expected)
        identities[stage.folder] = expected.identity if expected else None
        standings.append(Standing(stage=stage, parent=str(source), asked=expected, state=state))
    return standings


def parent_folder(config: RunConfig) -> Path:
    """Return the stage's folder, or the folder of weights, that a run starts from."""
    if config.parent:
        path = Path(config.parent)
        return path.parent if path.name == EXPORT_NAME else path
    return Path(config.base) if config.stage.parent == BASE else Path(config.run_dir) / config.stage.parent


def _identity(folder: Path, *, identities: Mapping[Path, str | None]) -> str | None:
    """Return identity of what lies in a folder: of a stage of this recipe, of another one's, or the bytes of
    weights.
    """
    if folder in identities:
        return identities[folder]
    manifest = finished(folder)
    if manifest is not None:
        return manifest.identity
    return folder_digest(folder) if (folder / "config.json").exists() else None
