"""The settings of a stage from words like `stage=sft runner.steps=5`, without running the stage."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from arcvideo.composing.config import ConfigError, RunConfig, recorded_settings, typed
from arcvideo.composing.overrides import (
    as_overrides,
    flag_value,
    folders,
    options,
    override_problems,
    settings_words,
    stages,
    with_search,
)
from arcvideo.places import CONF_DIR

_one_at_a_time = threading.RLock()
"""Hydra keeps its search path for the whole process: a second thread would use the first one's, or find it gone."""


def stage_config(words: Sequence[str]) -> RunConfig:
    """Return the typed settings that `python -m arcvideo.train WORDS` would run with; flags of sweeps are ignored.

    Raises:
        ConfigError: words that cannot run; the message names key and remedy.
    """
    problems = override_problems(words)
    if problems:
        raise ConfigError("\n".join(problems))
    config = typed(composed(words))
    if not config.objective.sampled and any(word.startswith("grpo=") for word in settings_words(words)):
        raise ConfigError("grpo=paper or grpo=safe sets learning rate and KL of stage=grpo; give it to that stage only")
    return config


def composed(words: Sequence[str], *, with_hydra: bool = False) -> DictConfig:
    """Return what Hydra composes from command-line words.

    Args:
        with_hydra: with Hydra's own settings under `hydra`.

    Raises:
        ConfigError: an option, a key or a value that is not there or cannot be read.
    """
    name = flag_value(words, "--config-name") or "config"
    with _one_at_a_time, _initialized(words, primary=name) as searched:
        overrides = with_search(settings_words(as_overrides(words)), first=searched)
        try:
            return compose(name.removesuffix(".yaml"), overrides=overrides, return_hydra_config=with_hydra)
        except MissingConfigException as error:
            raise ConfigError(str(error).splitlines()[0].rstrip(".") + _choices(error, words=words)) from None
        except HydraException as error:
            first = str(error).splitlines()[0]
            if first.startswith("You must specify 'stage'"):
                first = f"stage: name one, for example stage=sft; there are: {', '.join(stages(words))}"
            raise ConfigError(first) from None


def _choices(error: MissingConfigException, *, words: Sequence[str]) -> str:
    """Return what could be meant by a file of options that is not there."""
    group, _, stage = (error.missing_cfg_file or "").partition("/")
    pages = [page for page in options("stage", among=folders(words)) if page.endswith(f"/{stage}")]
    if group == "stage" and pages:
        return f"; a file names the page of a model: override /stage: MODEL/{stage}, of {', '.join(pages)}"
    return f"; there are: {', '.join(error.options)}" if error.options else ""


@contextmanager
def _initialized(words: Sequence[str], *, primary: str) -> Iterator[list[str]]:
    """Hydra's global state: the one of a running application, or one of our own.

    Yields entries for the search path. Hydra's function for composing has no `--config-dir`, so that folder is searched
    like those of hydra.searchpath; the file of `--config-name` is looked for there first.
    """
    if GlobalHydra.instance().is_initialized():
        yield []
        return
    given, folder, first = flag_value(words, "--config-dir"), CONF_DIR, []
    if given:
        own = Path(given).resolve()
        is_primary = (own / f"{primary.removesuffix('.yaml')}.yaml").is_file()
        folder, other = (own, CONF_DIR) if is_primary else (CONF_DIR, own)
        first = [f"file://{other}"]
    with initialize_config_dir(version_base="1.3", config_dir=str(folder)):
        yield first


def search_words() -> list[str]:
    """Return the words that let another process find the options that this Hydra application finds."""
    sources = HydraConfig.get().runtime.config_sources
    own = {f"file://{CONF_DIR}", "pkg://hydra.conf"}
    paths = [f"{source.schema}://{source.path}" for source in sources if source.schema in ("file", "pkg")]
    return [f"hydra.searchpath=[{','.join(more)}]"] if (more := [path for path in paths if path not in own]) else []


def shown_text(words: Sequence[str], *, kind: str, package: str | None) -> str:
    """Return settings as YAML: of the job every one, defaults included and references followed.

    Args:
        kind: job, hydra or all, as behind Hydra's `--cfg`.
        package: a part of them, such as `optimizer`.

    Raises:
        ConfigError: they do not compose, or have no such part.
    """
    whole: dict[str, Any] = {}
    if kind in ("job", "all"):
        whole |= recorded_settings(stage_config(words))
    if kind in ("hydra", "all"):
        made = composed(words, with_hydra=True)
        HydraConfig.instance().set_config(made)
        whole["hydra"] = _resolved(made.hydra)
    shown = OmegaConf.create(whole)
    if package in (None, "_global_"):
        return OmegaConf.to_yaml(shown)
    part = OmegaConf.select(shown, str(package))
    if part is None:
        raise ConfigError(f"--package {package}: no such part of the settings")
    return f"# @package {package}\n{OmegaConf.to_yaml(part) if OmegaConf.is_config(part) else part}"


def _resolved(node: Any) -> Any:
    """Return plain values with references followed; what is known only while a job runs stays as it is written."""
    keys = list(node) if OmegaConf.is_dict(node) else range(len(node))
    plain = {}
    for key in keys:
        try:
            value = node[key]
        except OmegaConfBaseException:
            value = OmegaConf.to_container(node, resolve=False)[key]  # type: ignore[call-overload,index]
        plain[key] = _resolved(value) if OmegaConf.is_config(value) else value
    return plain if OmegaConf.is_dict(node) else list(plain.values())
