"""Callbacks: code of another package that hears what a run does, `logger.callbacks`.

They are given copies of numbers and paths, never model, optimizer or data; random states are put back behind every
call. So no weight depends on them, and they are no part of a stage's identity.
"""

from __future__ import annotations

import copy
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from arcvideo.named import load
from arcvideo.saving.randomness import random_state, restore_random_state

EVALUATED = "eval/"
"""How names of numbers begin that were measured on held-out questions."""


class Callback:
    """What can be heard; a class of your own has those methods that it wants, and is made without arguments."""

    def begin(self, *, folder: Path, config: Mapping[str, Any]) -> None:
        """A stage begins, or goes on.

        Args:
            folder: of the stage.
            config: resolved settings, without credentials.
        """

    def step(self, values: Mapping[str, Any]) -> None:
        """A step is done: one object of metrics.jsonl, `step` and numbers by name."""

    def checkpoint(self, path: Path, *, step: int) -> None:
        """A checkpoint is whole on disk; `runner.keep_last` may delete it later."""

    def evaluation(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Held-out questions were answered after so many steps: value by name."""

    def end(self, *, status: int) -> None:
        """The run ends: 0 it is finished, 85 it was asked to stop, anything else went wrong."""


class Callbacks:
    """Callbacks of a run; an error of one of them is told and changes nothing."""

    def __init__(self, callbacks: Mapping[str, Any] | None = None) -> None:
        """Take the callbacks by their names in messages; none on ranks other than the first."""
        self._all = dict(callbacks or {})
        self._failed: Counter[tuple[str, str]] = Counter()

    def begin(self, *, folder: Path, config: Mapping[str, Any]) -> None:
        """Tell that a stage begins."""
        self._call("begin", folder=folder, config=config)

    def step(self, values: Mapping[str, Any]) -> None:
        """Tell one object of metrics.jsonl; numbers of an evaluation among them are told as one, too."""
        measured = {name.removeprefix(EVALUATED): value for name, value in values.items() if name.startswith(EVALUATED)}
        if measured:
            self.evaluation(measured, step=int(values["step"]) + 1)
        self._call("step", values)

    def checkpoint(self, path: Path, *, step: int) -> None:
        """Tell of a checkpoint that is whole."""
        self._call("checkpoint", path, step=step)

    def evaluation(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Tell what was measured after so many steps."""
        self._call("evaluation", metrics, step=step)

    def end(self, *, status: int) -> None:
        """Tell how the run ends, and on stderr how often a callback failed."""
        self._call("end", status=status)
        for (name, event), count in self._failed.items():
            if count > 1:
                print(f"callback {name}: {event} failed {count} times in all", file=sys.stderr)
        self._failed.clear()

    def _call(self, event: str, *arguments: Any, **named: Any) -> None:
        for name, callback in self._all.items():
            method = getattr(callback, event, None)
            if method is None:
                continue
            before = random_state()
            try:
                method(*copy.deepcopy(arguments), **copy.deepcopy(named))
            except (Exception, SystemExit) as error:  # the run's own ranks would wait for one that ends
                self._failed[name, event] += 1
                if self._failed[name, event] == 1:
                    text = f"{type(error).__name__}: {error}"
                    print(f"callback {name}: {event} failed, the run goes on: {text}", file=sys.stderr, flush=True)
            finally:
                restore_random_state(before)


@contextmanager
def calling(names: Sequence[str], *, folder: Path, config: Mapping[str, Any]) -> Iterator[Callbacks]:
    """Make the callbacks of a run, tell them its begin, and its end however it comes.

    Args:
        names: of entry points `arcvideo.callbacks`, or `package.module:Class`; none on ranks other than the first.
        folder: of the stage.
        config: resolved settings, without credentials.

    Raises:
        ValueError: one cannot be imported or made.
    """
    callbacks = Callbacks({name: _made(name) for name in names})
    callbacks.begin(folder=folder, config=config)
    try:
        yield callbacks
    except BaseException as error:
        callbacks.end(status=_status(error))
        raise
    callbacks.end(status=0)


def _made(name: str) -> Any:
    kind = load(name, kind="callbacks", key="logger.callbacks")
    before = random_state()
    try:
        return kind()
    except Exception as error:
        raise ValueError(f"logger.callbacks: {name!r} cannot be made: {type(error).__name__}: {error}") from error
    finally:
        restore_random_state(before)


def _status(error: BaseException) -> int:
    """Return the exit status that an error ends in."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    return 130 if isinstance(error, KeyboardInterrupt) else 1
