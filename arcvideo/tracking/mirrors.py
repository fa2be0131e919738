"""Further places that numbers go to: MLflow, SwanLab, trackio, and loggers of other packages, all through one protocol.

A mirror lives in a thread of its own: one that hangs, errs or dies costs no step. Its package is imported there.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from arcvideo.named import load
from arcvideo.tracking.settings import MIRRORS, LoggerSettings

_WAITING = 10_000
"""Steps that may wait for a mirror."""
_PATIENCE = 30
"""Seconds a mirror may take to finish."""
_PARAMETER = 500
"""Letters of a setting that MLflow takes."""


class Mirror(Protocol):
    """Where numbers go besides metrics.jsonl; made as `Class(settings, folder=, name=, config=, start=)`."""

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

    def __init__(self, name: str, make: Callable[[], Mirror] | None, *, advice: str = "") -> None:
        """Start.

        Args:
            name: for messages.
            make: makes the mirror, in the thread; None for one that is off.
            advice: said behind any failure: where it was sent to, and what to do.
        """
        self.name, self._on, self._advice = name, make is not None, advice
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
            while self._on:
                item = self._todo.get()
                if isinstance(item, int):
                    mirror.close(exit_code=item)
                    return
                mirror.write(item)
        except Exception as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        if self._on:
            self._on = False
            told = f"{type(error).__name__}: {error}{self._advice}"
            print(f"{self.name} is off for this run, training goes on: {told}", file=sys.stderr)


def open_mirrors(
    settings: LoggerSettings, *, folder: Path, name: str, config: Mapping[str, Any], start: int
) -> list[BesideMirror]:
    """Return the mirrors that `logger.mirrors` names, each in its thread.

    Args:
        settings: of the run.
        folder: of the run; what a mirror needs to go on after a restart is kept there.
        name: of the run.
        config: resolved settings.
        start: first step that will be written.
    """

    def maker(mirror: str) -> Callable[[], Mirror]:
        def make() -> Mirror:
            kind = _OURS[mirror] if mirror in MIRRORS else load(mirror, kind="loggers", key="logger.mirrors")
            made: Mirror = kind(settings, folder=folder, name=name, config=config, start=start)
            return made

        return make

    return [BesideMirror(mirror, maker(mirror)) for mirror in settings.mirrors]


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
        known = self._client.get_experiment_by_name(settings.project)
        experiment = known.experiment_id if known else self._client.create_experiment(settings.project)
        note = folder / "mlflow.json"
        if note.exists() and start:
            self.run_id = str(json.loads(note.read_text())["run_id"])
            self._client.update_run(self.run_id, status="RUNNING")
            return
        tags = {"group": folder.absolute().parent.name, "stage": folder.name, **dict.fromkeys(settings.tags, "true")}
        self.run_id = self._client.create_run(experiment, run_name=name, tags=tags).info.run_id
        note.write_text(json.dumps({"run_id": self.run_id}) + "\n")
        parameters = [Param(key, str(value)[:_PARAMETER]) for key, value in _flat(config)]
        for first in range(0, len(parameters), 100):
            self._client.log_batch(self.run_id, params=parameters[first : first + 100])

    def write(self, values: Mapping[str, Any]) -> None:
        """Log one step's numbers."""
        now, step = int(time.time() * 1000), int(values["step"])
        found = [self._metric(key, value, now, step) for key, value in numbers(values).items()]
        self._client.log_batch(self.run_id, metrics=found)

    def close(self, *, exit_code: int) -> None:
        """End the run."""
        self._client.set_terminated(self.run_id, status="FAILED" if exit_code else "FINISHED")


class SwanlabMirror:
    """A SwanLab run of `logger.project`; SWANLAB_MODE says where, files below the stage's folder without it."""

    def __init__(
        self, settings: LoggerSettings, *, folder: Path, name: str, config: Mapping[str, Any], start: int
    ) -> None:
        """Begin a run, or go on with the one that this folder began."""
        import swanlab

        self._run = swanlab.init(
            project=settings.project,
            workspace=settings.entity,
            name=name,
            group=folder.absolute().parent.name,
            job_type=folder.name,
            tags=list(settings.tags) or None,
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
    note.write_text(json.dumps({"id": made}) + "\n")
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
