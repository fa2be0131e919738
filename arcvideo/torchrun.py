"""torchrun for a stage, without its wall of text: `arcvideo torchrun --nproc_per_node 8 stage=sft ...`.

The options before the first override are torchrun's own. The rank that failed has said why; this only hands on its exit
status, which torchrun itself turns into 1, so that status 85 (saved, please requeue) reaches whoever waits for it.
SIGTERM, SIGUSR1 and SIGHUP go on to the ranks, which save and end with 85; torchrun itself would kill them after 30 s.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

from arcvideo.processes.command import ASKS_TO_STOP, as_command


def main(words: Sequence[str] | None = None) -> None:
    """Start the ranks, wait, and exit with 0 or the status of the first rank that failed."""
    words = list(sys.argv[1:] if words is None else words)
    if not words or {"-h", "--help"} & set(words):
        print(__doc__)
        return
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    logging.disable(logging.ERROR)  # torch sets levels of its loggers one by one
    arguments = parse_args(words)
    arguments.training_script_args = [arguments.training_script, *arguments.training_script_args]
    arguments.training_script, arguments.module = "arcvideo.train", True
    arguments.signals_to_handle = "SIGINT,SIGQUIT"
    for number in ASKS_TO_STOP:
        signal.signal(number, _hand_on)
    try:
        run(arguments)
    except ChildFailedError as failed:
        rank, failure = failed.get_first_failure()
        if failure.exitcode < 0:
            print(f"error: rank {rank} was ended by {signal.Signals(-failure.exitcode).name}", file=sys.stderr)
            sys.exit(128 - failure.exitcode)
        sys.exit(failure.exitcode)
    except SignalException as stopped:
        sys.exit(128 + stopped.sigval)
    except (ValueError, RuntimeError, OSError) as error:  # an option of torchrun's, a port that somebody has
        sys.exit(f"error: torchrun: {str(error).partition(chr(10))[0]}")


def _hand_on(number: int, frame: FrameType | None) -> None:
    for child in _children():
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, number)


def _children() -> Iterator[int]:
    """Yield processes that this one has started."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = path.read_text().rpartition(")")[2].split()[1]
            if int(parent) == os.getpid():
                yield int(path.parent.name)


if __name__ == "__main__":
    as_command(main)
