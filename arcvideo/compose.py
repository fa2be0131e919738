"""The settings of a stage from words like `stage=sft runner.steps=5`, without running the stage."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from arcvideo.config import CONF_DIR, ConfigError, RunConfig, as_overrides, override_problems, typed


def stage_config(words: Sequence[str]) -> RunConfig:
    """The typed settings that `python -m arcvideo.train WORDS` would run with.

    Raises:
        ConfigError: words that cannot run; the message names key and remedy.
    """
    problems = override_problems(words)
    if problems:
        raise ConfigError("\n".join(problems))
    with _initialized():
        try:
            composed = compose("config", overrides=as_overrides(words))
        except HydraException as error:
            raise ConfigError(str(error).splitlines()[0]) from None
    return typed(composed)


def grammar_problems(words: Sequence[str]) -> list[str]:
    """What Hydra cannot read at all in overrides, such as a bracket that is never closed; flags are passed over."""
    parser, problems = OverridesParser.create(), []
    for word in words:
        if "=" not in word or word.startswith("-"):
            continue
        try:
            parser.parse_override(word)
        except HydraException as error:
            problems.append(f"{word}: cannot be read: {str(error).splitlines()[0]}")
    return problems


@contextmanager
def _initialized() -> Iterator[None]:
    """Hydra's global state: the one of a running application, or one of our own."""
    if GlobalHydra.instance().is_initialized():
        yield
        return
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF_DIR)):
        yield
