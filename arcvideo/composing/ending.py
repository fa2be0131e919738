"""How a run ends: with a status and one line for the user, after whoever listens to Hydra was told."""

from __future__ import annotations

import errno
import os
import re
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback

from arcvideo.hidden import plain


class Ended(Exception):
    """A job that ends with a status of its own; Hydra takes it for a failed job and tells callbacks."""

    def __init__(self, code: Any, *, message: str = "") -> None:
        super().__init__(message or f"ended with status {code}")
        self.code = code
        self.message = message


class EndWithStatus(Callback):
    """End the process as the job ended, in place of Hydra's traceback; conf/config.yaml names it first, so that it
    comes after the user's own callbacks."""

    def on_run_end(self, config: Any, *, job_return: JobReturn | None = None, **kwargs: Any) -> None:
        """Exit with the message and the status of an `Ended`; leave every other end to Hydra."""
        ended = getattr(job_return, "_return_value", None)
        if isinstance(ended, Ended):
            if ended.message:
                print(ended.message, file=sys.stderr, flush=True)
            sys.exit(ended.code)


_REMEDIES = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
    errno.EROFS: "choose a run_dir that can be written",
    errno.EACCES: "choose a run_dir that you may write, or change its permissions",
    errno.EPERM: "choose a run_dir that you may write, or change its permissions",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.EIO: "repair the disk",
    errno.ESTALE: "mount the folder again",
    errno.ENOTCONN: "mount the folder again",
}
"""Error of the operating system -> what to do before the same command is started again."""


def told(error: Exception, *, folder: Path) -> str:
    """Return the error in one line; what the operating system says names a file where it knows it, and the remedy."""
    match = re.search(r"\(os error (\d+)\)", str(error))  # how the writer of tensors says it
    number = error.errno if isinstance(error, OSError) and not isinstance(error, ValueError) else None
    number = int(match[1]) if number is None and match is not None and not isinstance(error, ValueError) else number
    if number is None:
        return str(error) or type(error).__name__
    where = getattr(error, "filename", None) or folder
    remedy = _REMEDIES.get(number)
    return f"{where}: {os.strerror(number)}{f'; {remedy}, then the same command continues' if remedy else ''}"


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
