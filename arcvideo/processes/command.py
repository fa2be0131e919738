"""The process of a command, from its first line to its last: asked to stop, it ends with the status for that.

Loads nothing that Python has not loaded already, since it comes before all else.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from types import FrameType
from typing import Any, NoReturn

ASKS_TO_STOP = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
"""What a run is asked to stop with: by schedulers, by launchers, and by a terminal that is closed."""
REQUEUE_EXIT_CODE = 85
"""Exit status of a run that was asked to stop: start the same command again to go on."""
INTERRUPT_EXIT_CODE = 130
"""Exit status after Ctrl-C."""
TWICE_SECONDS = 1.0
"""A signal that comes again within this time is the same one: it went to the whole group of processes, and whoever
started this one hands it on as well."""


def begin(words: Sequence[str]) -> None:
    """Answer signals from now on if this is the process of one of our commands; `import arcvideo` calls it first.

    Args:
        words: how the interpreter was started, `sys.orig_argv`. Children that `multiprocessing` starts are no commands.
    """
    if not _is_command(words):
        return
    _open_closed_streams()
    stop_with_status()
    _answer_interrupts(_end_interrupted)
    atexit.register(_leave)  # the first to be registered is the last to be called


def as_command(main: Callable[[], int | None]) -> NoReturn:
    """Run the main function of a command and exit with its status.

    All that is printed goes through `hidden.plain`. Ctrl-C is KeyboardInterrupt once and ends the process when it comes
    again; where modules are being imported it ends the process at once, since half of a library turns it into other
    errors. What `main` does not say of it itself is one line.
    """
    from arcvideo.processes.terminal import speak_plainly

    _open_closed_streams()
    speak_plainly()
    stop_with_status()
    _answer_interrupts(_interrupt)
    sys.unraisablehook = _unraisable
    global _STATUS
    status: Any = INTERRUPT_EXIT_CODE
    try:
        status = main()
    except KeyboardInterrupt:
        say_interrupted()
    except SystemExit as stop:
        status = stop.code
    if status is not None and not isinstance(status, int):
        print(status, file=sys.stderr)
        status = 1
    _STATUS = status or 0
    sys.exit(_STATUS)


def stop_with_status() -> None:
    """From now on SIGTERM, SIGUSR1 and SIGHUP end this process at once with status 85, wherever it is.

    For what lies around the loop of a run, which saves first: whatever is half done there is done again by the same
    command.
    """
    for number in ASKS_TO_STOP:
        if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
            continue  # started with nohup
        signal.signal(number, lambda number, frame: _end(REQUEUE_EXIT_CODE))


_STATUS: int | None = None


def _leave() -> None:
    """End the process once all that wants to be told of its end was; it comes last.

    What Python does behind that takes a second where torch is loaded, and a signal meanwhile, such as one that is sent
    again, would replace the status.
    """
    if _STATUS is not None:
        _end(_STATUS)


def _is_command(words: Sequence[str]) -> bool:
    """Return whether Python was started with `-m arcvideo...` or with the installed script `arcvideo`."""
    for before, word in pairwise(words):
        if before == "-m":
            name = word.split(".")
            return name[0] == "arcvideo" and name[1:] != ["decoding", "worker"]  # a worker answers its parent alone
        if before == "-c":
            return False
        if not word.startswith("-") and before not in ("-X", "-W"):
            return os.path.basename(word) == "arcvideo"
    return False


def _open_closed_streams() -> None:
    """Put /dev/null where standard streams are closed: the next file to be opened would take their number, and what is
    printed would go into it."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
        if getattr(sys, name) is None:
            stream = open(number, "w" if number else "r", closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)  # keeps it open where another takes its place


def _answer_interrupts(handler: Callable[[int, FrameType | None], Any]) -> None:
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:  # a shell lets what it starts in the background ignore it
        signal.signal(signal.SIGINT, handler)


_INTERRUPTED = 0.0


def _interrupt(number: int, frame: FrameType | None) -> None:
    global _INTERRUPTED
    if not _INTERRUPTED:
        _INTERRUPTED = time.monotonic()
        if _imports(frame):
            _end_interrupted()
        raise KeyboardInterrupt
    if time.monotonic() - _INTERRUPTED > TWICE_SECONDS:
        _end(INTERRUPT_EXIT_CODE)


def _imports(frame: FrameType | None) -> bool:
    """Return whether a module is being imported where the process is."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _unraisable(unraisable: sys.UnraisableHookArgs) -> None:
    """End what Python would go on with: KeyboardInterrupt in a place that can raise nothing, such as a `__del__`."""
    if isinstance(unraisable.exc_value, KeyboardInterrupt):
        _end_interrupted()
    sys.__unraisablehook__(unraisable)


def _end_interrupted(*_: object) -> None:
    say_interrupted()
    _end(INTERRUPT_EXIT_CODE)


def say_interrupted(more: str = "") -> None:
    """Say on stderr that Ctrl-C ends this process, once among the ranks of a job.

    Args:
        more: what the same command will do.
    """
    if os.environ.get("RANK", "0") == "0":
        with contextlib.suppress(OSError):
            os.write(2, f"\ninterrupted{more}\n".encode())


def _end(status: int) -> None:
    for stream in (sys.stdout, sys.stderr):
        # The signal may have come while something was being written, which cannot be entered twice.
        with contextlib.suppress(RuntimeError, ValueError, OSError, AttributeError):
            stream.flush()
    os._exit(status)
