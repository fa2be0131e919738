"""Further places that numbers go to: MLflow, SwanLab, trackio, and loggers of other packages, all through one protocol.

A mirror lives in a thread of its own: one that hangs, errs or dies costs no step. Its package is imported there.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from arcvideo.files import write_whole
from arcvideo.hidden import hidden
from arcvideo.named import load
from arcvideo.tracking.settings import MIRRORS, LoggerSettings

_WAITING = 10_000
"""Steps that may wait for a mirror."""
_PATIENCE = 30
"""Seconds a mirror may take to finish."""
_PARAMETER = 500
"""Letters of a setting that MLflow takes."""
STEP = "time/step"
"""In each object of metrics.jsonl that tells of a step, and in none that tells of a finished stage's figures."""


class Mirror(Protocol):
    """Where numbers go besides metrics.jsonl; made as `Class(settings, folder=, name=, config=, start=)`.

    One that has an attribute `last`, the last step that it holds (-1: none), gets each step once across kills: what it
    lacks of the steps before `start` is written first, and steps that it holds are not written again.
    """

    def write(self, values: Mapping[str, Any]) -> None:
        """Take one object of metrics.jsonl: `step`, and numbers by name."""
        ...

    def close(self, *, exit_code: int) -> None:
        """Finish; 0 says that the run did what it was to do."""
        ...


class BesideMirror:
    """A mirror in a thread: any failure is said once on stderr and switches it off."""

    late = ""
    """What else is said of one that does not answer in time."""

    def __init__(
        self,
        name: str,
        make: Callable[[], Mirror] | None,
        *,
        past: Sequence[Mapping[str, Any]] = (),
        advice: str = "",
    ) -> None:
        """Start.

        Args:
            name: for messages.
            make: makes the mirror, in the thread; None for one that is off.
            past: objects of metrics.jsonl from before; those that a kill kept from the mirror are written first.
            advice: said behind any failure: where it was sent to, and what to do.
        """
        self.name, self._on, self._advice = name, make is not None, advice
        self._past = past
        self._todo: queue.Queue[Mapping[str, Any] | int] = queue.Queue(_WAITING)
        if make is None:
            return
        self._thread = threading.Thread(target=self._work, args=(make,), name=name, daemon=True)
        self._thread.start()

    def write(self, values: Mapping[str, Any]) -> None:
        """Hand over one object of metrics.jsonl."""
        if self._on:
            try:
                self._todo.put_nowait(values)
            except queue.Full:
                self._give_up(TimeoutError(f"{_WAITING} steps are waiting to be sent"))

    def close(self, *, exit_code: int = 0) -> None:
        """Finish; a mirror that does not answer is not waited for longer than half a minute."""
        if not self._on:
            return
        with contextlib.suppress(queue.Full):
            self._todo.put_nowait(exit_code)
        self._thread.join(_PATIENCE)
        if self._thread.is_alive():
            self._give_up(TimeoutError(f"no answer in {_PATIENCE} s{self.late}"))
        self._on = False

    def _work(self, make: Callable[[], Mirror]) -> None:
        try:
            mirror = make()
            last = getattr(mirror, "last", None)
            past, self._past = self._past, ()
            for line in past if last is not None else ():
                if line["step"] > last and self._on:
                    mirror.write(line)
            del past  # as long as the run is
            while self._on:
                item = self._todo.get()
                if isinstance(item, int):
                    mirror.close(exit_code=item)
                    return
                # Figures of a stage that is measured again stand behind its steps, and are new.
                if last is None or item["step"] > last or STEP not in item:
                    mirror.write(item)
        except Exception as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        if self._on:
            self._on = False
            why = f"{type(error).__name__}: {error}{self._advice}"
            print(f"{self.name} is off for this run, training goes on: {why}", file=sys.stderr)


def open_mirrors(
    settings: LoggerSettings,
    *,
    folder: Path,
    name: str,
    config: Mapping[str, Any],
    start: int,
    past: Sequence[Mapping[str, Any]] = (),
) -> list[BesideMirror]:
    """Return the mirrors that `logger.mirrors` names, each in its thread.

    Args:
        settings: of the run.
        folder: of the run; what a mirror needs to go on after a restart is kept there.
        name: of the run.
        config: resolved settings.
        start: first step that will be written.
        past: objects of metrics.jsonl from before it.
    """

    def maker(mirror: str) -> Callable[[], Mirror]:
        def make() -> Mirror:
            kind = _OURS[mirror] if mirror in MIRRORS else load(mirror, kind="loggers", key="logger.mirrors")
            made: Mirror = kind(settings, folder=folder, name=name, config=config, start=start)
            return made

        return make

    return [BesideMirror(mirror, maker(mirror), past=past) for mirror in settings.mirrors]


def numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers among an object's values, without its step."""
    return {key: float(value) for key, value in values.items() if key != "step" and isinstance(value, int | float)}


