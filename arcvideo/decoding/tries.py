"""How often a file is tried whose process ended without an answer; without torch, for all that decode."""

from __future__ import annotations

import signal

FROM_OUTSIDE = frozenset({signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP})
"""Signals that no file makes a decoder die of: somebody sent them, most often the kernel when memory ran out."""
TRIES = 2
"""Times that a file is read whose process crashes or does not answer: once could be the machine's fault."""
TRIES_FROM_OUTSIDE = 6
"""The same for a process that was ended from outside."""
