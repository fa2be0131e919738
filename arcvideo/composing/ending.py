"""How a run ends: with a status and one line for the user, after whoever listens to Hydra was told."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hydra._internal import utils
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode

from arcvideo.files import error_line
from arcvideo.hidden import plain


class Ended(Exception):
    """A job that ends with a status of its own; Hydra takes it for a failed job and tells callbacks."""

    def __init__(self, code: Any, *, message: str = "") -> None:
        super().__init__(message or f"ended with status {code}")
        self.code = code
        self.message = message


_PLACES = ("hydra.sweep.dir", "hydra.run.dir", "hydra.output_subdir")


@contextmanager
def refusals(refuse: Callable[[list[str]], None], *, words: Sequence[str], folder: Path) -> Iterator[None]:
    """Inside the block `refuse` gets, as one line, what the operating system refuses Hydra, in place of a traceback.

    Hydra makes the folder of a job, its log and its records before the job begins, where nothing of ours can catch it.

    Args:
        refuse: ends the process.
        words: overrides, which may say where Hydra writes.
        folder: where it does without such a word.
    """
    given = {word.lstrip("+").partition("=")[0]: word.partition("=")[2] for word in words}
    key = next((key for key in _PLACES if key in given), "run_dir")
    where = Path(given[key]) if key in _PLACES else folder
    reported = utils.run_and_report

    def report(work: Callable[[], Any]) -> Any:
        def tried() -> Any:
            try:
                return work()
            except (OSError, ValueError) as error:
                refusal = error if isinstance(error, OSError) else error.__cause__  # logging wraps what it met
                if isinstance(refusal, OSError) and os.environ.get("HYDRA_FULL_ERROR") != "1":
                    refuse([error_line(refusal, folder=where, key=key)])
                raise

        return reported(tried)

    utils.run_and_report = report  # type: ignore[assignment]
    try:
        yield
    finally:
        utils.run_and_report = reported


class EndWithStatus(Callback):
    """End the process as the job ended, in place of Hydra's traceback; conf/config.yaml names it first, so that it
    comes after the user's own callbacks."""

    def on_job_end(self, config: Any, job_return: JobReturn, **kwargs: Any) -> None:
        """In a sweep, let the others go on behind a job that failed, and end it with a job that was stopped."""
        ended = job_return._return_value
        if config.hydra.mode == RunMode.MULTIRUN and isinstance(ended, Ended):
            if not ended.message:
                sys.exit(ended.code)
            job_return.return_value, job_return.status = None, JobStatus.COMPLETED

    def on_run_end(self, config: Any, *, job_return: JobReturn | None = None, **kwargs: Any) -> None:
        """Exit with the message and the status of an `Ended`; leave every other end to Hydra."""
        ended = getattr(job_return, "_return_value", None)
        if isinstance(ended, Ended):
            if ended.message:
                print(ended.message, file=sys.stderr, flush=True)
            sys.exit(ended.code)


def traced(folder: Path) -> str:
    """Write the traceback of the error that is handled now; where it is, or nothing on a disk that takes no more."""
    trace = folder / f"error-{os.environ.get('RANK', '0')}.txt"
    try:
        trace.parent.mkdir(parents=True, exist_ok=True)
        trace.write_text(plain(traceback.format_exc()), encoding="utf-8", errors="backslashreplace")
    except OSError:
        return ""
    return f" (traceback in {trace})"


def forget_errors(folder: Path, *, before: float) -> None:
    """Remove the tracebacks of earlier processes from the folder of a stage that is finished now."""
    for trace in folder.glob("error-*.txt"):
        with suppress(OSError):
            if trace.stat().st_mtime < before:
                trace.unlink()
