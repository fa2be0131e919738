"""Where numbers go: metrics.jsonl is the truth, W&B and TensorBoard are mirrors that never stop or slow a run."""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from arcvideo.files import json_line, read_lines, write_lines
from arcvideo.hidden import hidden
from arcvideo.tracking.mirrors import BesideMirror
from arcvideo.tracking.sent import has_key, last_sent
from arcvideo.tracking.service import is_left, leave_behind
from arcvideo.tracking.settings import LoggerSettings

WANDB_WORDS = {"online": "online", "run": "online", "offline": "offline", "dryrun": "offline", "disabled": "disabled"}
"""What WANDB_MODE may say -> what it means; `run` and `dryrun` are its older words."""
_WANDB = "https://api.wandb.ai"
"""Where numbers go unless WANDB_BASE_URL says otherwise."""
_PATIENCE = 30
"""Seconds W&B may take to start."""


class MetricsFile:
    """metrics.jsonl: one object a step, in order, each step once even across restarts."""

    def __init__(self, path: Path, *, keep_below: int) -> None:
        """Open for appending.

        Args:
            path: the file; its folder exists.
            keep_below: lines of this step and later are dropped: the run is about to do those steps again.
        """
        self.path = path
        kept = [line for line in _lines(path) if line["step"] < keep_below]
        write_lines(path, map(_plain, kept), checked=True)
        self._file = path.open("a")

    def write(self, values: Mapping[str, Any]) -> None:
        """Append one object; it must have `step`.

        Raises:
            FileNotFoundError: the file is gone with its folder; what is written from now on would lie elsewhere.
        """
        if not self.path.exists():
            raise FileNotFoundError(
                f"{self.path}: is not there any more: the folder of the run was unmounted, moved or removed; put it "
                "back, then the same command continues"
            )
        self._file.write(json_line(_plain(values), checked=True))
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    # JSON has no nan and inf; a string keeps the line readable by any parser.
    return {
        key: str(value) if isinstance(value, float) and not _finite(value) else value for key, value in values.items()
    }


def _finite(value: float) -> bool:
    return value - value == 0.0


