"""Who may speak on the terminal: rank 0 while all is well, and the first rank that fails, once. Imports no torch."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import sys
import time
import traceback
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from arcvideo.hidden import plain
from arcvideo.processes.activity import LOST_EXIT_CODE, Activity, Seen, lost_line

LOGS_NAME = "logs"
"""Folder inside a stage's folder."""


class _Plain(io.TextIOWrapper):
    """A stream to a person: what is written to it neither gives credentials away nor steers the terminal."""

    def write(self, text: str) -> int:
        """Write; see `hidden.plain`. A reader that has gone, or a full disk behind a redirection, ends no run."""
        global _SPOKEN
        _SPOKEN = time.monotonic()
        try:
            super().write(plain(text, colours=self.isatty()))
        except OSError as error:
            self._lost(error)
        return len(text)

    def flush(self) -> None:
        """Hand on what was written, as far as somebody takes it."""
        try:
            super().flush()
        except OSError as error:
            self._lost(error)

    def _lost(self, error: OSError) -> None:
        if error.errno in (errno.EPIPE, errno.EIO):  # the other end is closed, for good
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)


_SPOKEN = 0.0


def last_spoken() -> float:
    """Return the second of the monotonic clock of the last word to a person since `speak_plainly`; else 0."""
    return _SPOKEN


def speak_plainly() -> None:
    """From now on all that this process prints goes through `hidden.plain`, whoever prints it; for commands.

    Signs that the encoding of the terminal does not have, and halves of characters, are printed as escapes. In a log,
    libraries that draw bars of their own (transformers, where it reads or writes weights) draw none.
    """
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if type(stream) is not io.TextIOWrapper:
            continue  # a test, or somebody else's, captures it
        stream.flush()
        spoken = _Plain(
            stream.buffer,
            encoding=stream.encoding,
            errors="backslashreplace",
            line_buffering=stream.line_buffering or name == "stderr",
            write_through=stream.write_through,
        )
        setattr(sys, name, spoken)


@contextmanager
def one_voice(folder: Path, *, rank: int, ranks: int, job: str, patience: float = 0.0) -> Iterator[None]:
    """Send what ranks other than the first print to `<folder>/logs/rank_N.log`, and show the first failure once.

    From then on the process's stdout and stderr, of C++ too, are that file. An error that leaves the block goes as a
    traceback into the rank's file; the rank that fails first says it in one line on the terminal, whichever it is; the
    process ends with status 1, or with 87 when it fails because another rank is gone without a word (killed from
    outside): then the line says which, and what it was doing. A process alone is left as it is.

    Args:
        folder: of the stage.
        rank: of this process.
        ranks: how many there are.
        job: what the ranks of one launch have in common.
        patience: seconds that a rank waits for others of which one does not answer at all; 0 for ever.
    """
    if ranks == 1:
        yield
        return
    global _TERMINAL
    logs = folder / LOGS_NAME
    logs.mkdir(parents=True, exist_ok=True)
    log = logs / f"rank_{rank}.log"
    _TERMINAL = os.dup(2)
    if rank:
        _send_to(log)
    with Activity(logs, rank=rank, ranks=ranks, say=to_person, patience=patience) as here:
        try:
            yield
        except Exception as error:
            with log.open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(plain(traceback.format_exc()))
            # What a collective says of a peer that is gone is C++'s; an error of our own keeps its words.
            broken = isinstance(error, RuntimeError) and _TRANSPORT.search(str(error))
            lost = here.lost() if broken else []
            here.log(lost)
            if _is_first(logs, job=job):
                to_person(f"error on rank {rank}: {_told(error, lost=lost, log=log)}")
            else:
                # What follows from a peer's end, as C++ and Python tell it on the way out, hides the reason.
                _send_to(log)
            sys.exit(LOST_EXIT_CODE if lost else 1)


_TERMINAL: int | None = None
_TRANSPORT = re.compile(r"gloo|nccl|connection|peer|socket|store|timed? ?out|broken pipe", re.IGNORECASE)


def to_person(text: str) -> None:
    """Write a line to the terminal, also from a rank whose output goes to its log."""
    os.write(2 if _TERMINAL is None else _TERMINAL, f"{plain(text)}\n".encode(errors="backslashreplace"))


def _told(error: Exception, *, lost: list[Seen], log: Path) -> str:
    line = lost_line(lost) if lost else _line(error)
    return line if "traceback in" in line else f"{line} (traceback in {log})"


def _send_to(log: Path) -> None:
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream, number in ((sys.stdout, 1), (sys.stderr, 2)):
        stream.flush()
        os.dup2(file, number)
        # A process that is killed has told everything up to its last line.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(line_buffering=True)
    os.close(file)


def _line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    text = lines[0] + (" ..." if len(lines) > 1 else "")
    # A ValueError is written for the user; of the others the kind says more than the words.
    return text if isinstance(error, ValueError) and text else f"{type(error).__name__}: {text}"


def _is_first(logs: Path, *, job: str) -> bool:
    """Return whether no other rank of this launch (on this machine) has failed before."""
    mark = logs / f".failed-{os.getppid()}-{zlib.crc32(job.encode()):08x}"
    for old in logs.glob(".failed-*"):
        if old != mark:
            with contextlib.suppress(OSError):
                old.unlink()
    try:
        mark.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True
