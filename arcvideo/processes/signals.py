"""Being asked to stop: SIGTERM, SIGUSR1 and SIGHUP end the run after the present step, with a checkpoint."""

from __future__ import annotations

import os
import signal
import time
from types import FrameType, TracebackType

from arcvideo.processes.command import ASKS_TO_STOP, REQUEUE_EXIT_CODE, TWICE_SECONDS


class Preempted(SystemExit):
    """The run stopped at a checkpoint because of a signal; uncaught, the process exits with 85."""

    def __init__(self, step: int) -> None:
        super().__init__(REQUEUE_EXIT_CODE)
        self.step = step


class StopSignals:
    """While entered, notes the first SIGTERM, SIGUSR1 or SIGHUP; a second one, not the same again, ends the process."""

    def __init__(self) -> None:
        self.requested = False
        self._heard = 0.0
        self._before: dict[int, object] = {}

    def __enter__(self) -> StopSignals:
        for number in ASKS_TO_STOP:
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue  # started with nohup
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.requested and (number == signal.SIGHUP or time.monotonic() - self._heard < TWICE_SECONDS):
            return  # it was sent to every process, and whoever started this one hands it on as well
        if self.requested:
            # No clean-up: whoever sends twice does not want to wait for a collective that may never end.
            os._exit(128 + number)
        self.requested, self._heard = True, time.monotonic()
