"""How a run ends: with a status and one line for the user, after whoever listens to Hydra was told."""

from __future__ import annotations

import sys
from typing import Any

from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback


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
