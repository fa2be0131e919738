"""The settings of a stage from words like `stage=sft runner.steps=5`, without running the stage."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
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


@contextmanager
def _initialized() -> Iterator[None]:
    """Hydra's global state: the one of a running application, or one of our own."""
    if GlobalHydra.instance().is_initialized():
        yield
        return
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF_DIR)):
        yield
