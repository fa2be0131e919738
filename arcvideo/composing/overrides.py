"""Words of the command line before Hydra reads them: what is wrong with them, and what they are for Hydra."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from arcvideo.composing.config import RunConfig, former
from arcvideo.composing.grammar import is_readable, parsed, quoted
from arcvideo.named import conf_folders
from arcvideo.places import CONF_DIR
from arcvideo.structured import COLON, nearest

DEFAULT_MODEL = "tiny"
"""The model of conf/config.yaml."""
FLAGS_WITH_VALUES = {
    "--cfg": "-c",
    "--info": "-i",
    "--package": "-p",
    "--config-dir": "-cd",
    "--config-path": "-cp",
    "--config-name": "-cn",
    "--experimental-rerun": "",
}
"""Hydra's flags that are followed by a word, and their short forms."""
FLAGS = {"--help", "-h", "--hydra-help", "--version", "--resolve", "--run", "-r", "--multirun", "-m"}
FLAGS |= {"--shell-completion", "-sc"}
"""Hydra's other flags."""
LAUNCHERS_WORDS = ("--local_rank", "--local-rank")
"""What launchers of processes add."""


def flag_value(words: Sequence[str], flag: str) -> str | None:
    """Return the last value of one of `FLAGS_WITH_VALUES`, written `--flag value` or `--flag=value`."""
    names, value = {flag, FLAGS_WITH_VALUES[flag]} - {""}, None
    for place, word in enumerate(words):
        name, equals, given = word.partition("=")
        if name in names:
            value = given if equals else next(iter(words[place + 1 :]), None)
    return value


def agent_words(words: Sequence[str], *, environment: Mapping[str, str]) -> list[str]:
    """Return words in which settings that an agent of W&B sweeps wrote as `--key=value` are plain `key=value`.

    Inside a sweep of W&B each run gets a folder of its own, named by W&B's id of it, unless the words name one.
    """
    plain = []
    for word in words:
        key = word[2:].partition("=")[0]
        is_setting = word.startswith("--") and "=" in word and setting_type(key) is not None
        plain.append(word[2:] if is_setting else word)
    names = {word.lstrip("+").partition("=")[0] for word in plain}
    run = environment.get("WANDB_RUN_ID", "")
    if environment.get("WANDB_SWEEP_ID") and run and "stage" in names and not names & {"output", "--help", "--cfg"}:
        stage = next(word.partition("=")[2] for word in reversed(plain) if word.startswith("stage="))
        plain.append(f"output={stage.rpartition('/')[2]}-{run}")
    return plain


def settings_words(words: Sequence[str]) -> list[str]:
    """Return the words without flags and the values of flags."""
    short = [name for name in FLAGS_WITH_VALUES.values() if name]
    waiting = (*FLAGS_WITH_VALUES, *short)
    pairs = zip(("", *words), words, strict=False)
    return [word for before, word in pairs if not word.startswith("-") and before not in waiting]


# --- options of groups ---


def folders(words: Sequence[str] = ()) -> list[Path]:
    """Return the folders that Hydra looks for options in: the user's, those of other packages, then our own."""
    given = flag_value(words, "--config-dir")
    searched = [Path(given)] if given else []
    for word in words:
        if word.lstrip("+").startswith("hydra.searchpath="):
            entries = re.split(r"[\[\],]", word.partition("=")[2])
            searched += [folder for entry in entries if (folder := _folder(entry.strip(" '\"")))]
    return [*searched, *conf_folders(), CONF_DIR]


def with_search(words: Sequence[str], *, first: Sequence[str] = ()) -> list[str]:
    """Return words with one `hydra.searchpath` that also has the folders that other packages bring.

    Args:
        words: for Hydra.
        first: entries before those in the words.
    """
    given = [word for word in words if word.lstrip("+").startswith("hydra.searchpath=")]
    said = given[-1].partition("=")[2].strip().removeprefix("[").removesuffix("]") if given else ""
    entries = [*first, *filter(None, (said,)), *(f"file://{folder}" for folder in conf_folders())]
    rest = [word for word in words if word not in given]
    return [*rest, f"hydra.searchpath=[{','.join(entries)}]"] if entries else rest


def _folder(entry: str) -> Path | None:
    """Return the folder of an entry of hydra.searchpath: `file://DIR`, `pkg://a.b` or a plain path."""
    scheme, _, rest = entry.rpartition("://")
    if scheme == "pkg":
        try:
            spec = importlib.util.find_spec(rest)
        except ModuleNotFoundError:
            return None
        places = list(spec.submodule_search_locations or ()) if spec else []
        return Path(places[0]) if places else None
    return Path(os.path.expanduser(rest)) if rest and scheme in ("", "file") else None