def _lines(path: Path) -> list[dict[str, Any]]:
    return read_lines(path, fields={"step": int}) if path.exists() else []


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return all lines of a metrics.jsonl, in order of steps; an absent file has none."""
    return _lines(path)


class WandbMirror(BesideMirror):
    """Sends the same numbers to W&B from a thread of its own: a server that hangs, errs or dies costs no step."""

    late = "; `wandb sync` sends the files later"

    def __init__(
        self,
        settings: LoggerSettings,
        *,
        folder: Path,
        name: str,
        config: Mapping[str, Any],
        run_id: str | None,
        past: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        """Start or continue the W&B run.

        Args:
            settings: mode, project and so on; online without a key becomes offline.
            folder: where W&B keeps its files.
            name: name of the run.
            config: resolved settings, shown by W&B.
            run_id: id from a checkpoint, None for a new run.
            past: objects of metrics.jsonl from before; those that a kill kept from W&B are sent now.
        """
        # W&B notes the command of the process. Everybody who needed its words has read them.
        sys.argv = [hidden(word) for word in sys.argv]
        mode = _wandb_mode(settings.wandb)
        self.run_id = run_id if mode == "disabled" else run_id or _sweeps_id() or uuid.uuid4().hex[:8]
        options = {
            "project": settings.project,
            "entity": settings.entity,
            "tags": [hidden(tag) for tag in settings.tags] or None,
            "mode": mode,
            "dir": str(folder),
            "name": name,
            # Stages of one pipeline stand together.
            "group": folder.absolute().parent.name,
            "job_type": folder.name,
            "config": dict(config),
            **_continued(self.run_id),
        }
        server = os.environ.get("WANDB_BASE_URL") or _WANDB
        advice = f" (server {server}; logger.wandb=offline asks none)" if mode == "online" else ""
        make = None if mode == "disabled" else partial(_WandbRun, options)
        super().__init__("W&B", make, past=past, advice=advice)

    def _give_up(self, error: Exception) -> None:
        super()._give_up(error)
        if self.run_id is not None:
            leave_behind(self.run_id)


class _WandbRun:
    """The run itself, in the thread that talks to W&B."""

    def __init__(self, options: dict[str, Any]) -> None:
        import wandb

        sent = last_sent(Path(options["dir"]), run_id=options["id"])
        self._run = wandb.init(settings=_quiet(), **options)
        # A server that is down is told by a line every five seconds otherwise; what is lost for good stays a line.
        wandb.termsetup(wandb.Settings(show_info=False), logging.getLogger("wandb"))
        _hide_in_logs()
        # Online, the server says where the run stands; of files only they themselves know.
        self.last = int(self._run.step) - 1 if options["mode"] == "online" else sent

    def write(self, values: Mapping[str, Any]) -> None:
        _log(self._run, values)

    def close(self, *, exit_code: int) -> None:
        _finish(self._run, exit_code=exit_code)


def _log(run: Any, item: Mapping[str, Any]) -> None:
    """Send one object of metrics.jsonl."""
    numbers = {key: value for key, value in item.items() if key != "step" and isinstance(value, int | float)}
    tables = {key: _table(rows) for key, rows in item.items() if isinstance(rows, list)}
    run.log(numbers | tables, step=int(item["step"]))


def _table(rows: list[Mapping[str, Any]]) -> Any:
    """Return a W&B table; what is neither a number nor a text is shown as JSON."""
    import wandb

    columns: list[str | int] = list(dict.fromkeys(name for row in rows for name in row))

    def cell(value: Any) -> Any:
        plain = value is None or isinstance(value, bool | int | float | str)
        return value if plain else json.dumps(value, ensure_ascii=False)

    # W&B wants one kind of value in a column; None fits any.
    return wandb.Table(columns=columns, data=[[cell(row.get(str(name))) for name in columns] for row in rows])


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """A node of the graph of artifacts that W&B draws."""

    name: str
    """Of the collection: the stage, `base` or `data`."""
    kind: str
    """`model` or `dataset`."""
    identity: str
    """Decides whether two artifacts are the same version."""
    path: Path | None = None
    """Where it lies; W&B stores a reference, never the weights."""


def record_lineage(
    made: Artifact, *, used: Sequence[Artifact], settings: LoggerSettings, folder: Path, run_id: str | None
) -> None:
    """Tell W&B what a finished stage read and what it made; a failure is said on stderr and changes nothing.

    Args:
        made: the stage's export.
        used: its parent's export and its data. They become the versions that the parent itself recorded, because
            equal identities give equal contents.
        settings: as given to the run.
        folder: of the stage.
        run_id: `RunResult.wandb_id`; None records nothing.
    """
    mode = _wandb_mode(settings.wandb, say=False)
    if mode == "disabled" or run_id is None or is_left(run_id):
        return
    options = {"project": settings.project, "entity": settings.entity, "mode": mode, "dir": str(folder)}
    failures: list[Exception] = []

    def record() -> None:
        try:
            _record_lineage(made, used=used, options=options | _continued(run_id))
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=record, name="wandb-lineage", daemon=True)
    thread.start()
    thread.join(2 * _PATIENCE)
    if thread.is_alive():
        failures.append(TimeoutError(f"no answer in {2 * _PATIENCE} s"))
    for error in failures:
        leave_behind(run_id)
        print(f"W&B does not know this stage's lineage: {type(error).__name__}: {error}", file=sys.stderr)


def _record_lineage(made: Artifact, *, used: Sequence[Artifact], options: Mapping[str, Any]) -> None:
    import wandb

    run = wandb.init(settings=_quiet(), **options)
    _hide_in_logs()
    for item in used:
        artifact = _artifact(item, make=wandb.Artifact)
        if options["mode"] == "offline":
            # `use_artifact` refuses to work offline, and `_log_artifact` behind it adds `latest`, which belongs to what
            # was made last. This is the record that they write, with the aliases that it shall have.
            artifact.finalize()
            assert run._interface is not None
            run._interface.publish_artifact(
                run, artifact, [item.identity[:12]], is_user_created=True, use_after_commit=True
            )
        else:
            run.use_artifact(artifact)
    run.log_artifact(_artifact(made, make=wandb.Artifact), aliases=["latest", made.identity[:12]])
    _finish(run)


def _finish(run: Any, *, exit_code: int = 0) -> None:
    """End a run, and wait for its files."""
    import wandb

    run.finish(exit_code=exit_code)
    # An offline run may return from `finish` before its file is written; this waits for W&B's own process to end.
    wandb.teardown()


def _artifact(item: Artifact, *, make: Callable[..., Any]) -> Any:
    where = {"path": str(item.path)} if item.path else {}
    artifact = make(item.name, type=item.kind, metadata={"identity": item.identity, **where})
    # Contents decide whether W&B sees one version or two.
    with artifact.new_file("identity.json") as file:
        json.dump({"identity": item.identity}, file)
    if item.path:
        artifact.add_reference(item.path.absolute().as_uri(), name="files", checksum=False)
    return artifact


def _sweeps_id() -> str | None:
    """Return the id under which the agent of a W&B sweep awaits this run; None outside of one."""
    return os.environ.get("WANDB_RUN_ID") if os.environ.get("WANDB_SWEEP_ID") else None


def _continued(run_id: str | None) -> dict[str, Any]:
    return {"id": run_id, "resume": "allow"}


class _Hiding(logging.Filter):
    """Takes credentials, and values of the environment, out of what W&B writes into its own debug.log."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Let every record pass, with its text hidden."""
        record.msg, record.args = hidden(record.getMessage()), ()
        return True