class MlflowMirror:
    """An MLflow run of the experiment `logger.project`, at MLFLOW_TRACKING_URI or in `mlruns` beside the stages."""

    def __init__(
        self, settings: LoggerSettings, *, folder: Path, name: str, config: Mapping[str, Any], start: int
    ) -> None:
        """Begin a run, or go on with the one that this folder began."""
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        uri = os.environ.get("MLFLOW_TRACKING_URI")
        if uri is None:
            # MLflow asks for this word where runs are kept as plain files, which need no further package.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            uri = (folder.absolute().parent / "mlruns").as_uri()
        self._client, self._metric = MlflowClient(uri), Metric
        project = self._client.get_experiment_by_name(settings.project)
        experiment = project.experiment_id if project else self._client.create_experiment(settings.project)
        note = folder / "mlflow.json"
        self.last = -1
        if note.exists() and start:
            self.run_id = str(json.loads(note.read_text())["run_id"])
            self._client.update_run(self.run_id, status="RUNNING")
            history = self._client.get_metric_history(self.run_id, mlflow_name(STEP))
            self.last = max((row.step for row in history), default=-1)
            return
        tags = {mlflow_name(hidden(tag)): "true" for tag in settings.tags}
        tags |= {"group": folder.absolute().parent.name, "stage": folder.name}
        self.run_id = self._client.create_run(experiment, run_name=name, tags=tags).info.run_id
        write_whole(note, json.dumps({"run_id": self.run_id}) + "\n")
        parameters = [Param(mlflow_name(key), str(value)[:_PARAMETER]) for key, value in _flat(config)]
        for first in range(0, len(parameters), 100):
            self._client.log_batch(self.run_id, params=parameters[first : first + 100])

    def write(self, values: Mapping[str, Any]) -> None:
        """Log one step's numbers."""
        now, step = int(time.time() * 1000), int(values["step"])
        metrics = [self._metric(mlflow_name(key), value, now, step) for key, value in numbers(values).items()]
        self._client.log_batch(self.run_id, metrics=metrics)

    def close(self, *, exit_code: int) -> None:
        """End the run."""
        self._client.set_terminated(self.run_id, status="FAILED" if exit_code else "FINISHED")


def mlflow_name(name: str) -> str:
    """Return a name that MLflow takes: `eval/mcq_accuracy.low`, `eval/mcq_accuracy_needs:audio_`.

    Where its runs are files, slashes make folders, so that `x` and `x/low` could not both be. It draws one panel for
    what stands before the first slash, which stays.
    """
    group, slash, rest = re.sub(r"[^\w.\- :/]", "_", name).partition("/")
    return (group + slash + rest.replace("/", "."))[:250]


class SwanlabMirror:
    """A SwanLab run of `logger.project`; SWANLAB_MODE says where, files below the stage's folder without it."""

    def __init__(
        self, settings: LoggerSettings, *, folder: Path, name: str, config: Mapping[str, Any], start: int
    ) -> None:
        """Begin a run, or go on with the one that this folder began."""
        import swanlab

        # It drops steps that its server has, and writes its files late, so they do not say what a kill left: all is
        # written again.
        self.last = -1

        self._run = swanlab.init(
            project=settings.project,
            workspace=settings.entity,
            name=name,
            group=folder.absolute().parent.name,
            job_type=folder.name,
            tags=[hidden(tag) for tag in settings.tags] or None,
            config=dict(_flat(config)),
            mode=os.environ.get("SWANLAB_MODE", "offline"),  # type: ignore[arg-type]
            log_dir=str(folder / "swanlog"),
            id=kept_id(folder / "swanlab.json", again=start > 0),
            resume="allow",
        )

    def write(self, values: Mapping[str, Any]) -> None:
        """Log one step's numbers."""
        self._run.log(numbers(values), step=int(values["step"]))

    def close(self, *, exit_code: int) -> None:
        """End the run."""
        self._run.finish("crashed" if exit_code else "success", error="ended early" if exit_code else None)


class TrackioMirror:
    """A trackio run of `logger.project`, in TRACKIO_DIR; `trackio show` draws it."""

    def __init__(
        self, settings: LoggerSettings, *, folder: Path, name: str, config: Mapping[str, Any], start: int
    ) -> None:
        """Begin a run, or go on with the one of this name."""
        import trackio

        group = folder.absolute().parent.name
        self._run = trackio.init(
            project=settings.project, name=name, group=group, config=dict(_flat(config)), resume="allow", embed=False
        )
        self.last: int | None = getattr(self._run, "_next_step", 0) - 1

    def write(self, values: Mapping[str, Any]) -> None:
        """Log one step's numbers."""
        self._run.log(numbers(values), step=int(values["step"]))

    def close(self, *, exit_code: int) -> None:
        """End the run."""
        self._run.finish()


_OURS: dict[str, Callable[..., Mirror]] = {
    "mlflow": MlflowMirror,
    "swanlab": SwanlabMirror,
    "trackio": TrackioMirror,
}
assert set(_OURS) == set(MIRRORS)


def kept_id(note: Path, *, again: bool) -> str:
    """Return an id of letters and digits that a run keeps across restarts, in a file of its folder."""
    if again and note.exists():
        return str(json.loads(note.read_text())["id"])
    made = os.urandom(8).hex()
    write_whole(note, json.dumps({"id": made}) + "\n")
    return made


def close_all(mirrors: Iterable[BesideMirror], *, exit_code: int) -> None:
    """Close mirrors one after the other."""
    for mirror in mirrors:
        mirror.close(exit_code=exit_code)


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield (
                f"{prefix}{key}",
                value if isinstance(value, bool | int | float | str) else json.dumps(value, default=str),
            )