def options(group: str, *, among: Sequence[Path]) -> list[str]:
    """Return the options of a group, as they are chosen; names that begin with `_` are shared by others."""
    names = {
        path.relative_to(folder / group).with_suffix("").as_posix()
        for folder in among
        for path in (folder / group).rglob("*.yaml")
        if not path.name.startswith("_")
    }
    return sorted(names)


def is_group(key: str, *, among: Sequence[Path]) -> bool:
    """Return whether a key chooses a file of values."""
    return "." not in key and any((folder / key.partition("@")[0]).is_dir() for folder in among)


def model_of(words: Sequence[str]) -> str:
    """Return the model that these words choose, which says where stages are looked up."""
    chosen = [word.partition("=")[2] for word in words if word.lstrip("+").startswith("model=")]
    return chosen[-1] if chosen else DEFAULT_MODEL


def stages(words: Sequence[str]) -> list[str]:
    """Return the names that `stage=` takes beside MODEL/STAGE: those of the chosen model and the user's own."""
    names = (name.removeprefix(f"{model_of(words)}/") for name in options("stage", among=folders(words)))
    return sorted({name for name in names if "/" not in name})


def beside(page: str, *, stage: str) -> str:
    """Return how a stage is chosen that stands beside another one's page: `sft` for tiny, else `MODEL/sft`."""
    model, slash, _ = page.rpartition("/")
    return stage if model in ("", DEFAULT_MODEL) else f"{model}{slash}{stage}"


def _page(stage: str, *, words: Sequence[str], among: Sequence[Path]) -> str:
    """Return the option that a stage stands for: `tiny/sft` for sft with model=tiny."""
    inside = f"{model_of(words)}/{stage}"
    pages = options("stage", among=among)
    return inside if stage not in pages and inside in pages else stage


# --- what is wrong ---


def override_problems(arguments: Sequence[str]) -> list[str]:
    """Return what is wrong with command-line overrides, before Hydra reads them: unknown keys and options."""
    among, swept = folders(arguments), bool({"-m", "--multirun"} & set(arguments))
    problems = [
        f"{word}: no such flag; settings are words like optimizer.lr=1e-4"
        for word in arguments
        if word.startswith("-") and not _is_flag(word)
    ]
    if problems:
        return problems
    given = flag_value(arguments, "--config-dir")
    if given and not Path(given).is_dir():
        problems.append(f"--config-dir={given}: no such folder")
    for argument in settings_words(arguments):
        problems += _word_problems(argument, arguments=arguments, among=among, swept=swept)
    return problems


def _is_flag(word: str) -> bool:
    name = word.partition("=")[0]
    short = set(FLAGS_WITH_VALUES.values())
    return name in FLAGS or name in FLAGS_WITH_VALUES or name in short or word.startswith(LAUNCHERS_WORDS)


def _word_problems(argument: str, *, arguments: Sequence[str], among: Sequence[Path], swept: bool) -> Iterator[str]:
    key, equals, value = argument.lstrip("+~").partition("=")
    if key.split(".")[0].split("/")[0] == "hydra":
        return
    if not equals:
        if not argument.startswith("~"):
            yield f"{argument}: expected KEY=VALUE{_meant(argument, arguments=arguments)}"
        return
    kind, group = setting_type(key), is_group(key, among=among)
    if "," in value and not swept and not set("[({'\"") & set(value):
        text = kind is str and not group
        remedy = f"a text with commas is quoted: \"{key}='{value}'\"" if text else f"a list is written {key}=[{value}]"
        yield f"{argument}: several values are a sweep: add -m; {remedy}"
    elif group and not value.startswith("{"):
        choices = stages(arguments) if key == "stage" else options(key.partition("@")[0], among=among)
        if key == "stage" and "," in model_of(arguments):
            yield "model and stage cannot be swept one by one: write -m stage=tiny/sft,arc_hunyuan_7b/sft"
            return
        for choice in value.split(","):
            page = _page(choice, words=arguments, among=among) if key == "stage" else choice
            unknown = page not in options(key.partition("@")[0], among=among)
            if key == "stage" and model_of(arguments) not in options("model", among=among):
                return  # that is told about the model
            if choice and unknown and "(" not in value:
                yield f"{key}={choice}: no such option{nearest(choice, choices)}; there are: {', '.join(choices)}"
    elif kind is None:
        yield f"{key}: no such setting{former(key) or _near(key)}; `--help` shows all"
    elif former(key) and not value.startswith("{"):
        yield f"{key}={value}: no such option{former(key)}"


def _meant(word: str, *, arguments: Sequence[str]) -> str:
    """Return a question after the override that a bare word may have been meant for."""
    return f" (did you mean 'stage={word}'?)" if word in stages(arguments) else ""