_HIDING = _Hiding()


def _hide_in_logs() -> None:
    """Put the filter before the files of the run that has just begun; those of the modules come by the handlers."""
    logger = logging.getLogger("wandb")
    for place in (logger, *logger.handlers):
        place.addFilter(_HIDING)  # once, however often it is asked


def _quiet() -> Any:
    import wandb

    _hide_in_logs()  # what it has to say while it starts

    return wandb.Settings(silent=True, console="off", init_timeout=_PATIENCE)


def _wandb_mode(wanted: str, *, say: bool = True) -> str:
    """Return the mode asked for, unless WANDB_MODE says otherwise or there is no key to be online with."""
    mode = (os.environ.get("WANDB_MODE") or wanted) if wanted == "online" else wanted
    if mode not in WANDB_WORDS:
        if say:
            print(f"WANDB_MODE={mode!r} is none of {', '.join(WANDB_WORDS)}: writing offline", file=sys.stderr)
        return "offline"
    if WANDB_WORDS[mode] != "online" or has_key():
        return WANDB_WORDS[mode]
    if say:
        print(
            "W&B has no key (WANDB_API_KEY or `wandb login`): writing offline; `wandb sync` sends it", file=sys.stderr
        )
    return "offline"


class TensorBoardMirror:
    """Writes the same numbers as TensorBoard events, when asked to and when tensorboard is installed."""

    def __init__(self, settings: LoggerSettings, *, folder: Path, start: int) -> None:
        """Open `folder`/tensorboard; events of steps from `start` on, left by a killed run, are disregarded."""
        self._writer: Any = None
        if not settings.tensorboard:
            return
        try:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=start)
        except Exception as error:
            self._give_up(error)

    def write(self, values: Mapping[str, Any]) -> None:
        """Mirror one object of metrics.jsonl."""
        if self._writer is None:
            return
        try:
            for key, value in values.items():
                if key != "step" and isinstance(value, int | float):
                    self._writer.add_scalar(key, value, values["step"])
            self._writer.flush()  # a kill must not cost steps before the next checkpoint
        except Exception as error:
            self._give_up(error)

    def close(self) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()

    def _give_up(self, error: Exception) -> None:
        print(f"TensorBoard is off for this run: {type(error).__name__}: {error}", file=sys.stderr)
        self._writer = None


class Sums:
    """Summed metrics of one step on one rank: the loss, and the objective's (sum, count) pairs."""

    def __init__(self) -> None:
        self._values: dict[str, list[Any]] = {}

    def add(self, name: str, total: Any, count: Any) -> None:
        """Add a sum and its count; tensors are not read before `pairs`."""
        pair = self._values.setdefault(name, [0.0, 0.0])
        pair[0] = pair[0] + total
        pair[1] = pair[1] + count

    def pairs(self) -> dict[str, list[float]]:
        """Name -> [sum, count] as floats."""
        return {name: [float(total), float(count)] for name, (total, count) in self._values.items()}


def merge(parts: list[dict[str, list[float]]]) -> dict[str, float]:
    """Sum over count for every name, over the ranks' pairs; names nobody counted are left out."""
    totals: dict[str, list[float]] = {}
    for part in parts:
        for name, (total, count) in part.items():
            pair = totals.setdefault(name, [0.0, 0.0])
            pair[0] += total
            pair[1] += count
    return {name: total / count for name, (total, count) in sorted(totals.items()) if count}