def grammar_problems(words: Sequence[str]) -> list[str]:
    """Return what Hydra cannot read at all in overrides, such as a bracket that is never closed."""
    problems = []
    for word in settings_words(as_overrides(words)):
        key, equals, value = word.partition("=")
        if not equals:
            continue
        try:
            parsed(word)
        except ValueError as error:
            known = key.lstrip("+")
            quoted = f"a text with such signs is quoted: \"{known}='{value}'\""
            if typing.get_origin(setting_type(known)) is list and value.startswith("["):
                entries = ",".join(f"'{entry.strip()}'" for entry in value.strip("[]").split(","))
                quoted = f'a list is closed, and texts with such signs in it are quoted: "{known}=[{entries}]"'
            remedy = COLON if value.startswith("{") and ":" in value else quoted
            problems.append(f"{word.lstrip('+')}: cannot be read: {error}; {remedy}")
    return problems


def merge_notes(words: Sequence[str], *, config: RunConfig) -> list[str]:
    """Return a line for each mapping in the words that was added to entries which a page had given already.

    Hydra merges mappings; who writes `grpo.rewards={mine: 1}` may have meant that these are all.
    """
    plain, notes = settings_words(words), []
    for word in plain:
        key, _, value = word.lstrip("+").partition("=")
        if not value.startswith("{") or typing.get_origin(setting_type(key)) is not dict or f"~{key}" in plain:
            continue
        given: Any = parsed(f"{key}={value}").value()
        held: Any = config
        for name in key.split("."):
            held = held[name] if isinstance(held, dict) else getattr(held, name)
        before = [name for name in held if name not in {str(entry) for entry in given}]
        if before:
            notes.append(f"{key}: {', '.join(before)} of the stage's page stay beside these; '~{key}' takes them out")
    return notes


# --- what Hydra is given ---


def as_overrides(arguments: Sequence[str]) -> list[str]:
    """Return the arguments for Hydra.

    Known settings may be given whether or not a YAML file mentions them, a stage by its name alone, and a text without
    quotes even where Hydra's grammar asks for them.
    """
    among, plain = folders(arguments), settings_words(arguments)
    return [_as_override(word, arguments=arguments, among=among) if word in plain else word for word in arguments]


def _as_override(word: str, *, arguments: Sequence[str], among: Sequence[Path]) -> str:
    key, equals, value = word.partition("=")
    name = key.lstrip("+")
    if not equals or word.startswith("~"):
        return word
    if name == "stage":
        chosen = re.sub(r"[\w./-]+", lambda match: _page(match[0], words=arguments, among=among), value)
        return f"{key}={chosen}"
    kind = setting_type(name)
    if is_group(name, among=among) and not value.startswith("{"):
        return word
    if kind is None and name.split(".")[0] != "hydra":
        return word
    if kind is str and not is_readable(f"{name}={value}"):
        word = f"{key}={quoted(value)}"
    return word if key.startswith("+") or kind is None else f"++{word}"


def setting_type(key: str, kind: Any = RunConfig) -> Any:
    """Return the type of a dotted setting without `None`; None when there is no such setting.

    Free dictionaries accept any name below them.
    """
    for name in key.split("."):
        if dataclasses.is_dataclass(kind):
            hints = typing.get_type_hints(kind)
            if name not in hints or name not in {entry.name for entry in dataclasses.fields(kind)}:
                return None
            kind = _without_none(hints[name])
        elif typing.get_origin(kind) is dict:
            kind = _without_none(typing.get_args(kind)[1])
        elif kind is not Any:
            return None
    return kind


def _near(key: str) -> str:
    """Return a question after the setting that may be meant: among those beside it, then among all."""
    above, _, name = key.rpartition(".")
    beside = setting_type(above) if above else None
    if dataclasses.is_dataclass(beside):
        fields = [entry.name for entry in dataclasses.fields(beside)]
        if meant := [f"{above}.{field}" for field in fields if nearest(name, [field])]:
            return nearest(key, meant)
    return nearest(key, list(setting_keys()))


def setting_keys(kind: Any = RunConfig, *, prefix: str = "") -> Iterator[str]:
    """Yield the dotted names of all settings."""
    for entry in dataclasses.fields(kind):
        name = f"{prefix}{entry.name}"
        yield name
        inner = _without_none(typing.get_type_hints(kind)[entry.name])
        if dataclasses.is_dataclass(inner):
            yield from setting_keys(inner, prefix=f"{name}.")


def _without_none(kind: Any) -> Any:
    """Return the type of a setting that may also be null."""
    inner = [argument for argument in typing.get_args(kind) if argument is not type(None)]
    return inner[0] if type(None) in typing.get_args(kind) and len(inner) == 1 else kind
